#!/usr/bin/env python3
"""Plot values of train.log, several runs in one picture: which curve leaves its start?

Usage: tools/plot_curves.py --out curves.svg NAME=train.log [NAME=train.log ...]
       [--values loss_contrastive loss_matching loss_generation]
"""

import argparse
import sys
from pathlib import Path

from espnet2_slit.scoring.train_log import read_steps

VALUES = ("loss_contrastive", "loss_matching", "loss_generation")


def plot(runs, values, out):
    """Draw one panel a value, one line a run.

    Args:
        runs: {name: curves of `read_steps`}.
        values: which ones.
        out: picture; its suffix says of what kind.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(values), 2.8), layout="constrained")
    panels = figure.subplots(1, len(values), squeeze=False)[0]
    for panel, value in zip(panels, values, strict=True):
        for name, curves in runs.items():
            if value in curves:
                panel.plot(*zip(*curves[value], strict=True), label=name, marker=".")
        panel.set_title(value, fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    figure.supxlabel("training step, as far as lines were printed", fontsize=10)
    figure.savefig(out)


def main(cmd=None):
    """Entry point: 0 done, 1 a log without values."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("logs", nargs="+", metavar="NAME=LOG")
    parser.add_argument("--values", nargs="+", default=VALUES)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(cmd)
    try:
        runs = {}
        for word in args.logs:
            name, equals, path = word.partition("=")
            if not equals:
                parser.error(f"expected NAME=LOG, found {word!r}")
            runs[name] = read_steps(path)
        plot(runs, args.values, args.out)
    except (OSError, ValueError) as error:
        print(f"plot_curves: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
