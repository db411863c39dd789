"""The table of scores: rows with protocol, chance and interval; JSON and Markdown.

One row is one number. `scores.json` holds the rows, `items.npz` the per-item statistics
behind them, from which two systems are compared later.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_slit.common.files import atomic, write_json
from espnet2_slit.common.names import TASKS
from espnet2_slit.scoring.metrics.bootstrap import (
    Items,
    NotComputed,
    Score,
    intervals,
)

SCHEMA = 1
# Shown as a percentage; every other metric as it is.
PERCENT = (
    *("recall_at_", "dcase_recall_at_", "map_", "accuracy", "top_5", "exact_match"),
    *("order_consistency", "first_option_rate", "label_named"),
)
LOWER_IS_BETTER = ("median_rank", "fluency_error_rate")
# Counts, for which neither an interval nor chance means anything.
COUNTS = ("vocabulary_size", "classes_without_clips")
TASK_TITLES = {
    "caption": "Captioning",
    "retrieval": "Retrieval",
    "question_answering": "Question answering",
    "classification": "Classification",
    "moments": "Moments",
}
# In scores.json, but not as columns of RESULTS.md.
NOT_TABLED = ("dcase_recall_at_1", "dcase_recall_at_5", "classes_without_clips")


@dataclass
class Row:
    """One score.

    Attributes:
        set: test set.
        task: one of `TASKS`.
        metric: name, e.g. `recall_at_1`.
        value: the score; None: not computed, `note` says what it needs.
        chance: what `protocol["chance"]` describes scores; None: not defined.
        n: number of queries, captions, questions or clips scored.
        low: lower end of the 95 % bootstrap interval, or None.
        high: upper end.
        protocol: what must be equal for two values to be comparable.
        note: "not computed: needs X", or "".
        key: names the row across systems: set/task/where/metric.
    """

    set: str
    task: str
    metric: str
    value: float | None
    chance: float | None
    n: int
    low: float | None
    high: float | None
    protocol: dict[str, Any]
    note: str = ""
    key: str = ""

    @property
    def where(self) -> str:
        """The part of the key between task and metric, e.g. direction and ranking."""
        return "/".join(self.key.split("/")[2:-1])


@dataclass
class ScoreTable:
    """All rows of one system, and the statistics behind them.

    Args:
        system: name shown in tables.
        resamples: bootstrap replicates of the intervals.
        seed: of the replicates.
    """

    system: str
    resamples: int = 1000
    seed: int = 0
    rows: list[Row] = field(default_factory=list)
    # key -> (Items, (U,) unit ids)
    items: dict[str, tuple[Items, np.ndarray]] = field(default_factory=dict)
    # set -> task -> what is not one number
    details: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(
        self,
        set_name: str,
        task: str,
        where: Sequence[str],
        scores: Mapping[str, Score],
        protocol: Mapping[str, Any],
        n: int,
        units: Collection[str] | np.ndarray,
        chance: Mapping[str, float | None] | None = None,
    ) -> None:
        """Add a group of scores over the same items.

        Args:
            set_name: test set.
            task: one of `TASKS`.
            where: parts of the key that tell this group from others of the task, e.g.
                ("text_to_audio", "contrastive").
            scores: metric -> Items, NotComputed, or a number without interval.
            protocol: for every row of the group.
            n: number of queries, captions, questions or clips.
            units: (U,) str ids of the resampling units of the Items.
            chance: metric -> number or None.
        """
        sampled = {m: s for m, s in scores.items() if isinstance(s, Items)}
        found = dict(
            zip(
                sampled,
                intervals(list(sampled.values()), self.resamples, self.seed),
                strict=True,
            )
        )
        unit_ids = np.asarray(list(units), dtype=np.str_)
        for metric, score in scores.items():
            key = "/".join([set_name, task, *where, metric])
            low, high = found.get(metric, (None, None))
            note, value = "", None
            if isinstance(score, NotComputed):
                note = f"not computed: needs {score.needs}"
            elif isinstance(score, Items):
                value = score.value
                if len(unit_ids) != score.num_units:
                    raise ValueError(
                        f"{key}: expected an id for each of {score.num_units} units, "
                        f"found {len(unit_ids)}"
                    )
                self.items[key] = (score, unit_ids)
            else:
                value = float(score)
            expected = (chance or {}).get(metric)
            self.rows.append(
                Row(
                    set=set_name,
                    task=task,
                    metric=metric,
                    value=value,
                    chance=None if expected is None else float(expected),
                    n=int(n),
                    low=low,
                    high=high,
                    protocol=dict(protocol),
                    note=note,
                    key=key,
                )
            )

    def add_missing(
        self, set_name: str, task: str, needs: str, protocol: Mapping[str, Any]
    ) -> None:
        """Add one row for a task that could not be scored at all."""
        row = Row(set_name, task, "all", None, None, 0, None, None, dict(protocol))
        row.note = f"not computed: needs {needs}"
        row.key = f"{set_name}/{task}/all"
        self.rows.append(row)

    def row(self, key: str) -> Row:
        """The row of a key.

        Raises:
            KeyError: no such row; the message names those that are there.
        """
        for row in self.rows:
            if row.key == key:
                return row
        raise KeyError(f"no row {key!r}; found {[r.key for r in self.rows]}")

    def to_json(self, **more: Any) -> dict[str, Any]:
        """The content of scores.json as plain values."""
        return {
            "schema": SCHEMA,
            "system": self.system,
            "bootstrap": {
                "resamples": self.resamples,
                "seed": self.seed,
                "level": 0.95,
                "kind": "percentile",
            },
            **more,
            "scores": [asdict(row) for row in self.rows],
            "details": self.details,
        }


def write_scores(path: Path, table: ScoreTable, **more: Any) -> None:
    """Write scores.json.

    Args:
        path: of the file.
        table: ScoreTable.
        more: further top-level values, e.g. environment, command.
    """
    write_json(path, table.to_json(**more))


def read_scores(path: Path) -> tuple[ScoreTable, dict[str, Any]]:
    """Read scores.json.

    Returns:
        (ScoreTable without items, the whole content).

    Raises:
        ValueError: not a scores.json of this schema.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, expected scores: run "
            "espnet2_slit.bin.slit_score first"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: expected JSON, found {error}: write it again with "
            "espnet2_slit.bin.slit_score"
        ) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA or "scores" not in content:
        raise ValueError(
            f"{path}: expected scores of schema {SCHEMA}, found schema {schema!r}: "
            "write it again with espnet2_slit.bin.slit_score"
        )
    table = ScoreTable(
        system=content["system"],
        resamples=content["bootstrap"]["resamples"],
        seed=content["bootstrap"]["seed"],
        rows=[Row(**row) for row in content["scores"]],
        details=content["details"],
    )
    return table, content


