"""Retrieval scores of a text x audio matrix, both directions, from exact ranks.

Ties never help: among equal scores the wrong items are taken to come first, so a
system that gives everything the same score retrieves nothing.
"""

from dataclasses import dataclass

import numpy as np

from espnet2_slit.scoring.metrics.bootstrap import grouped_mean_items, median_items

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

    scores: dict
    chance: dict
    queries: int
    gallery: int
    ranks: np.ndarray


def check_similarity(similarity, owner):
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


def relevant_ranks(scores, relevant):
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


def text_to_audio(similarity, owner):
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
    ranks = relevant_ranks(similarity, owner[:, None])
    return _scores(ranks, owner, similarity.shape[1], np.ones(len(owner), int))


def audio_to_text(similarity, owner):
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
    audios = similarity.shape[1]
    number = np.bincount(owner, minlength=audios)
    relevant = np.full((audios, number.max()), -1, dtype=np.int64)
    order = np.argsort(owner, kind="stable")
    column = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
    relevant[owner[order], column] = order
    ranks = relevant_ranks(np.ascontiguousarray(similarity.T), relevant)
    return _scores(ranks, np.arange(audios), len(owner), number, fractions=True)


def _scores(ranks, groups, gallery, number, fractions=False):
    """Metrics of (Q, P) ranks; `number` (Q,) relevant items of each query."""
    queries = len(ranks)
    num_groups = int(groups.max()) + 1
    best = ranks[:, 0]

    def mean(values):
        return grouped_mean_items(values, groups, num_groups)

    scores, chance = {}, {}
    for k in CUTOFFS:
        scores[f"recall_at_{k}"] = mean((best < k).astype(float))
        chance[f"recall_at_{k}"] = float(np.mean(_any_by_chance(number, gallery, k)))
    if fractions:
        for k in CUTOFFS:
            name = f"dcase_recall_at_{k}"
            found = ranks < min(k, gallery)  # padding has the rank `gallery`
            scores[name] = mean(found.sum(axis=1) / number)
            chance[name] = min(1.0, k / gallery)
    scores["median_rank"] = median_items(best + 1.0, groups)
    chance["median_rank"] = _median_by_chance(number, gallery)
    hits = np.arange(1, ranks.shape[1] + 1) / (ranks + 1)
    found = ranks < min(MAP_CUTOFF, gallery)
    precision = np.where(found, hits, 0.0).sum(axis=1)
    scores["map_at_10"] = mean(precision / np.minimum(number, MAP_CUTOFF))
    chance["map_at_10"] = float(np.mean(_map_by_chance(number, gallery)))
    return RetrievalScores(scores, chance, queries, gallery, ranks)


def _any_by_chance(number, gallery, k):
    """P(one of `number` relevant items among the first k), (Q,)."""
    missing = np.ones(len(number))
    for i in range(min(k, gallery)):
        missing *= np.maximum(gallery - number - i, 0) / (gallery - i)
    return 1 - missing


def _median_by_chance(number, gallery):
    """Median of the best rank under a random order, 1-based."""
    values, counts = np.unique(number, return_counts=True)
    missing = np.ones(len(values))
    for rank in range(1, gallery + 1):
        missing *= np.maximum(gallery - values - rank + 1, 0) / (gallery - rank + 1)
        if np.average(1 - missing, weights=counts) >= 0.5:
            return float(rank)
    return float(gallery)


def _map_by_chance(number, gallery):
    """Expected map_at_10 under a random order, (Q,)."""
    total = np.zeros(len(number))
    for rank in range(1, min(MAP_CUTOFF, gallery) + 1):
        earlier = (rank - 1) * (number - 1) / max(1, gallery - 1)
        total += number / gallery * (1 + earlier) / rank
    return total / np.minimum(number, MAP_CUTOFF)
