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

# heading, key of the score (without the set), factor
COLUMNS = (
    ("CIDEr-D", "caption/cider_d", 1),
    ("text to audio R@10 %", "retrieval/text_to_audio/contrastive/recall_at_10", 100),
    ("audio to text R@10 %", "retrieval/audio_to_text/contrastive/recall_at_10", 100),
    ("answers right %", "question_answering/free/all_rows/exact_match", 100),
    ("labels right %, similarity", "classification/similarity/accuracy", 100),
    ("labels right %, LM", "classification/language_model_mean/accuracy", 100),
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


def cell(values, factor):
    """A score, or mean and range of several; values: None where there is none."""
    values = [value * factor for value in values if value is not None]
    if not values:
        return "–"
    digits = 1 if factor > 1 else 3
    shown = f"{sum(values) / len(values):.{digits}f}"
    if len(values) > 1:
        shown += f" [{min(values):.{digits}f}, {max(values):.{digits}f}]"
    return shown


def table(systems):
    """Markdown: a row per test set and score, a column per system.

    Args:
        systems: {name: experiment folders, one for each seed}.

    Returns:
        Lines.
    """
    scores = {
        name: [read_scores(folder) for folder in folders]
        for name, folders in systems.items()
    }
    sets = {
        key.partition("/")[0] for runs in scores.values() for r in runs for key in r
    }
    lines = [
        "| test set | score | " + " | ".join(scores) + " | chance |",
        "|---|---|" + "---:|" * (len(scores) + 1),
    ]
    for name in sorted(sets):
        for heading, key, factor in COLUMNS:
            rows = [[r.get(f"{name}/{key}") or {} for r in s] for s in scores.values()]
            cells = [cell([row.get("value") for row in s], factor) for s in rows]
            if set(cells) == {"–"}:
                continue
            chances = [row.get("chance") for s in rows for row in s]
            chances = [chance for chance in chances if chance is not None]
            cells.append(cell(chances[:1], factor))
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
    args.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.output.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(args.output)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
