"""What is easily missed in a table of scores: a system that has learned nothing."""

from __future__ import annotations

from espnet2_slit.scoring.metrics.score_table import Row, ScoreTable, show, title

# Of each group of rows, the first of these that was computed is compared with chance.
DECISIVE = (
    "cider_d",
    "rouge_l",
    "recall_at_1",
    "recall_at_1_iou_0.5",
    "exact_match",
    "accuracy",
    "map_macro",
)


def findings(table: ScoreTable) -> list[str]:
    """Sentences about scores that do not say what a reader takes them to say.

    Args:
        table: of one system.

    Returns:
        Sets whose captions are all one sentence; scores that are not above chance,
        since their interval reaches down to it. [] where there is nothing to say.
    """
    groups: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in table.rows:
        groups.setdefault((row.set, row.task, row.where), {})[row.metric] = row
    found = []
    for (set_name, task, where), rows in groups.items():
        first = next(iter(rows.values()))
        if first.protocol.get("distinct_captions") == 1 and first.n > 1:
            said = first.protocol.get("first_caption", "")
            found.append(f"{set_name}: all {first.n} captions are {said!r}")
        decisive = [rows[m] for m in DECISIVE if m in rows]
        best = next((row for row in decisive if row.value is not None), None)
        # Variants of question answering repeat their whole.
        if best is not None and _not_above_chance(best) and where not in _REPEATS:
            place = " ".join(p for p in (set_name, task, where.replace("/", " ")) if p)
            found.append(f"{place}: {_said(best)}")
    return found


_REPEATS = {
    f"{how}/{rows}"
    for how in ("free", "ranked")
    for rows in ("binary", "single_word", "unanimous", "unanimous_binary")
}


def _not_above_chance(row: Row) -> bool:
    if row.chance is None or row.value is None:
        return False
    return (row.value if row.low is None else row.low) <= row.chance


def _said(row: Row) -> str:
    interval = ""
    if row.low is not None and row.high is not None:
        interval = f" [{show(row.metric, row.low)}, {show(row.metric, row.high)}]"
    return (
        f"{title(row.metric)} {show(row.metric, row.value)}{interval} is not above"
        f" chance, {show(row.metric, row.chance)}"
    )
