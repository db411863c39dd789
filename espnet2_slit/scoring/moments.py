"""Scores of moments: when in a recording the texts of a set are heard.

The right ones are in the file `moments`, `id start end` in seconds, of the sample whose
`text` is the query; samples repeat. Predictions are JSON lines as DCASE 2026 has them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_slit.data.kaldi_dir import clip_of, read_pairs
from espnet2_slit.scoring.metrics.bootstrap import Items
from espnet2_slit.scoring.metrics.moments import MAX_PREDICTED, score_moments
from espnet2_slit.scoring.read import ScoringError, TaskOfSet, check_ids

CHANCE = "the moments of another, random query of the set"


def score(task: TaskOfSet) -> None:
    """Add recall and average precision of predicted moments.

    Raises:
        ScoringError: ids differ from the data's, or lines are no moments.
    """
    path = task.file("predictions.jsonl")
    right = read_right_moments(task.data_dir / "moments")
    predicted = read_predicted_moments(path)
    check_ids(right, predicted, task.data_dir / "moments", path)
    ids = sorted(right)
    clips = clip_of(task.data_dir)
    of_query = [clips.get(i, i) for i in ids]
    wanted = [right[i] for i in ids]
    try:
        result = score_moments([predicted[i] for i in ids], wanted, of_query)
    except ValueError as error:
        raise ScoringError(f"{path}: {error}") from error
    chance = {}
    if len(ids) > 1:
        order = np.random.default_rng(task.table.seed).permutation(len(ids))
        donor = np.empty_like(order)
        donor[order] = np.roll(order, 1)  # one cycle: no query gets its own
        drawn = score_moments([wanted[d] for d in donor], wanted, of_query)
        chance = {m: s.value for m, s in drawn.scores.items() if isinstance(s, Items)}
    protocol = {
        "moments_per_query": _range([len(w) for w in wanted]),
        "predicted_per_query": f"the first {MAX_PREDICTED}",
        "recall": "the first moment, with the right one that it overlaps most",
        "map_iou_mean": "mean over IoU 0.5, 0.55, ... 0.95 and over queries",
        "resampled": "clips",
        "chance": CHANCE,
    }
    task.add((), result.scores, protocol, len(ids), result.clips, chance)


def read_right_moments(path: Path) -> dict[str, np.ndarray]:
    """`moments` of a set: id -> (G, 2) seconds.

    Raises:
        ScoringError: no such file, or a line that is no start and end.
    """
    if not path.is_file():
        raise ScoringError(
            f"{path}: expected the right moments, `id start end` in seconds, found none"
        )
    found: dict[str, list[list[str]]] = {}
    for key, value in read_pairs(path):
        found.setdefault(key, []).append(value.split())
    return {key: _moments(path, key, value, 2) for key, value in found.items()}


def read_predicted_moments(path: Path) -> dict[str, np.ndarray]:
    """Predictions as JSON lines: id -> (P, 2) seconds, best first.

    Args:
        path: lines {"qid": id, "pred_relevant_windows": [[start, end, score], ...]};
            other fields are ignored.

    Raises:
        ScoringError: a line of another form, or an id twice.
    """
    found: dict[str, np.ndarray] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = _parsed(path, line)
        if not isinstance(row, dict) or not {"qid", "pred_relevant_windows"} <= set(
            row
        ):
            raise ScoringError(
                f"{path}: expected lines with qid and pred_relevant_windows, found "
                f"{line[:80]!r}"
            )
        key = str(row["qid"])
        if key in found:
            raise ScoringError(f"{path}: expected each qid once, {key!r} repeats")
        moments = _moments(path, key, row["pred_relevant_windows"], 3)
        order = np.argsort(-moments[:, 2], kind="stable")
        found[key] = moments[order, :2]
    return found


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ScoringError(
            f"{path}: expected JSON, found {text[:80]!r} ({error})"
        ) from error


def _moments(path: Path, key: str, value: Any, width: int) -> np.ndarray:
    try:
        moments = np.array(value, dtype=float).reshape(-1, width)
        if [len(one) for one in value] != [width] * len(moments) or (
            not np.isfinite(moments).all()
        ):
            raise ValueError
    except (TypeError, ValueError):
        names = ["start", "end", "score"][:width]
        raise ScoringError(
            f"{path}: expected a list of [{', '.join(names)}] of {key}, found "
            f"{str(value)[:80]}"
        ) from None
    return moments


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}-{high}"
