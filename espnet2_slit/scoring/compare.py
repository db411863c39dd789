"""Paired comparison of two scored systems on the items they share."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_slit.scoring.metrics.bootstrap import Comparison, Items, compare
from espnet2_slit.scoring.metrics.score_table import (
    LOWER_IS_BETTER,
    read_items,
    read_scores,
)

# A score's statistics and the (U,) ids of its units, as `ScoreTable.items` has them.
NamedItems = tuple[Items, np.ndarray]


def compare_items(
    key: str,
    first: NamedItems,
    second: NamedItems,
    resamples: int = 10000,
    seed: int = 0,
) -> Comparison:
    """Paired bootstrap of one score of two systems, units paired by name.

    Args:
        key: of the score, for the message.
        first: system A's.
        second: system B's.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Comparison of A with B.

    Raises:
        ValueError: the units differ.
    """
    (a, ids_a), (b, ids_b) = first, second
    if set(ids_a) != set(ids_b) or len(ids_a) != len(ids_b):
        only = sorted(map(str, set(ids_a) ^ set(ids_b)))
        raise ValueError(
            f"{key}: expected the same items, found {len(ids_a)} and {len(ids_b)}, "
            f"{len(only)} in only one (e.g. {only[:3]}): score both on one set"
        )
    if not np.array_equal(ids_a, ids_b):
        b = _reordered(b, ids_b, ids_a)
    return compare(a, b, resamples, seed)


def compare_systems(
    first: Path,
    second: Path,
    metrics: Collection[str] = (),
    resamples: int = 10000,
    seed: int = 0,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare every score that both systems have.

    Args:
        first: directory of system A.
        second: directory of system B.
        metrics: names to compare; empty: all.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        (rows, keys that only one of the two has). A row is key, metric, the fields of
        Comparison, and `better`: "A", "B" or "" where the interval holds 0.

    Raises:
        ValueError: nothing in common, or a score over different items.
    """
    tables = [read_scores(Path(d) / "scores.json")[0] for d in (first, second)]
    items = [read_items(Path(d) / "items.npz") for d in (first, second)]
    metric_of = {row.key: row.metric for table in tables for row in table.rows}
    shared = [k for k in items[0] if k in items[1]]
    alone = sorted(set(items[0]) ^ set(items[1]))
    shared, alone = (
        [k for k in keys if not metrics or metric_of[k] in metrics]
        for keys in (shared, alone)
    )
    if not shared:
        raise ValueError(
            f"expected scores that both have, found none: {first} has "
            f"{sorted(items[0])[:5]}, {second} has {sorted(items[1])[:5]}"
        )
    rows = []
    for key in shared:
        result = compare_items(key, items[0][key], items[1][key], resamples, seed)
        lower = metric_of[key] in LOWER_IS_BETTER
        better = ""
        if result.low > 0:
            better = "B" if lower else "A"
        elif result.high < 0:
            better = "A" if lower else "B"
        row = {"key": key, "metric": metric_of[key], **asdict(result)}
        rows.append(row | {"better": better})
    return rows, alone


def _reordered(items: Items, found: np.ndarray, wanted: np.ndarray) -> Items:
    """Items with their units in the order of `wanted`."""
    position = {name: i for i, name in enumerate(wanted)}
    stats = items.stats.copy()
    if items.aggregate == "median":  # the second column numbers the unit
        new = np.array([position[name] for name in found])
        stats[:, 1] = new[stats[:, 1].astype(np.int64)]
    else:
        stats = stats[np.argsort([position[name] for name in found])]
    return type(items)(items.aggregate, stats)
