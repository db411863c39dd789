#!/usr/bin/env python3
"""One table of several systems' scores: what does each training stage give?

ablation_table.py --output exp/ablation.md "whole system=exp/mini_instruction" ...

Several folders of one system, joined by commas (trainings with other seeds), make
a cell with mean and range.
"""

import argparse
import json
import sys
from pathlib import Path

from espnet2_slit.common.files import write_text
from espnet2_slit.scoring.metrics.score_table import show

# heading, key of the score (without the set)
COLUMNS = (
    ("CIDEr-D", "caption/cider_d"),
    ("text to audio R@10 %", "retrieval/text_to_audio/contrastive/recall_at_10"),
    ("audio to text R@10 %", "retrieval/audio_to_text/contrastive/recall_at_10"),
    ("answers right %", "question_answering/free/all_rows/exact_match"),
    ("labels right %, similarity", "classification/similarity/accuracy"),
    ("labels right %, LM", "classification/language_model_mean/accuracy"),
)


def read_scores(experiment):
    """{set/task/...: row} of the one folder in an experiment that has scores."""
    found = sorted(Path(experiment).glob("decode_*/scores.json"))
    found += Path(experiment).glob("scores/scores.json")  # of a baseline
    if len(found) != 1:
        raise SystemExit(
            f"{experiment}: expected one decode_*/scores.json, found {len(found)}. Run"
            " stages decode and score, or remove those that are not meant."
        )
    rows = json.loads(found[0].read_text(encoding="utf-8"))["scores"]
    return {row["key"]: row for row in rows}


def cell(metric, values):
    """A score, or mean and range of several; values: None where there is none."""
    values = [value for value in values if value is not None]
    if len(values) < 2:
        return show(metric, *values or [None])
    mean, low, high = sum(values) / len(values), min(values), max(values)
    return f"{show(metric, mean)} [{show(metric, low)}, {show(metric, high)}]"


def table(systems):
    """Lines of Markdown: a row per test set and score, a column per system.

    Args:
        systems: {name: experiment folders, one for each seed}.
    """
    scores = [[read_scores(one) for one in folders] for folders in systems.values()]
    sets = {key.partition("/")[0] for runs in scores for run in runs for key in run}
    lines = [
        "| test set | score | " + " | ".join(systems) + " | chance |",
        "|---|---|" + "---:|" * (len(systems) + 1),
    ]
    for name in sorted(sets):
        for heading, key in COLUMNS:
            metric = key.rpartition("/")[2]
            rows = [[run.get(f"{name}/{key}", {}) for run in runs] for runs in scores]
            cells = [cell(metric, [row.get("value") for row in s]) for s in rows]
            if set(cells) == {"–"}:
                continue
            chances = [row.get("chance") for runs in rows for row in runs]
            cells.append(cell(metric, [c for c in chances if c is not None][:1]))
            lines.append(f"| {name} | {heading} | {' | '.join(cells)} |")
    lines += ["", "– : the system lacks the part that this score needs."]
    if any(len(folders) > 1 for folders in systems.values()):
        lines.append("Mean [lowest, highest] of trainings with other seeds.")
    return lines


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("systems", nargs="+", metavar="NAME=EXPERIMENT[,...]")
    args = parser.parse_args()
    named = (one.split("=", 1) for one in args.systems)
    systems = {name: folders.split(",") for name, folders in named}
    text = "\n".join(table(systems)) + "\n"
    write_text(args.output, text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
