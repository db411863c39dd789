"""Does it listen? Scores beside those of the same system that heard something else.

A control is the same set decoded with silence, noise, or another clip's audio in place
of each clip's own. What a system gains over it, it has from listening.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from espnet2_slit.scoring.compare import compare_items
from espnet2_slit.scoring.metrics.score_table import (
    ScoreTable,
    escape_markdown,
    show,
    title,
)

PREFIX = "control_"  # of the folder beside the decoded sets
METRICS = (
    *("cider_d", "rouge_l", "recall_at_1", "recall_at_10", "exact_match", "accuracy"),
    *("map_per_clip", "recall_at_1_iou_0.5", "map_iou_mean"),
)


@dataclass(frozen=True)
class ControlRow:
    """One score beside its control.

    Attributes:
        control: what was heard: silence, noise or shuffled.
        key: of the score's row, set/task/where/metric.
        metric: its last part.
        score: with the clips' own audio.
        control_score: with the other audio.
        difference: score - control_score.
        low: lower end of its paired 95 % interval, resampled as the score's own.
        high: upper end.
        n: resampling units.
    """

    control: str
    key: str
    metric: str
    score: float
    control_score: float
    difference: float
    low: float
    high: float
    n: int


def control_folder(decode_dir: Path, heard: str) -> Path:
    """Where the sets go that are decoded with other audio."""
    return Path(decode_dir) / f"{PREFIX}{heard}"


def control_folders(decode_dir: Path) -> dict[str, Path]:
    """What was heard -> its folder, of the controls beside the decoded sets."""
    found = sorted(Path(decode_dir).glob(f"{PREFIX}*"))
    return {p.name.removeprefix(PREFIX): p for p in found if p.is_dir()}


def compare_with_control(
    table: ScoreTable, control: ScoreTable, name: str
) -> list[ControlRow]:
    """The scores that both have, paired.

    Args:
        table: scores with the clips' own audio.
        control: scores of the same sets with other audio.
        name: what was heard.

    Returns:
        A row for each score of `METRICS`, in the table's order.

    Raises:
        ValueError: a score is over different items.
    """
    rows = []
    for row in table.rows:
        paired = row.key in table.items and row.key in control.items
        if row.metric not in METRICS or not paired:
            continue
        found = compare_items(
            row.key,
            table.items[row.key],
            control.items[row.key],
            table.resamples,
            table.seed,
        )
        rows.append(
            ControlRow(
                control=name,
                key=row.key,
                metric=row.metric,
                score=found.first,
                control_score=found.second,
                difference=found.difference,
                low=found.low,
                high=found.high,
                n=found.n,
            )
        )
    return rows


def controls_json(rows: Sequence[ControlRow]) -> list[dict[str, Any]]:
    """Rows as scores.json has them."""
    return [asdict(row) for row in rows]


def controls_markdown(rows: Sequence[ControlRow]) -> str:
    """The table of RESULTS.md; "" without rows."""
    if not rows:
        return ""
    lines = [
        "### Does it listen?",
        "",
        "The same sets with other audio in place of each clip's own, and what the own"
        " audio adds [paired 95 % bootstrap interval].",
        "",
        "|dataset|what|score|heard instead|own audio|instead|difference|",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        set_name, *where, _ = row.key.split("/")
        values = [
            show(row.metric, v)
            for v in (row.score, row.control_score, row.difference, row.low, row.high)
        ]
        cells = [set_name, "/".join(where), title(row.metric), row.control, *values[:2]]
        cells.append(f"**{values[2]}** [{values[3]}, {values[4]}]")
        lines.append("|" + "|".join(map(escape_markdown, cells)) + "|")
    return "\n".join([*lines, ""])
