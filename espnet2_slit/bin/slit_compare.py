#!/usr/bin/env python3
"""Paired bootstrap comparison of two scored systems on the items they share."""

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from espnet2_slit.scoring.metrics.bootstrap import compare
from espnet2_slit.scoring.metrics.score_table import (
    LOWER_IS_BETTER,
    read_items,
    read_scores,
    show,
    write_atomically,
)


def get_parser():
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Is A better than B? Paired bootstrap over each score's items",
        allow_abbrev=False,
    )
    for name in ("a", "b"):
        parser.add_argument(
            name, type=Path, help="Directory with scores.json and items.npz"
        )
    parser.add_argument(
        "--metrics", default="", help="Only these, separated by blanks; default: all"
    )
    parser.add_argument("--resamples", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="Write the comparison as JSON")
    return parser


def compare_systems(first, second, metrics=(), resamples=10000, seed=0):
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
        (a, ids_a), (b, ids_b) = items[0][key], items[1][key]
        if set(ids_a) != set(ids_b) or len(ids_a) != len(ids_b):
            only = sorted(map(str, set(ids_a) ^ set(ids_b)))
            raise ValueError(
                f"{key}: expected the same items, found {len(ids_a)} and {len(ids_b)}, "
                f"{len(only)} in only one (e.g. {only[:3]}): score both on one set"
            )
        if not np.array_equal(ids_a, ids_b):
            b = _reordered(b, ids_b, ids_a)
        result = compare(a, b, resamples, seed)
        lower = metric_of[key] in LOWER_IS_BETTER
        better = ""
        if result.low > 0:
            better = "B" if lower else "A"
        elif result.high < 0:
            better = "A" if lower else "B"
        row = {"key": key, "metric": metric_of[key], **asdict(result)}
        rows.append(row | {"better": better})
    return rows, alone


def _reordered(items, found, wanted):
    """Items with their units in the order of `wanted`."""
    position = {name: i for i, name in enumerate(wanted)}
    stats = items.stats.copy()
    if items.aggregate == "median":  # the second column numbers the unit
        new = np.array([position[name] for name in found])
        stats[:, 1] = new[stats[:, 1].astype(np.int64)]
    else:
        stats = stats[np.argsort([position[name] for name in found])]
    return type(items)(items.aggregate, stats)


def main(cmd=None):
    """Entry point."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level="INFO", format="%(levelname)s: %(message)s")
    try:
        rows, alone = compare_systems(
            args.a, args.b, args.metrics.split(), args.resamples, args.seed
        )
    except (ValueError, OSError) as error:
        logging.error("%s", error)
        return 1
    print(f"A = {args.a}\nB = {args.b}\n")
    print("|score|units|A|B|A - B|95 % interval|p|better|\n" + "|---" * 8 + "|")
    for row in rows:
        shown = [
            show(row["metric"], row[f])
            for f in ("first", "second", "difference", "low", "high")
        ]
        print(
            f"|{row['key']}|{row['n']}|{shown[0]}|{shown[1]}|{shown[2]}|"
            f"[{shown[3]}, {shown[4]}]|{row['p_value']:.4f}|{row['better']}|"
        )
    if alone:
        shown = ", ".join(alone[:3]) + (", ..." if len(alone) > 3 else "")
        print(f"\nScores that only one of the two has: {len(alone)} ({shown})")
    if args.output:
        content = {"schema": 1, "a": str(args.a), "b": str(args.b)}
        content |= {"resamples": args.resamples, "seed": args.seed}
        content |= {"comparisons": rows, "only_one_has": alone}
        write_atomically(args.output, json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
