"""One static HTML page of a scored experiment: curves, bars, examples with audio.

Everything is inside the file (SVG, audio as base64), so it can be mailed or put on a
web server as it is. It draws what scoring found; it computes no score.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from espnet2_slit.common.files import write_text
from espnet2_slit.scoring.examples import Players, Source, read_clip
from espnet2_slit.scoring.metrics.score_table import (
    TASK_TITLES,
    Row,
    ScoreTable,
    is_percent,
    not_computed,
    show,
    task_tables,
    title,
)
from espnet2_slit.scoring.train_log import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2a6f97", "#e07a3f", "#5b8c5a", "#8d5a97", "#b5a642", "#555555")
MAX_NAMED_CLASSES = 40  # of a confusion matrix
BAR_METRICS = {
    "caption": ("bleu_4", "rouge_l", "meteor", "cider_d", "spice", "spider", "fense"),
    "retrieval": ("recall_at_1", "recall_at_5", "recall_at_10", "map_at_10"),
    "question_answering": ("exact_match", "accuracy"),
    "moments": ("recall_at_1_iou_0.5", "recall_at_1_iou_0.7", "map_iou_mean"),
    "classification": (
        "accuracy",
        "accuracy_mean_of_folds",
        "top_5_accuracy",
        "map_macro",
    ),
}


def _figure(width: float, height: float) -> Figure:
    import matplotlib
    from matplotlib.figure import Figure

    # Text as text: small, searchable, and in the page's own font.
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["font.size"] = 9
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, label: str) -> str:
    import matplotlib

    buffer = io.StringIO()
    # The same report has the same bytes, and no two figures of a page share an id.
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return (
        f'<figure role="img" aria-label="{_e(label)}">{text}'
        f"<figcaption>{_e(label)}</figcaption></figure>"
    )


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)


def _curves_svg(stage: Stage) -> str:
    names = list(stage.curves)
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = _figure(2.9 * columns, 2.1 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        for colour, section in zip(COLOURS, ("train", "valid"), strict=False):
            curve = stage.curves[name].get(section)
            if curve:
                epochs = sorted(curve)
                values = [curve[e] for e in epochs]
                marker = "o" if len(epochs) < 3 else None
                ax.plot(
                    epochs, values, color=colour, label=section, lw=1.5, marker=marker
                )
        ax.set_title(name, fontsize=9)
        ax.grid(alpha=0.3)
        ax.locator_params(axis="x", integer=True)
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    axes.flat[0].legend(handles, labels, fontsize=8, frameon=False)
    figure.supxlabel("epoch", fontsize=9)
    return _svg(figure, f"Learning curves of {stage.name}")


# -------------------------------------------------------------------------------- bars


def _bars_svg(task: str, set_name: str, systems: Sequence[ScoreTable]) -> str:
    """Bars of one set, chance as a tick, 95 % intervals; one colour per system."""
    wanted = BAR_METRICS[task]
    rows: dict[tuple[str, str], dict[int, Row]] = {}
    for index, table in enumerate(systems):
        for row in table.rows:
            if (row.set, row.task) == (set_name, task) and row.metric in wanted:
                if row.value is not None:
                    rows.setdefault((row.where, row.metric), {})[index] = row
    if not rows:
        return ""
    names = list(rows)
    shown = sorted({i for found in rows.values() for i in found})
    scale = 100 if all(is_percent(metric) for _, metric in names) else 1
    thickness = 0.8 / len(shown)
    figure = _figure(8.2, 0.9 + 0.22 * len(names) * (1 + 0.5 * len(shown)))
    ax = figure.subplots()
    for slot, index in enumerate(shown):
        offset = (slot - (len(shown) - 1) / 2) * thickness
        mine = {y: rows[n][index] for y, n in enumerate(names) if index in rows[n]}
        places = [y + offset for y in mine]
        values = [(row.value or 0) * scale for row in mine.values()]
        colour = COLOURS[index % len(COLOURS)]
        label = systems[index].system
        ax.barh(places, values, thickness * 0.9, color=colour, label=label)
        for at, value, row in zip(places, values, mine.values(), strict=True):
            end = value
            if row.low is not None and row.high is not None:
                end = max(value, row.high * scale)
                ax.hlines(at, row.low * scale, row.high * scale, color="black", lw=1)
            ax.annotate(
                show(row.metric, row.value),
                (end, at),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                size=8,
            )
    first = [next(iter(rows[name].values())).chance for name in names]
    chances = {y: c * scale for y, c in enumerate(first) if c is not None}
    if chances:
        low, high = [y - 0.45 for y in chances], [y + 0.45 for y in chances]
        ax.vlines(list(chances.values()), low, high, color="#c1121f", label="chance")
    ax.set_yticks(
        range(len(names)),
        [
            " ".join(p for p in (where.replace("/", " "), title(metric)) if p)
            for where, metric in names
        ],
    )
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    ax.margins(x=0.1)
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, frameon=False, loc="outside upper right", ncols=6)
    return _svg(figure, f"{TASK_TITLES[task]}: {set_name}; red: chance, line: 95 %")


def _confusion_svg(set_name: str, route: str, details: Mapping[str, Any]) -> str:
    confusion = np.array(details["confusion"], dtype=float)
    support = np.maximum(np.array(details["support"], dtype=float), 1)
    share = confusion / support[:, None]
    size = len(share)
    named = size <= MAX_NAMED_CLASSES
    side = 2.5 + (0.24 * size if named else 5)
    figure = _figure(side + 0.8, side)
    ax = figure.subplots()
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=ax, shrink=0.6, label="share of the true class")
    if named:
        ax.set_xticks(range(size), details["labels"], rotation=90, fontsize=7)
        ax.set_yticks(range(size), details["labels"], fontsize=7)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    return _svg(figure, f"Confusion matrix: {set_name}, {route}")


def _attention_svgs(
    path: Path, sources: Mapping[str, Mapping[str, Source]], set_name: str
) -> list[str]:
    """Attention of the queries over the spectrogram, one figure per clip."""
    with np.load(path, allow_pickle=False) as arrays:
        if not {"ids", "attention", "lengths", "frames_per_second"} <= set(
            arrays.files
        ):
            return [
                f'<p class="quiet">{_e(path)}: expected ids, attention (clips, '
                f"queries, frames), lengths, frames_per_second; found "
                f"{_e(arrays.files)}</p>"
            ]
        ids = [str(i) for i in arrays["ids"]]
        attention, lengths = arrays["attention"], arrays["lengths"]
        rate = float(arrays["frames_per_second"])
    figures = []
    for clip, weights, length in zip(ids, attention, lengths, strict=True):
        weights = weights[:, : int(length)].astype(np.float64)
        seconds = int(length) / rate
        figure = _figure(8, 4.2)
        top, bottom = figure.subplots(2, 1, sharex=True)
        source = sources.get(set_name, {}).get(clip)
        if source is not None:
            samples, audio_rate, _ = read_clip(*source)
            top.imshow(
                _log_spectrogram(samples, audio_rate),
                origin="lower",
                aspect="auto",
                cmap="magma",
                extent=(0, len(samples) / audio_rate, 0, audio_rate / 2000),
            )
            top.set_ylabel("kHz")
        # Each query by itself: where it looks, not how much.
        weights /= np.maximum(weights.max(axis=1, keepdims=True), 1e-12)
        bottom.imshow(
            weights,
            aspect="auto",
            cmap="viridis",
            extent=(0, seconds, len(weights) - 0.5, -0.5),
        )
        bottom.set_ylabel("query")
        bottom.set_xlabel("s")
        bottom.set_xlim(0, seconds)
        figures.append(_svg(figure, f"Attention of the queries: {set_name}, {clip}"))
    return figures


def _log_spectrogram(samples: np.ndarray, rate: int) -> np.ndarray:
    """(frequencies, frames) dB, Hann window of 32 ms every 10 ms, 60 dB deep."""
    window, hop = int(0.032 * rate), int(0.010 * rate)
    samples = np.pad(samples, (0, max(0, window - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2
    level = 10 * np.log10(power.T + 1e-10)
    return np.maximum(level, level.max() - 60)


# --------------------------------------------------------------------------------- page


def _score_section(systems: Sequence[ScoreTable]) -> str:
    parts = []
    for one in task_tables(systems[0], systems[1:]):
        head = "".join(f"<th>{_e(title(m))}</th>" for m in one.metrics)
        head = f"<tr><th>set</th><th>what</th><th>system</th><th>N</th>{head}</tr>"
        body = []
        for system, set_name, where, n, rows in one.lines:
            cells = [f"<td>{_e(g)}</td>" for g in (set_name, where, system, n)]
            cells += [_score_cell(row) for row in rows]
            body.append("<tr>" + "".join(cells) + "</tr>")
        sets = dict.fromkeys(r.set for r in systems[0].rows if r.task == one.task)
        bars = "".join(_bars_svg(one.task, name, systems) for name in sets)
        parts.append(
            f"<h3>{TASK_TITLES[one.task]}</h3><div class='wide'><table>{head}"
            f"{''.join(body)}</table></div>{bars}"
        )
    return "".join(parts)


def _score_cell(row: Row | None) -> str:
    if row is None:
        return "<td></td>"
    if row.value is None:
        return f'<td class="quiet" title="{_e(row.note)}">not computed</td>'
    text = f"<b>{_e(show(row.metric, row.value))}</b>"
    if row.low is not None:
        low, high = show(row.metric, row.low), show(row.metric, row.high)
        text += f'<br><span class="range">{_e(low)} – {_e(high)}</span>'
    if row.chance is not None:
        chance = show(row.metric, row.chance)
        text += f'<br><span class="chance">{_e(chance)}</span>'
    said = "; ".join(
        f"{k}: {v}" for k, v in row.protocol.items() if v not in ("", None)
    )
    return f'<td title="{_e(said)}">{text}</td>'


def _caption_section(
    set_name: str, examples: Sequence[Mapping[str, Any]], players: Players
) -> str:
    rows = []
    for item in examples:
        references = "".join(f"<li>{_e(r)}</li>" for r in item["references"])
        rows.append(
            f"<tr><td>{players.html(set_name, item['id'])}<br>"
            f'<span class="quiet">{_e(item["id"])}</span></td>'
            f"<td><b>{_e(item['hypothesis']) or '(empty)'}</b></td>"
            f"<td><ul>{references}</ul></td><td>{item['score']:.2f}</td></tr>"
        )
    return (
        f"<h3>{_e(set_name)}</h3><table><tr><th>audio</th><th>system</th>"
        f"<th>references</th><th>CIDEr-D</th></tr>{''.join(rows)}</table>"
    )


def _retrieval_section(
    set_name: str, examples: Sequence[Mapping[str, Any]], players: Players
) -> str:
    rows = []
    for item in examples:
        first = "".join(
            f"<li{' class=right' if hit['audio'] == item['audio'] else ''}>"
            f"{players.html(set_name, hit['audio'])} {hit['score']:.3f} "
            f'<span class="quiet">{_e(hit["audio"])}</span></li>'
            for hit in item["first"]
        )
        rows.append(
            f"<tr><td>{_e(item['query'])}</td><td>{item['rank']}</td>"
            f"<td><ol>{first}</ol></td></tr>"
        )
    return (
        f"<h3>{_e(set_name)}</h3><table><tr><th>text</th><th>rank of its audio</th>"
        f"<th>first three</th></tr>{''.join(rows)}</table>"
    )


def _answer_section(
    set_name: str, examples: Sequence[Mapping[str, Any]], players: Players
) -> str:
    rows = "".join(
        f"<tr><td>{players.html(set_name, item['id'])}</td>"
        f"<td>{_e(item['question'])}</td>"
        f"<td class={'right' if item['correct'] else 'wrong'}>"
        f"{_e(item['hypothesis']) or '(empty)'}</td>"
        f"<td>{_e(item['answer'])}</td></tr>"
        for item in examples
    )
    return (
        f"<h3>{_e(set_name)}</h3><table><tr><th>audio</th><th>question</th>"
        f"<th>system</th><th>answer</th></tr>{rows}</table>"
    )


EXAMPLE_SECTIONS = {
    "caption": ("Captions beside references", _caption_section),
    "retrieval": ("Text-to-audio retrieval", _retrieval_section),
    "question_answering": ("Questions and answers", _answer_section),
}
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b1b1b;max-width:1100px;margin:0 auto;
  padding:1.5rem}
h1{margin:0 0 .3rem}
h2{margin:2.2rem 0 .6rem;border-bottom:2px solid #ddd}
h3{margin:1.4rem 0 .4rem}
table{border-collapse:collapse}
td,th{border:1px solid #ddd;padding:.3rem .5rem;text-align:left;vertical-align:top;
  font-size:14px}
th{background:#f4f4f4}
.wide{overflow-x:auto}
.quiet{color:#666;font-size:12px}
.range{color:#666;font-size:12px;white-space:nowrap}
.chance{color:#c1121f;font-size:12px}
figure{margin:.6rem 0}
.row figure{display:inline-block;max-width:48%}
svg{max-width:100%;height:auto}
figcaption{color:#666;font-size:13px}
audio{height:32px;width:230px;vertical-align:middle}
ul,ol{margin:0;padding-left:1.2rem}
.right{background:#e3f4e1}
.wrong{background:#fbe7e7}
nav a{margin-right:1rem}
"""