def write_items(path: Path, table: ScoreTable) -> None:
    """Write items.npz: the statistics of every row that has them, without pickles."""
    arrays: dict[str, Any] = {}
    index: dict[str, dict[str, str]] = {}
    unit_names: dict[bytes, str] = {}
    stats_names: dict[int, str] = {}
    for key, (items, units) in table.items.items():
        unit_key = units.tobytes() + str(units.dtype).encode()
        if unit_key not in unit_names:
            unit_names[unit_key] = f"units_{len(unit_names)}"
            arrays[unit_names[unit_key]] = units
        # The four BLEUs share one array.
        if id(items.stats) not in stats_names:
            stats_names[id(items.stats)] = f"stats_{len(stats_names)}"
            arrays[stats_names[id(items.stats)]] = items.stats
        index[key] = {
            "aggregate": items.aggregate,
            "stats": stats_names[id(items.stats)],
            "units": unit_names[unit_key],
        }
    arrays["index"] = np.array(json.dumps({"schema": SCHEMA, "scores": index}))
    with atomic(path) as stream:
        np.savez_compressed(stream, **arrays)


def read_items(path: Path) -> dict[str, tuple[Items, np.ndarray]]:
    """Read items.npz.

    Returns:
        {key: (Items, (U,) unit ids)}.

    Raises:
        ValueError: not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            index = json.loads(str(arrays["index"]))
            loaded = {name: arrays[name] for name in arrays.files if name != "index"}
    except (KeyError, zipfile.BadZipFile, ValueError) as error:
        raise ValueError(
            f"{path}: expected an items.npz of espnet2_slit.bin.slit_score, "
            f"found {error}"
        ) from error
    return {
        key: (Items(e["aggregate"], loaded[e["stats"]]), loaded[e["units"]])
        for key, e in index["scores"].items()
    }


# ----------------------------------------------------------------------------- text


def is_percent(metric: str) -> bool:
    """Whether a metric is shown in percent."""
    return metric.startswith(PERCENT)


def show(metric: str, value: float | None) -> str:
    """A value as tables print it: percent with one decimal, else three digits."""
    if value is None:
        return "–"
    if is_percent(metric):
        return f"{100 * value:.1f}"
    if metric in COUNTS:
        return f"{value:.0f}"
    if metric == "median_rank":
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.3f}"


def title(metric: str) -> str:
    """A metric's column title, with its unit."""
    names = {
        "recall_at_": "R@",
        "dcase_recall_at_": "DCASE R@",
        "map_at_": "mAP@",
        "bleu_": "BLEU-",
    }
    fixed = {
        "rouge_l": "ROUGE-L",
        "meteor": "METEOR",
        "cider_d": "CIDEr-D",
        "spice": "SPICE",
        "spider": "SPIDEr",
        "spider_fl": "SPIDEr-FL",
        "fense": "FENSE",
        "fluency_error_rate": "Fluency errors",
        "vocabulary_size": "Words",
        "median_rank": "Median rank",
        "recall_at_1_iou_0.5": "R@1, IoU 0.5",
        "recall_at_1_iou_0.7": "R@1, IoU 0.7",
        "map_iou_0.5": "mAP, IoU 0.5",
        "map_iou_0.75": "mAP, IoU 0.75",
        "map_iou_mean": "mAP, IoU 0.5 to 0.95",
        "map_macro": "mAP (classes)",
        "map_per_clip": "mAP (clips)",
        "top_5_accuracy": "Top-5",
        "accuracy": "Accuracy",
        "accuracy_macro": "Accuracy (mean of classes)",
        "accuracy_mean_of_folds": "Accuracy (mean of folds)",
        "exact_match": "Exact match",
        "label_named": "Names the label",
        "order_consistency": "Same in every order",
        "first_option_rate": "First option chosen",
    }
    text = fixed.get(metric, metric)
    for prefix, short in names.items():
        if metric.startswith(prefix) and metric not in fixed:
            text = short + metric[len(prefix) :]
    return text + (" %" if is_percent(metric) else "")


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row.value is None:
        return "not computed"
    text = f"**{show(row.metric, row.value)}**"
    if row.low is not None:
        text += f" [{show(row.metric, row.low)}, {show(row.metric, row.high)}]"
    if row.chance is not None:
        text += f" ({show(row.metric, row.chance)})"
    return text


