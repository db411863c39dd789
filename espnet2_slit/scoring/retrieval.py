"""Scores of searching the clips of a set by its texts, and its texts by the clips."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_slit.common.texts import normalize_caption
from espnet2_slit.data.kaldi_dir import read_pairs
from espnet2_slit.scoring.metrics import retrieval
from espnet2_slit.scoring.read import (
    EXAMPLES,
    ScoringError,
    TaskOfSet,
    check_ids,
    load_arrays,
    read_references,
    spread,
    strings,
    unit_length,
)

CHANCE = "random order"
# Rows beside the published protocol's.
EQUAL_TEXTS = "equal_texts"
SEVERAL_RELEVANT = "several_relevant"
# Cells of a similarity matrix computed at once from embeddings.
CELLS_PER_CHUNK = 16_000_000
OURS = ("audio_ids", "text_audio_ids", "contrastive")
SIMILARITY = ("audio_ids", "text_audio_ids", "similarity")
EMBEDDINGS = ("audio_ids", "text_audio_ids", "audio", "text")


@dataclass(frozen=True)
class Ranking:
    """What one system ranked.

    Attributes:
        path: file it was read from.
        audio_ids: N clip ids.
        owner: (M,) int, the clip each text describes.
        texts: M texts.
        matrices: {(direction, how): (M, N) scores}; both directions of `contrastive`
            are one matrix.
    """

    path: Path
    audio_ids: list[str]
    owner: np.ndarray
    texts: list[str]
    matrices: dict[tuple[str, str], np.ndarray]


def score(task: TaskOfSet) -> None:
    """Add the scores of both directions, each way of ranking.

    Raises:
        ScoringError: ids, counts or shapes differ from the data's.
    """
    found = read_ranking(task)
    _add_published(task, found)
    _add_equal_texts(task, found)
    _add_several_relevant(task, found)


def _add_published(task: TaskOfSet, found: Ranking) -> None:
    """Each text has one right clip, its own, as publications count."""
    texts_of_a_clip = _range(np.bincount(found.owner))
    ranks = {}
    for (direction, how), matrix in found.matrices.items():
        to_audio = direction == "text_to_audio"
        metric = retrieval.text_to_audio if to_audio else retrieval.audio_to_text
        result = metric(matrix, found.owner)
        protocol = {
            "relevant_per_query": "1" if to_audio else texts_of_a_clip,
            "resampled": "clips; the gallery is kept",
        } | _protocol(direction, how, result)
        task.add(
            (direction, how),
            result.scores,
            protocol,
            result.queries,
            found.audio_ids,
            result.chance,
        )
        if to_audio:
            ranks[how] = matrix, result.ranks[:, 0]
    task.keep(_examples(found, *ranks.get("reranked", ranks["contrastive"])))


def _add_equal_texts(task: TaskOfSet, found: Ranking) -> None:
    """Rows in which equal texts are one text, and all clips that have it are right.

    Meant for sets whose texts are labels or come from few sentences, where the
    published protocol calls clips wrong that a text describes. Nothing is added to a
    set without equal texts.
    """
    number: dict[str, int] = {}
    of_text = np.array(
        [number.setdefault(normalize_caption(t), len(number)) for t in found.texts]
    )
    if len(number) == len(found.texts):
        return
    pairs = np.unique(np.stack([of_text, found.owner], axis=1), axis=0)
    texts, clips = pairs[:, 0], pairs[:, 1]
    for (direction, how), matrix in found.matrices.items():
        # Copies of a text have one similarity, but not all of them may be re-ranked.
        one = np.full((len(number), matrix.shape[1]), -np.inf, dtype=matrix.dtype)
        np.maximum.at(one, of_text, matrix)
        if direction == "text_to_audio":
            relevant = retrieval.padded(texts, clips, len(number))
            result, units = retrieval.ranked(one, relevant), list(number)
        else:
            relevant = retrieval.padded(clips, texts, len(found.audio_ids))
            one = np.ascontiguousarray(one.T)
            result = retrieval.ranked(one, relevant, shares=True)
            units = found.audio_ids
        protocol = {
            "equal_texts": "one text, all its clips are right",
            "relevant_per_query": _range((relevant >= 0).sum(axis=1)),
            "resampled": "queries; the gallery is kept",
        } | _protocol(direction, how, result)
        where = (direction, how, EQUAL_TEXTS)
        task.add(where, result.scores, protocol, result.queries, units, result.chance)


def _add_several_relevant(task: TaskOfSet, found: Ranking) -> None:
    """Text to audio with the further right clips that `relevant` names.

    The protocol of DCASE 2025, task 6: mAP@16 over queries with several right clips.

    Raises:
        ScoringError: `relevant` names clips or texts that the set does not have.
    """
    path = task.data_dir / "relevant"
    if not path.is_file():
        return
    clip_number = {clip: i for i, clip in enumerate(found.audio_ids)}
    of_text: dict[str, list[int]] = {}
    for i, text in enumerate(found.texts):
        of_text.setdefault(normalize_caption(text), []).append(i)
    pairs = set(enumerate(found.owner.tolist()))
    for clip, text in read_pairs(path):
        queries = of_text.get(normalize_caption(text), [])
        if clip not in clip_number or not queries:
            what = f"clip {clip!r}" if queries else f"text {text!r}"
            raise ScoringError(
                f"{path}: expected clips and texts of this set's references, found "
                f"{what}; a line is a clip id and a text that describes this clip, too"
            )
        pairs |= {(query, clip_number[clip]) for query in queries}
    query, clips = np.array(sorted(pairs)).T
    relevant = retrieval.padded(query, clips, len(found.texts))
    for (direction, how), matrix in found.matrices.items():
        if direction != "text_to_audio":
            continue
        result = retrieval.ranked(
            matrix, relevant, found.owner, shares=True, map_cutoffs=(10, 16)
        )
        protocol = {
            "relevant": "a text's own clip and those of the file `relevant`",
            "relevant_per_query": _range((relevant >= 0).sum(axis=1)),
            "resampled": "clips whose texts are the queries; the gallery is kept",
        } | _protocol(direction, how, result, "min(relevant, k)")
        task.add(
            (direction, how, SEVERAL_RELEVANT),
            result.scores,
            protocol,
            result.queries,
            found.audio_ids,
            result.chance,
        )


def _protocol(
    direction: str,
    how: str,
    result: retrieval.RetrievalScores,
    divisor: str = "min(relevant, 10)",
) -> dict[str, Any]:
    return {
        "direction": direction,
        "reranked": how == "reranked",
        "gallery": result.gallery,
        "map_divisor": divisor,
        "ties": "counted against the system",
        "chance": CHANCE,
    }


def _range(counts: np.ndarray) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low}-{high}"


def read_ranking(task: TaskOfSet) -> Ranking:
    """Similarities of a set's texts and clips, checked against its data.

    Raises:
        ScoringError: ids, counts or shapes differ from the data's.
    """
    path = task.path if task.external else task.path / "scores.npz"
    arrays = load_arrays(path, [OURS, SIMILARITY, EMBEDDINGS])
    references = read_references(task.data_dir)
    audio_ids = strings(arrays["audio_ids"])
    text_audio_ids = strings(arrays["text_audio_ids"])
    _check(path, task.data_dir, references, audio_ids, text_audio_ids)
    number = {audio: i for i, audio in enumerate(audio_ids)}
    matrices = {}
    contrastive = _similarity(arrays)
    for direction in ("text_to_audio", "audio_to_text"):
        matrices[direction, "contrastive"] = contrastive
        if f"reranked_{direction}" in arrays:
            matrices[direction, "reranked"] = arrays[f"reranked_{direction}"]
    shape = (len(text_audio_ids), len(audio_ids))
    for (_, how), matrix in matrices.items():
        if matrix.shape != shape:
            raise ScoringError(
                f"{path} {how}: expected (texts, audios) {shape}, found {matrix.shape}"
            )
    if "texts" in arrays:
        texts = strings(arrays["texts"])
    else:  # another system's: its texts stand in the order of the clip's references
        left = {clip: iter(found) for clip, found in references.items()}
        texts = [next(left[clip]) for clip in text_audio_ids]
    owner = np.array([number[i] for i in text_audio_ids], dtype=np.int64)
    return Ranking(path, audio_ids, owner, texts, matrices)


def _check(
    path: Path,
    data_dir: Path,
    references: dict[str, list[str]],
    audio_ids: list[str],
    text_audio_ids: list[str],
) -> None:
    if len(set(audio_ids)) != len(audio_ids):
        twice = [i for i, n in Counter(audio_ids).items() if n > 1]
        raise ScoringError(f"{path}: expected each audio id once, {twice[0]!r} repeats")
    check_ids(references, audio_ids, data_dir, f"{path} audio_ids")
    check_ids(references, text_audio_ids, data_dir, f"{path} text_audio_ids")
    counts = Counter(text_audio_ids)
    wrong = [i for i, texts in references.items() if counts[i] != len(texts)]
    if wrong:
        raise ScoringError(
            f"{path}: expected {sum(map(len, references.values()))} texts, as many for "
            f"each clip as it has references, found {len(text_audio_ids)}: "
            f"{len(wrong)} clips differ (e.g. {wrong[0]!r}: expected "
            f"{len(references[wrong[0]])}, found {counts[wrong[0]]})"
        )


def _similarity(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """(M, N) similarity: as given, or cosine of the embeddings."""
    for name in ("contrastive", "similarity"):
        if name in arrays:
            return arrays[name]
    audio, text = (unit_length(arrays[name], name) for name in ("audio", "text"))
    if audio.shape[1] != text.shape[1]:
        raise ScoringError(
            f"expected embeddings of one width, found audio {audio.shape} and text "
            f"{text.shape}"
        )
    similarity = np.empty((len(text), len(audio)), dtype=np.float32)
    step = max(1, CELLS_PER_CHUNK // len(audio))
    for start in range(0, len(text), step):
        similarity[start : start + step] = text[start : start + step] @ audio.T
    return similarity


def _examples(
    found: Ranking, matrix: np.ndarray, ranks: np.ndarray
) -> list[dict[str, Any]]:
    """Queries spread from the best to the worst rank, with their first three audios."""
    order = np.argsort(ranks, kind="stable")
    return [
        {
            "query": found.texts[i],
            "audio": found.audio_ids[found.owner[i]],
            "rank": int(ranks[i]) + 1,
            "first": [
                {"audio": found.audio_ids[j], "score": float(matrix[i, j])}
                for j in np.argsort(-matrix[i], kind="stable")[:3]
            ],
        }
        for i in order[spread(len(order), EXAMPLES)].tolist()
    ]