def write_report(
    path: Path,
    table: ScoreTable,
    peers: Sequence[ScoreTable] = (),
    sources: Mapping[str, Mapping[str, Source]] | None = None,
    decode_dir: Path | None = None,
    stages: Sequence[Stage] = (),
    environment: Mapping[str, str] | None = None,
) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        table: of the system.
        peers: of others, drawn beside.
        sources: {set: {clip id: (audio path, start_s, end_s)}} for the players.
        decode_dir: where `<set>/attention.npz` may lie, or None.
        stages: learning curves.
        environment: {name: value} shown under the title.
    """
    systems = [table, *peers]
    found = sources or {}
    sections = {
        "Scores": _LEGEND + _score_section(systems),
        "Learning curves": "".join(map(_curves_section, stages)),
        **_example_sections(table, Players(found)),
        "Confusion matrices": _confusion_section(table),
        "Attention of the queries": _attention_section(decode_dir, found),
        "Not computed": _not_computed_section(table),
    }
    write_text(path, _page(table.system, environment or {}, sections))


_LEGEND = (
    '<p class="quiet">score, 95 % bootstrap interval, <span class="chance">chance'
    "</span>; R@, mAP, accuracy and exact match in %. Hover for the protocol.</p>"
)


def _page(
    system: str, environment: Mapping[str, str], sections: Mapping[str, str]
) -> str:
    """The page; sections without content are left out."""
    named = [
        (name, re.sub(r"\W+", "-", name.lower()), content)
        for name, content in sections.items()
        if content
    ]
    facts = "".join(
        f"<tr><th>{_e(k)}</th><td>{_e(v)}</td></tr>" for k, v in environment.items()
    )
    lines = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>{_e(system)}: scores</title><style>{STYLE}</style>",
        '<meta name="viewport" content="width=device-width"></head><body>',
        f"<h1>{_e(system)}</h1><nav>",
        *(f'<a href="#{anchor}">{_e(name)}</a>' for name, anchor, _ in named),
        f"</nav><details><summary>Environment</summary><table>{facts}</table></details>",
        *(
            f'<section id="{anchor}"><h2>{_e(name)}</h2>{content}</section>'
            for name, anchor, content in named
        ),
        "</body></html>",
    ]
    return "\n".join(lines) + "\n"


def _curves_section(stage: Stage) -> str:
    note = f'<p class="quiet">{_e(stage.note)}</p>'
    return f"<h3>{_e(stage.name)}</h3>" + (note if stage.note else _curves_svg(stage))


def _example_sections(table: ScoreTable, players: Players) -> dict[str, str]:
    return {
        name: "".join(
            make(set_name, details[task], players)
            for set_name, details in table.details.items()
            if task in details
        )
        for task, (name, make) in EXAMPLE_SECTIONS.items()
    }


def _confusion_section(table: ScoreTable) -> str:
    figures = "".join(
        _confusion_svg(set_name, scorer, found)
        for set_name, details in table.details.items()
        for scorer, found in details.get("classification", {}).items()
        if "confusion" in found
    )
    return figures and f"<div class=row>{figures}</div>"


def _attention_section(
    decode_dir: Path | None, sources: Mapping[str, Mapping[str, Source]]
) -> str:
    if decode_dir is None:
        return ""
    return "".join(
        figure
        for path in sorted(Path(decode_dir).glob("*/attention.npz"))
        for figure in _attention_svgs(path, sources, path.parent.name)
    )


def _not_computed_section(table: ScoreTable) -> str:
    lines = [
        f"<li><code>{_e(key)}</code>: {_e(note)}</li>"
        for note, keys in not_computed(table).items()
        for key in keys
    ]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""