def escape_markdown(text: object) -> str:
    """Text for a table cell."""
    return str(text).replace("|", "\\|").replace("\n", " ")


@dataclass(frozen=True)
class TaskTable:
    """The scores of one task, ready to be drawn.

    Attributes:
        task: one of `TASKS`.
        metrics: its columns; those that no system has a value of are left out.
        lines: (system, set, where, N, row of each metric or None).
    """

    task: str
    metrics: list[str]
    lines: list[tuple[str, str, str, int, list[Row | None]]]


def task_tables(table: ScoreTable, peers: Sequence[ScoreTable] = ()) -> list[TaskTable]:
    """The tables of the tasks that a system has scores of.

    Args:
        table: of the system.
        peers: of others, whose lines stand beside.

    Returns:
        One TaskTable a task, in the order of `TASKS`.
    """
    result = []
    for task in TASKS:
        systems = [(t, [r for r in t.rows if r.task == task]) for t in (table, *peers)]
        if not systems[0][1]:
            continue
        rows = [row for _, found in systems for row in found]
        computed = {row.metric for row in rows if row.value is not None}
        metrics = [
            m
            for m in dict.fromkeys(row.metric for row in rows)
            if m in computed and m not in NOT_TABLED
        ]
        lines = []
        for set_name, where in dict.fromkeys((row.set, row.where) for row in rows):
            for system, found in systems:
                here = [r for r in found if (r.set, r.where) == (set_name, where)]
                with_value = [row for row in here if row.value is not None]
                if with_value:
                    by_metric = {row.metric: row for row in here}
                    cells = [by_metric.get(m) for m in metrics]
                    n = with_value[0].n
                    lines.append((system.system, set_name, where, n, cells))
        result.append(TaskTable(task, metrics, lines))
    return result


def not_computed(table: ScoreTable) -> dict[str, list[str]]:
    """What a score needs -> keys of the rows that lack it."""
    missing: dict[str, list[str]] = {}
    for row in table.rows:
        if row.note:
            missing.setdefault(row.note, []).append(row.key)
    return missing


def markdown_tables(table: ScoreTable, peers: Sequence[ScoreTable] = ()) -> str:
    """The tables of RESULTS.md.

    Args:
        table: of the system.
        peers: of others, shown as further rows of the same tables.

    Returns:
        Markdown. A cell reads **score** [95 % interval] (chance).
    """
    lines = []
    for one in task_tables(table, peers):
        lines += [f"### {TASK_TITLES[one.task]}", ""]
        if one.metrics:
            head = ["dataset", "what", "N", *map(title, one.metrics)]
            if peers:
                head.insert(0, "system")
            lines += ["|" + "|".join(head) + "|", "|" + "---|" * len(head)]
        for system, set_name, where, n, rows in one.lines:
            cells = [escape_markdown(set_name), escape_markdown(where), str(n)]
            cells += [_cell(row) for row in rows]
            if peers:
                cells.insert(0, escape_markdown(system))
            lines.append("|" + "|".join(cells) + "|")
        lines += [""]
    missing = not_computed(table)
    if missing:
        lines += ["### Not computed", ""]
        for note, keys in missing.items():
            names = sorted({"/".join(k.split("/")[1:]) for k in keys})
            sets = sorted({k.split("/")[0] for k in keys})
            lines.append(f"- {', '.join(names)} ({', '.join(sets)}): {note}")
        lines.append("")
    return "\n".join(lines)


def protocol_lines(table: ScoreTable) -> str:
    """One Markdown list of what each group of rows was scored with."""
    lines, seen = [], set()
    for row in table.rows:
        group = "/".join(p for p in (row.set, row.task, row.where) if p)
        if group in seen:
            continue
        seen.add(group)
        said = ", ".join(
            f"{k}: {v}" for k, v in row.protocol.items() if v not in ("", None)
        )
        lines.append(f"- `{group}` (N = {row.n}) {said}")
    return "\n".join(lines)
