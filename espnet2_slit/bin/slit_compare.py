#!/usr/bin/env python3
"""Paired bootstrap comparison of two scored systems on the items they share."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet2_slit.common.files import write_json
from espnet2_slit.scoring.compare import compare_systems
from espnet2_slit.scoring.metrics.score_table import show


def get_parser() -> argparse.ArgumentParser:
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


def main(cmd: Sequence[str] | None = None) -> int:
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
        some = ", ".join(alone[:3]) + (", ..." if len(alone) > 3 else "")
        print(f"\nScores that only one of the two has: {len(alone)} ({some})")
    if args.output:
        content = {"schema": 1, "a": str(args.a), "b": str(args.b)}
        content |= {"resamples": args.resamples, "seed": args.seed}
        content |= {"comparisons": rows, "only_one_has": alone}
        write_json(args.output, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
