"""Per-item statistics of a score, its percentile interval and paired comparisons.

A score is a function of sums over resampling units (clips, questions), so a bootstrap
replicate is one matrix product of resampling counts with the units' statistics. What a
unit is and which function follows the sum is the business of the other modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

# Resampling counts held in memory at once: 4M float64 = 32 MB.
COUNTS_PER_CHUNK = 4_000_000
METEOR_MODULES = 4  # exact, stem, synonym, paraphrase


@dataclass(frozen=True)
class Items:
    """A score with the statistics it is made of.

    Attributes:
        aggregate: which function of the statistics gives the score, a key of
            `AGGREGATES`.
        stats: (U, K) float64, one row per resampling unit; what the columns mean is
            said by the aggregate.
    """

    aggregate: str
    stats: np.ndarray

    @property
    def value(self) -> float:
        """The score itself: every unit counted once."""
        ones = np.ones((1, self.num_units))
        return float(AGGREGATES[self.aggregate](self.stats, ones)[0])

    @property
    def num_units(self) -> int:
        """Number of resampling units U."""
        if self.aggregate == "median":
            return int(self.stats[:, 1].max()) + 1 if len(self.stats) else 0
        return len(self.stats)


@dataclass(frozen=True)
class NotComputed:
    """A score that cannot be had here, and what it would take."""

    needs: str


# What a metric gives: with an interval, not at all, or a number without interval.
Score = Items | NotComputed | float


def mean_items(values: ArrayLike, weights: ArrayLike | None = None) -> Items:
    """Items whose score is the (weighted) mean.

    Args:
        values: (U,) value of each unit (with `weights`: sum over the unit's members).
        weights: (U,) number of members of each unit; None: one each.

    Returns:
        Items with columns value, weight.
    """
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, float)
    return Items("mean", np.stack([values, weights], axis=1))


def grouped_mean_items(
    values: np.ndarray, groups: np.ndarray, num_groups: int
) -> Items:
    """Mean over members, resampled by group: captions of one clip stay together.

    Args:
        values: (M,) one value per member.
        groups: (M,) int, group of each member, 0 <= group < num_groups.
        num_groups: U.

    Returns:
        Items with one row per group.
    """
    sums = np.bincount(groups, weights=values, minlength=num_groups)
    return mean_items(sums, np.bincount(groups, minlength=num_groups))


def median_items(values: np.ndarray, groups: np.ndarray) -> Items:
    """Items whose score is the median of the members, resampled by group.

    Args:
        values: (M,).
        groups: (M,) int group of each member.

    Returns:
        Items with columns value, group; one row per member.
    """
    return Items("median", np.stack([values, groups], axis=1).astype(np.float64))


# Each aggregate: (statistics, counts (R, U)) -> (R,). The counts say how often each
# unit is in the replicate.
Aggregate = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _mean(stats: np.ndarray, counts: np.ndarray) -> np.ndarray:
    sums = counts @ stats
    with np.errstate(invalid="ignore"):
        return sums[:, 0] / sums[:, 1]


def _median(stats: np.ndarray, counts: np.ndarray) -> np.ndarray:
    order = np.argsort(stats[:, 0], kind="stable")
    values = stats[order, 0]
    cumulative = np.cumsum(counts[:, stats[order, 1].astype(np.int64)], axis=1)
    total = cumulative[:, -1:]
    # As np.median: the mean of the two middle values when the number is even.
    lower = (cumulative < (total + 1) // 2).sum(axis=1)
    upper = (cumulative < total // 2 + 1).sum(axis=1)
    return (values[lower] + values[upper]) / 2


def _bleu(order: int) -> Aggregate:
    # Columns: matched n-grams of order 1..4, n-grams of the hypothesis of order 1..4,
    # length of the hypothesis, length of the closest reference. The two small numbers
    # are those of the COCO scorer; they matter when nothing matches.
    def bleu(stats: np.ndarray, counts: np.ndarray) -> np.ndarray:
        sums = counts @ stats
        precisions = (sums[:, :order] + 1e-15) / (sums[:, 4 : 4 + order] + 1e-9)
        value = np.exp(np.log(precisions).mean(axis=1))
        ratio = (sums[:, 8] + 1e-15) / (sums[:, 9] + 1e-9)
        return value * np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)

    return bleu


def meteor_items(stats: np.ndarray) -> Items:
    """Items of METEOR 1.5.

    Args:
        stats: (U, 23) in the order its `-stdio` mode prints: lengths of test and
            reference, function words of each, four numbers per matching module (test
            and reference content, test and reference function words), chunks, matched
            words of test and reference.

    Returns:
        Items; one chunk that covers both sentences counts as no chunk, as METEOR
        does when it adds sentences up.
    """
    stats = np.array(stats, dtype=np.float64)
    whole = (stats[:, 20] == 1) & (stats[:, [21, 22]] == stats[:, [0, 1]]).all(axis=1)
    stats[whole, 20] = 0
    return Items("meteor", stats)


def meteor_from_stats(sums: np.ndarray) -> np.ndarray:
    """METEOR 1.5 (English, default weights) of `meteor_items` statistics, (..., 23)."""
    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    weights = np.array([1.0, 0.6, 0.8, 0.6])
    test_length, reference_length, test_function, reference_function = (
        sums[..., i] for i in range(4)
    )
    modules = sums[..., 4:20].reshape(*sums.shape[:-1], METEOR_MODULES, 4)
    content, function = modules[..., :2], modules[..., 2:]
    matched = delta * content + (1 - delta) * function
    matched = (matched * weights[:, None]).sum(axis=-2)  # (..., 2) test, reference

    def length(total: np.ndarray, function_words: np.ndarray) -> np.ndarray:
        return delta * (total - function_words) + (1 - delta) * function_words

    with np.errstate(invalid="ignore", divide="ignore"):
        precision = matched[..., 0] / length(test_length, test_function)
        recall = matched[..., 1] / length(reference_length, reference_function)
        mean = 1 / ((1 - alpha) / precision + alpha / recall)
        chunks, test_matches, reference_matches = (sums[..., i] for i in (20, 21, 22))
        fragmentation = chunks / ((test_matches + reference_matches) / 2)
        score = mean * (1 - gamma * fragmentation**beta)
    return np.nan_to_num(score, nan=0.0)


AGGREGATES: dict[str, Aggregate] = {
    "mean": _mean,
    "median": _median,
    "bleu_1": _bleu(1),
    "bleu_2": _bleu(2),
    "bleu_3": _bleu(3),
    "bleu_4": _bleu(4),
    "meteor": lambda stats, counts: meteor_from_stats(counts @ stats),
}


def resampling_counts(
    num_units: int, resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Yield how often each unit is drawn, a chunk of replicates at a time.

    Args:
        num_units: U, number of units to draw from and number of draws.
        resamples: R in all.
        seed: the same seed and U give the same draws, which pairs two systems.

    Yields:
        (r, U) float64 counts whose rows sum to U.
    """
    generator = np.random.default_rng(seed)
    per_chunk = max(1, COUNTS_PER_CHUNK // max(1, num_units))
    for start in range(0, resamples, per_chunk):
        r = min(per_chunk, resamples - start)
        drawn = generator.integers(num_units, size=(r, num_units))
        drawn += np.arange(r)[:, None] * num_units
        counts = np.bincount(drawn.reshape(-1), minlength=r * num_units)
        yield counts.reshape(r, num_units).astype(np.float64)


def replicates(
    scores: Sequence[Items], resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Bootstrap replicates of several scores over the same units.

    Args:
        scores: list of Items, all with the same number of units.
        resamples: R.
        seed: of the draws.

    Returns:
        (R, len(scores)) float64.

    Raises:
        ValueError: the number of units differs between scores.
    """
    units = {score.num_units for score in scores}
    if len(units) != 1:
        raise ValueError(
            f"expected scores over one set of units, found {sorted(units)} units: "
            "resample scores of different sets separately"
        )
    chunks = [
        np.stack(
            [AGGREGATES[s.aggregate](s.stats, counts) for s in scores],
            axis=1,
        )
        for counts in resampling_counts(units.pop(), resamples, seed)
    ]
    return np.concatenate(chunks)


def intervals(
    scores: Sequence[Items], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> list[tuple[float | None, float | None]]:
    """Percentile bootstrap intervals.

    Args:
        scores: list of Items over the same units.
        resamples: number of replicates.
        seed: of the draws.
        level: coverage, e.g. 0.95.

    Returns:
        List of (low, high), one per score; (None, None) where fewer than two units
        leave nothing to resample.
    """
    if not scores:
        return []
    if scores[0].num_units < 2:
        return [(None, None)] * len(scores)
    drawn = replicates(scores, resamples, seed)
    tail = (1 - level) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


@dataclass(frozen=True)
class Comparison:
    """What a paired bootstrap says of two systems on one score."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    n: int


def compare(
    first: Items,
    second: Items,
    resamples: int = 10000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Paired bootstrap of `first` minus `second` on the same units.

    Args:
        first: Items of system A.
        second: Items of system B, the same units in the same order.
        resamples: number of replicates.
        seed: of the draws.
        level: coverage of the interval of the difference.

    Returns:
        Comparison; `p_value` is two-sided: twice the share of replicates on the other
        side of 0 (never below 2 / (resamples + 1), never above 1).

    Raises:
        ValueError: aggregate or number of units differ.
    """
    if first.aggregate != second.aggregate or first.num_units != second.num_units:
        raise ValueError(
            f"expected the same score over the same units, found {first.aggregate} "
            f"over {first.num_units} and {second.aggregate} over {second.num_units}"
        )
    differences = []
    for counts in resampling_counts(first.num_units, resamples, seed):
        aggregate = AGGREGATES[first.aggregate]
        differences.append(
            aggregate(first.stats, counts) - aggregate(second.stats, counts)
        )
    difference = np.concatenate(differences)
    tail = (1 - level) / 2
    low, high = np.nanquantile(difference, [tail, 1 - tail])
    below = (np.sum(difference <= 0) + 1) / (resamples + 1)
    above = (np.sum(difference >= 0) + 1) / (resamples + 1)
    return Comparison(
        first=first.value,
        second=second.value,
        difference=first.value - second.value,
        low=float(low),
        high=float(high),
        p_value=float(min(1.0, 2 * min(below, above))),
        n=first.num_units,
    )
