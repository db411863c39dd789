#!/usr/bin/env python3
"""One table of several systems' scores: what does each training stage give?

ablation_table.py --output exp/ablation.md "whole system=exp/mini_instruction" ...
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
    """{set/task/...: row} of the one decode folder in an experiment that has scores."""
    found = sorted(Path(experiment).glob("decode_*/scores.json"))
    if len(found) != 1:
        raise SystemExit(
            f"{experiment}: expected one decode_*/scores.json, found {len(found)}. Run"
            " stages 5 and 6, or remove those that are not meant."
        )
    rows = json.loads(found[0].read_text(encoding="utf-8"))["scores"]
    return {row["key"]: row for row in rows}


def table(systems):
    """Markdown: a row per test set and score, a column per system.

    Args:
        systems: {name: experiment folder}.

    Returns:
        Lines.
    """
    scores = {name: read_scores(folder) for name, folder in systems.items()}
    sets = sorted({key.partition("/")[0] for rows in scores.values() for key in rows})
    lines = [
        "| test set | score | " + " | ".join(scores) + " | chance |",
        "|---|---|" + "---:|" * (len(scores) + 1),
    ]
    for name in sets:
        for heading, key, factor in COLUMNS:
            rows = [rows.get(f"{name}/{key}") for rows in scores.values()]
            values = [
                "–" if row is None or row["value"] is None else row["value"] * factor
                for row in rows
            ]
            if all(value == "–" for value in values):
                continue
            chance = [
                row["chance"] for row in rows if row and row["chance"] is not None
            ]
            cells = [
                v if v == "–" else f"{v:.{1 if factor > 1 else 3}f}" for v in values
            ]
            if chance:
                cells.append(f"{chance[0] * factor:.{1 if factor > 1 else 3}f}")
            else:
                cells.append("–")
            lines.append(f"| {name} | {heading} | {' | '.join(cells)} |")
    lines += ["", "– : the system lacks the part that this score needs."]
    return lines


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("systems", nargs="+", metavar="NAME=EXPERIMENT")
    args = parser.parse_args()
    systems = dict(one.split("=", 1) for one in args.systems)
    text = "\n".join(table(systems)) + "\n"
    args.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.output.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(args.output)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
