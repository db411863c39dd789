"""Arithmetic of rankings: cosines, the best of each row, re-ranked rows.

NumPy only; models are in `retrieval`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

# Pairs of clip and text that the matching head sees at once.
PAIRS_PER_BATCH = 256


def similarity(audio: np.ndarray, text: np.ndarray, block: int = 256) -> np.ndarray:
    """Cosine of each text with the nearest query of each clip.

    Args:
        audio: (N, Q, E), unit length.
        text: (M, E), unit length.
        block: clips at once, which bounds memory to M x block x Q values.

    Returns:
        (M, N) float32.
    """
    count, queries, width = audio.shape
    scores = np.empty((len(text), count), np.float32)
    for start in range(0, count, block):
        some = audio[start : start + block]
        product = text @ some.reshape(-1, width).T  # one GEMM: (M, block * Q)
        scores[:, start : start + block] = product.reshape(
            len(text), len(some), queries
        ).max(axis=2)
    return scores


def top_indices(scores: np.ndarray, k: int) -> np.ndarray:
    """(rows, k) columns of the k best of each row, best first."""
    k = min(k, scores.shape[1])
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)


def wanted_pairs(best: dict[str, np.ndarray], clips: int) -> list[np.ndarray]:
    """For each clip, the texts that either direction wants it compared with.

    Args:
        best: {"text_to_audio": (M, k) clips, "audio_to_text": (N, k) texts}, or one.
        clips: N.

    Returns:
        N arrays of indices of texts.
    """
    found = [np.empty((0, 2), np.int64)]
    for direction, table in best.items():
        rows = np.repeat(np.arange(len(table)), table.shape[1])
        pair = (
            [table.ravel(), rows]
            if direction == "text_to_audio"
            else [rows, table.ravel()]
        )
        found.append(np.stack(pair, axis=1))  # (clip, text)
    pairs = np.unique(np.concatenate(found), axis=0)
    return np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, clips)))


def pair_batches(
    wanted: Sequence[np.ndarray | Sequence[int]], size: int = PAIRS_PER_BATCH
) -> Iterator[np.ndarray]:
    """Pairs in batches that the Q-Former serves without copying keys and values.

    That is, one clip with many texts, or several clips with equally many.

    Args:
        wanted: for each clip of a batch the indices of its texts.
        size: pairs in a batch.

    Yields:
        (n, 3) int64: clip, place in its list, text.
    """
    lists = [
        np.stack([np.full(len(t), row), np.arange(len(t)), t], axis=1)
        for row, t in enumerate(np.asarray(t, dtype=np.int64) for t in wanted)
    ]
    while lists:
        first = lists.pop(0)
        if len(first) > size:
            yield first[:size]
            lists.insert(0, first[size:])
            continue
        group = [first]
        while (
            lists
            and len(lists[0]) == len(first)
            and (len(group) + 1) * len(first) <= size
        ):
            group.append(lists.pop(0))
        yield np.concatenate(group)


def rerank_rows(
    scores: np.ndarray, match: np.ndarray, best: np.ndarray, scale: float = 1.0
) -> np.ndarray:
    """Contrastive scores, re-ranked at the top of each row.

    Args:
        scores: (rows, columns) cosines.
        match: matching logits where known.
        best: (rows, k) columns that were looked at.
        scale: of the cosines.

    Returns:
        (rows, columns): scaled cosine + logit at `best`; elsewhere the scaled cosine,
        moved below.
    """
    scores = scores * scale
    top = np.take_along_axis(scores, best, 1) + np.take_along_axis(match, best, 1)
    lowest, highest = top.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    ranked = scores - (highest - lowest) - 1.0
    np.put_along_axis(ranked, best, top, axis=1)
    return ranked.astype(np.float32)
