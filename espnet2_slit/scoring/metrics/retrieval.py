"""Retrieval scores of a text x audio matrix, both directions, from exact ranks.

Ties never help: among equal scores the wrong items are taken to come first, so a
system that gives everything the same score retrieves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from espnet2_slit.scoring.metrics.bootstrap import (
    Score,
    grouped_mean_items,
    median_items,
)

CUTOFFS = (1, 5, 10)
MAP_CUTOFF = 10
# Comparisons held in memory at once: 16M booleans.
CELLS_PER_CHUNK = 16_000_000


@dataclass(frozen=True)
class RetrievalScores:
    """Scores of one direction.

    Attributes:
        scores: metric name -> Items.
        chance: metric name -> its expectation under a random order.
        queries: number of queries.
        gallery: number of items searched.
        ranks: (queries, P) 0-based ranks of the relevant items, ascending, padded with
            `gallery`.
    """

    scores: dict[str, Score]
    chance: dict[str, float]
    queries: int
    gallery: int
    ranks: np.ndarray


def check_similarity(similarity: np.ndarray, owner: np.ndarray) -> None:
    """Refuse what cannot be ranked.

    Args:
        similarity: (M, N), text by audio, higher is better; -inf is a legal last place.
        owner: (M,) int, the audio each text describes.

    Raises:
        ValueError: the message gives shapes, or counts of NaN or of audio without text.
    """
    if similarity.ndim != 2 or owner.shape != similarity.shape[:1]:
        raise ValueError(
            "expected similarity (texts, audios) and one owner a text, found "
            f"{similarity.shape} and {owner.shape}"
        )
    if 0 in similarity.shape:
        raise ValueError(f"expected texts and audios, found {similarity.shape}")
    nan = sum(int(np.isnan(row).sum()) for row in similarity)
    if nan:
        raise ValueError(
            f"expected numbers, found {nan} NaN among {similarity.size} similarities"
        )
    described = np.bincount(owner, minlength=similarity.shape[1])
    if len(described) > similarity.shape[1] or (described == 0).any():
        raise ValueError(
            f"expected a text for each of {similarity.shape[1]} audios, found "
            f"{int((described > 0).sum())} audios described"
        )


def relevant_ranks(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """0-based ranks of the relevant items of each query.

    Args:
        scores: (Q, G) score of each gallery item.
        relevant: (Q, P) int, gallery positions; -1 pads.

    Returns:
        (Q, P) int64 ascending; padding ranks are G.
    """
    queries, gallery = scores.shape
    width = relevant.shape[1]
    ranks = np.full((queries, width), gallery, dtype=np.int64)
    step = max(1, CELLS_PER_CHUNK // gallery)
    for start in range(0, queries, step):
        part = slice(start, start + step)
        rows, wanted = scores[part], relevant[part]
        mine = np.take_along_axis(rows, np.maximum(wanted, 0), axis=1)
        # Best relevant item first; padding last.
        order = np.argsort(np.where(wanted >= 0, -mine, np.inf), axis=1, kind="stable")
        mine = np.take_along_axis(mine, order, axis=1)
        valid = np.take_along_axis(wanted, order, axis=1) >= 0
        for i in range(width):
            threshold = mine[:, i : i + 1]
            at_least = (rows >= threshold).sum(axis=1)
            relevant_at_least = ((mine >= threshold) & valid).sum(axis=1)
            rank = at_least - relevant_at_least + i
            ranks[part, i] = np.where(valid[:, i], rank, gallery)
    return ranks


def text_to_audio(similarity: np.ndarray, owner: np.ndarray) -> RetrievalScores:
    """Every text searches the audios; its own audio is the one relevant item.

    Args:
        similarity: (M, N), text by audio.
        owner: (M,) int audio of each text.

    Returns:
        RetrievalScores: recall_at_1/5/10, median_rank (1 is best), map_at_10 (with one
        relevant item: the reciprocal rank, 0 beyond 10). Resampled by audio.

    Raises:
        ValueError: see `check_similarity`.
    """
    check_similarity(similarity, owner)
    return ranked(similarity, owner[:, None], groups=owner)


def audio_to_text(similarity: np.ndarray, owner: np.ndarray) -> RetrievalScores:
    """Every audio searches the texts; its own texts are the relevant items.

    Args:
        similarity: (M, N), text by audio.
        owner: (M,) int audio of each text.

    Returns:
        RetrievalScores: recall_at_k: any of the audio's texts among the first k;
        dcase_recall_at_k: the share of its texts among the first k; median_rank of its
        best text; map_at_10: precision at each hit in the first 10, summed, divided by
        min(number of its texts, 10).

    Raises:
        ValueError: see `check_similarity`.
    """
    check_similarity(similarity, owner)
    relevant = padded(owner, np.arange(len(owner)), similarity.shape[1])
    return ranked(np.ascontiguousarray(similarity.T), relevant, shares=True)


def padded(query: np.ndarray, item: np.ndarray, queries: int) -> np.ndarray:
    """Pairs of query and relevant item as rows.

    Args:
        query: (K,) int below `queries`.
        item: (K,) int, no pair twice.
        queries: Q.

    Returns:
        (Q, P) int, the items of each query, -1 pads.
    """
    number = np.bincount(query, minlength=queries)
    relevant = np.full((queries, number.max()), -1, dtype=np.int64)
    order = np.argsort(query, kind="stable")
    column = np.arange(len(query)) - np.repeat(np.cumsum(number) - number, number)
    relevant[query[order], column] = item[order]
    return relevant


def ranked(
    scores: np.ndarray,
    relevant: np.ndarray,
    groups: np.ndarray | None = None,
    shares: bool = False,
    map_cutoffs: Sequence[int] = (MAP_CUTOFF,),
) -> RetrievalScores:
    """Scores of queries with one or several relevant items each.

    Args:
        scores: (Q, G) score of each gallery item, higher is better.
        relevant: (Q, P) int, gallery positions, at least one a query; -1 pads.
        groups: (Q,) int, queries of one group are resampled together; None: each alone.
        shares: also dcase_recall_at_k, the share of the relevant items in the first k.
        map_cutoffs: k of map_at_k: precision at each hit in the first k, summed,
            divided by min(relevant items, k).

    Returns:
        RetrievalScores: recall_at_k (any relevant item among the first k), median_rank
        of the best one, map_at_k.

    Raises:
        ValueError: NaN, or a query without a relevant item.
    """
    if np.isnan(scores).any():
        raise ValueError(
            f"expected numbers, found {int(np.isnan(scores).sum())} NaN among "
            f"{scores.size} similarities"
        )
    number = (relevant >= 0).sum(axis=1)
    if not number.all():
        raise ValueError(
            f"expected a relevant item for each of {len(number)} queries, found "
            f"{int((number == 0).sum())} without"
        )
    ranks = relevant_ranks(scores, relevant)
    gallery = scores.shape[1]
    groups = np.arange(len(ranks)) if groups is None else groups
    num_groups = int(groups.max()) + 1
    best = ranks[:, 0]
    found: dict[str, Score] = {}
    chance = {}

    def add(name: str, values: np.ndarray, expected: float) -> None:
        found[name] = grouped_mean_items(values, groups, num_groups)
        chance[name] = expected

    for k in CUTOFFS:
        expected = float(np.mean(_any_by_chance(number, gallery, k)))
        add(f"recall_at_{k}", (best < k).astype(float), expected)
    for k in CUTOFFS if shares else ():
        share = (ranks < min(k, gallery)).sum(axis=1) / number  # padding: `gallery`
        add(f"dcase_recall_at_{k}", share, min(1.0, k / gallery))
    found["median_rank"] = median_items(best + 1.0, groups)
    chance["median_rank"] = _median_by_chance(number, gallery)
    hits = np.arange(1, ranks.shape[1] + 1) / (ranks + 1)
    for k in map_cutoffs:
        precision = np.where(ranks < min(k, gallery), hits, 0.0).sum(axis=1)
        expected = float(np.mean(_map_by_chance(number, gallery, k)))
        add(f"map_at_{k}", precision / np.minimum(number, k), expected)
    return RetrievalScores(found, chance, len(ranks), gallery, ranks)


def _any_by_chance(number: np.ndarray, gallery: int, k: int) -> np.ndarray:
    """P(one of `number` relevant items among the first k), (Q,)."""
    missing = np.ones(len(number))
    for i in range(min(k, gallery)):
        missing *= np.maximum(gallery - number - i, 0) / (gallery - i)
    return 1 - missing


def _median_by_chance(number: np.ndarray, gallery: int) -> float:
    """Median of the best rank under a random order, 1-based."""
    values, counts = np.unique(number, return_counts=True)
    missing = np.ones(len(values))
    for rank in range(1, gallery + 1):
        missing *= np.maximum(gallery - values - rank + 1, 0) / (gallery - rank + 1)
        if np.average(1 - missing, weights=counts) >= 0.5:
            return float(rank)
    return float(gallery)


def _map_by_chance(number: np.ndarray, gallery: int, k: int) -> np.ndarray:
    """Expected map_at_k under a random order, (Q,)."""
    total = np.zeros(len(number))
    for rank in range(1, min(k, gallery) + 1):
        earlier = (rank - 1) * (number - 1) / max(1, gallery - 1)
        total += number / gallery * (1 + earlier) / rank
    return total / np.minimum(number, k)
