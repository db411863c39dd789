"""Moment retrieval: when in a recording a text is heard, scored by overlap in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from espnet2_slit.scoring.metrics.bootstrap import Score, grouped_mean_items

RECALL_IOU = (0.5, 0.7)
MAP_IOU = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
MAX_PREDICTED = 10  # of each query; what comes later does not count


@dataclass(frozen=True)
class MomentScores:
    """Scores of one set of queries.

    Attributes:
        scores: recall_at_1_iou_0.5, recall_at_1_iou_0.7, map_iou_0.5, map_iou_0.75 and
            map_iou_mean, the mean over IoU 0.5, 0.55, ... 0.95.
        clips: (U,) ids of the resampling units.
    """

    scores: dict[str, Score]
    clips: list[str]


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of moments.

    Args:
        first: (P, 2) start and end, seconds.
        second: (G, 2).

    Returns:
        (P, G), 0 to 1.
    """
    start = np.maximum(first[:, None, 0], second[None, :, 0])
    end = np.minimum(first[:, None, 1], second[None, :, 1])
    shared = np.maximum(end - start, 0)
    lengths = np.diff(first, axis=1) + np.diff(second, axis=1).T
    union = lengths - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def average_precision(iou: np.ndarray, threshold: float) -> float:
    """Average precision of one query.

    Args:
        iou: (P, G) of its predictions, best first, with its right moments.
        threshold: IoU from which a prediction is right; of several for one moment only
            the first is.

    Returns:
        Area under the precision envelope over recall, as in detection.
    """
    free = np.ones(iou.shape[1], dtype=bool)
    right = np.zeros(len(iou), dtype=bool)
    for row, overlaps in enumerate(iou):
        candidates = np.where(free, overlaps, -1.0)
        best = int(candidates.argmax())
        if candidates[best] >= threshold:
            right[row], free[best] = True, False
    if not right.any():
        return 0.0
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[right].sum() / iou.shape[1])


def score_moments(
    predicted: Sequence[np.ndarray], right: Sequence[np.ndarray], clips: Sequence[str]
) -> MomentScores:
    """Recall of the first moment, and mean average precision of the first ten.

    Args:
        predicted: for each of M queries (P, 2) start and end in seconds, best first;
            P may be 0.
        right: for each query (G, 2), G at least 1.
        clips: M clip ids; queries about one clip are resampled together.

    Returns:
        MomentScores.

    Raises:
        ValueError: a query without a right moment, or a moment that ends before it
            begins.

    Source: the measures of QVHighlights (Lei 2021), which DCASE 2026 takes for audio.
    """
    for what, moments in (("predicted", predicted), ("right", right)):
        bad = [i for i, m in enumerate(moments) if len(m) and (m[:, 1] < m[:, 0]).any()]
        if bad:
            raise ValueError(
                f"expected {what} moments that end after they begin, found "
                f"{moments[bad[0]].tolist()} of query {bad[0]}"
            )
    empty = [i for i, moments in enumerate(right) if not len(moments)]
    if empty:
        raise ValueError(
            f"expected a right moment for each query, found {len(empty)} queries "
            f"without, first number {empty[0]}"
        )
    overlaps = [
        overlap(p[:MAX_PREDICTED].reshape(-1, 2), r)
        for p, r in zip(predicted, right, strict=True)
    ]
    names, groups = np.unique(list(clips), return_inverse=True)
    first = np.array([iou[0].max() if len(iou) else 0.0 for iou in overlaps])
    values = {f"recall_at_1_iou_{t}": (first >= t).astype(float) for t in RECALL_IOU}
    precision = np.array(
        [[average_precision(iou, t) for t in MAP_IOU] for iou in overlaps]
    )
    values["map_iou_0.5"] = precision[:, MAP_IOU.index(0.5)]
    values["map_iou_0.75"] = precision[:, MAP_IOU.index(0.75)]
    values["map_iou_mean"] = precision.mean(axis=1)
    scores: dict[str, Score] = {
        name: grouped_mean_items(value, groups, len(names))
        for name, value in values.items()
    }
    return MomentScores(scores, names.tolist())
