"""The mean over folds that were scored apart, one model each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from espnet2_slit.scoring.metrics.bootstrap import replicates
from espnet2_slit.scoring.metrics.score_table import (
    Row,
    ScoreTable,
    read_items,
    read_scores,
)
from espnet2_slit.scoring.read import ScoringError


def average_folds(
    folders: Sequence[Path], system: str, resamples: int = 1000, seed: int = 0
) -> ScoreTable:
    """Mean over folds that were scored apart, one model each.

    Args:
        folders: directories with scores.json and items.npz, one per fold: with the
            same sets each, or each with one set of each task.
        system: name of the mean.
        resamples: bootstrap replicates.
        seed: of the replicates; clips are resampled within their fold.

    Returns:
        The folds' own rows (set `<set>@fold<f>`), then the rows of the mean
        (`<set>@mean_of_<F>_folds`, without `<set>@` where its name differs).

    Raises:
        ScoringError: fewer than two folds, or folds with different rows.
    """
    if len(folders) < 2:
        raise ScoringError(f"expected two or more folds, found {len(folders)}")
    table = ScoreTable(system, resamples, seed)
    scored = [read_scores(folder / "scores.json")[0] for folder in map(Path, folders)]
    items = [read_items(Path(folder) / "items.npz") for folder in folders]
    names = [{row.set for row in one.rows} for one in scored]
    alike = all(found == names[0] for found in names)
    mean_of = f"mean_of_{len(folders)}_folds"
    groups: dict[tuple[str, str], list[tuple[int, Row]]] = {}
    for index, one in enumerate(scored):
        for row in one.rows:
            suffix = row.key.removeprefix(f"{row.set}/")
            set_name = f"{row.set}@{mean_of}" if alike else mean_of
            groups.setdefault((set_name, suffix), []).append((index, row))
            here = f"{row.set}@fold{index + 1}"
            table.rows.append(replace(row, set=here, key=f"{here}/{suffix}"))
        for set_name, details in one.details.items():
            table.details[f"{set_name}@fold{index + 1}"] = details
    for (set_name, suffix), found in groups.items():
        if [index for index, _ in found] != list(range(len(folders))):
            raise ScoringError(
                f"{suffix}: expected one row in each of {len(folders)} folds, found "
                f"{len(found)} in folds {[index + 1 for index, _ in found]}"
            )
        rows = [row for _, row in found]
        mean = _mean_row(set_name, suffix, rows)
        drawn = [
            replicates([items[index][row.key][0]], resamples, seed + index)[:, 0]
            for index, row in found
            if row.key in items[index]
        ]
        if mean.value is not None and len(drawn) == len(rows):
            low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
            mean.low, mean.high = float(low), float(high)
        table.rows.append(mean)
    return table


def _mean_row(set_name: str, suffix: str, rows: list[Row]) -> Row:
    """The mean of one score over folds; None where a fold lacks it."""

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if len(known) == len(values) else None

    protocol = {
        name: value if all(r.protocol.get(name) == value for r in rows) else "by fold"
        for name, value in rows[0].protocol.items()
    }
    return Row(
        set=set_name,
        task=rows[0].task,
        metric=rows[0].metric,
        value=mean([row.value for row in rows]),
        chance=mean([row.chance for row in rows]),
        n=sum(row.n for row in rows),
        low=None,
        high=None,
        protocol=protocol | {"resampled": "clips within folds"},
        note=next((row.note for row in rows if row.note), ""),
        key=f"{set_name}/{suffix}",
    )
