"""From decode directories, or another system's predictions, to a table of scores.

Says which module scores which task; how a score is computed is the business of
`metrics`, what is read and checked that of `read`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from espnet2_slit.common.files import sha256
from espnet2_slit.data.kaldi_dir import read_set
from espnet2_slit.scoring import answers, captions, labels, moments, retrieval
from espnet2_slit.scoring.metrics.captioning import CaptionOptions
from espnet2_slit.scoring.metrics.score_table import ScoreTable
from espnet2_slit.scoring.read import (
    ScoringError,
    TaskOfSet,
    read_decode,
)

SCORERS: dict[str, Callable[[TaskOfSet], None]] = {
    "caption": captions.score,
    "retrieval": retrieval.score,
    "question_answering": answers.score,
    "classification": labels.score,
    "moments": moments.score,
}
# decode.json: option -> the one task that it concerns.
DECODING_OWNERS = {
    "rerank": "retrieval",
    "rerank_scale": "retrieval",
    "label_templates": "classification",
}


def score_set(
    table: ScoreTable,
    data_dir: Path,
    decode_dir: Path,
    options: CaptionOptions | None = None,
) -> None:
    """Score one decoded set, every task it was decoded for.

    Args:
        table: to add to.
        data_dir: the set's data directory.
        decode_dir: `<decode directory>/<set>`.
        options: of the caption metrics.

    Raises:
        ScoringError: decoding is incomplete, or ids, labels or counts do not agree.
    """
    data_dir, decode_dir = Path(data_dir), Path(decode_dir)
    decoded = read_decode(decode_dir)
    facts = read_set(data_dir)
    protocol = base_protocol(data_dir, facts)
    for name in ("model", "encoder", "language_model", "seed"):
        protocol[name] = _plain(decoded.get(name))
    for task in facts.get("tasks") or decoded["tasks"]:
        if task not in decoded["tasks"]:
            reason = decoded.get("not_decoded", {}).get(task, "no reason given")
            needs = (
                f"the set decoded for it (decode.json lists {decoded['tasks']}: "
                f"{reason})"
            )
            logging.warning("%s: %s is not decoded: %s", data_dir.name, task, reason)
            table.add_missing(data_dir.name, task, needs, protocol)
            continue
        decoding = _plain(_decoding_of(task, decoded.get("decoding")))
        SCORERS[task](
            TaskOfSet(
                table=table,
                data_dir=data_dir,
                task=task,
                path=decode_dir / task,
                external=False,
                protocol=protocol | {"decoding": decoding},
                options=options or CaptionOptions(),
            )
        )


def score_predictions(
    table: ScoreTable,
    data_dir: Path,
    task: str,
    path: Path,
    options: CaptionOptions | None = None,
) -> None:
    """Score another system's predictions of one task of one set.

    Args:
        table: to add to; its `system` names the system.
        data_dir: the set's data directory.
        task: a key of `SCORERS`.
        path: `id hypothesis` lines (caption, question_answering, classification), an
            .npz (retrieval, classification; `slit_score --help` names its arrays), or
            JSON lines (moments).
        options: of the caption metrics.

    Raises:
        ScoringError: unknown task, or the file does not fit the data.
    """
    data_dir, path = Path(data_dir), Path(path)
    if task not in SCORERS:
        raise ScoringError(f"expected a task of {list(SCORERS)}, found {task!r}")
    if not path.is_file():
        raise ScoringError(f"{path}: expected a file of predictions, found none")
    protocol = base_protocol(data_dir, read_set(data_dir)) | {
        "model": table.system,
        "encoder": None,
        "language_model": None,
        "decoding": f"{path.name}, sha256 {sha256(path)[:16]}",
        "seed": None,
    }
    SCORERS[task](
        TaskOfSet(
            table=table,
            data_dir=data_dir,
            task=task,
            path=path,
            external=True,
            protocol=protocol,
            options=options or CaptionOptions(),
        )
    )


def base_protocol(data_dir: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """What the data says of itself."""
    return {
        "corpus": facts.get("corpus", ""),
        "split": facts.get("split", ""),
        "variant": facts.get("variant", ""),
        "zero_shot": bool(facts.get("zero_shot", False)),
        "notes": facts.get("notes", ""),
        "language": facts.get("language", ""),
    }


def _decoding_of(task: str, decoding: Any) -> Any:
    """The task's own part of decode.json's `decoding`, and what no task owns."""
    if not isinstance(decoding, dict):
        return decoding
    if task in decoding:
        return decoding[task]
    owned = {*SCORERS, *(n for n, owner in DECODING_OWNERS.items() if owner != task)}
    return {k: v for k, v in decoding.items() if k not in owned}


def _plain(value: Any) -> Any:
    """A protocol value as one short string."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{k}={_plain(v)}" for k, v in value.items())
    return json.dumps(value, ensure_ascii=False)
