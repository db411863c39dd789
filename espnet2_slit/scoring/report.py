"""One static HTML page of a scored experiment: curves, bars, examples with audio.

Everything is inside the file (SVG, audio as base64), so it can be mailed or put on a
web server as it is. It draws what scoring found; it computes no score.
"""

import base64
import html
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from espnet2_slit.scoring.metrics.score_table import (
    NOT_TABLED,
    TASK_TITLES,
    TASKS,
    is_percent,
    show,
    title,
    write_atomically,
)

STAGES = ("representation", "generative", "instruction")
COLOURS = ("#2a6f97", "#e07a3f", "#5b8c5a", "#8d5a97", "#b5a642", "#555555")
MAX_CLIP_S = 10.0  # embedded audio is cut here; 16 kHz, 16 bit: 0.43 MB of base64
MAX_EMBEDDED_S = 400.0  # audio in one page: 17 MB
MAX_NAMED_CLASSES = 40  # of a confusion matrix
# Stats that ESPnet's reporter mixes among the model's own.
NOT_A_CURVE = re.compile(
    r"(^|_)time$|^total_count$|^gpu_|^clip$|^grad_norm$|^loss_scale$|_lr\d+$|^lr"
)
EPOCH_LINE = re.compile(r"(\d+)epoch results: (.*)")
VALUE = re.compile(r"(\w+)=(nan|-?inf|[-+]?\d[\d.]*(?:e[-+]?\d+)?)(?=,|$)")
BAR_METRICS = {
    "caption": ("bleu_4", "rouge_l", "meteor", "cider_d", "spice", "spider", "fense"),
    "retrieval": ("recall_at_1", "recall_at_5", "recall_at_10", "map_at_10"),
    "question_answering": ("exact_match",),
    "classification": (
        "accuracy",
        "accuracy_mean_of_folds",
        "top_5_accuracy",
        "map_macro",
    ),
}


@dataclass
class Stage:
    """Learning curves of one training stage.

    Attributes:
        name: of the experiment folder.
        curves: stat -> {"train" | "valid": {epoch: value}}.
        note: why there are none, or "".
    """

    name: str
    curves: dict = field(default_factory=dict)
    note: str = ""


# ------------------------------------------------------------------------------ curves


def read_training_log(folder):
    """Learning curves from the logs ESPnet writes.

    Args:
        folder: experiment folder with train.log; train.1.log, ... are older runs of the
            same training, whose epochs are kept unless a later run repeats them.

    Returns:
        Stage.
    """
    folder = Path(folder)
    stage = Stage(folder.name)
    older = sorted(
        folder.glob("train.*.log"),
        key=lambda p: int(p.suffixes[0][1:]) if p.suffixes[0][1:].isdigit() else 0,
        reverse=True,
    )
    logs = [p for p in (*older, folder / "train.log") if p.is_file()]
    if not logs:
        stage.note = f"no train.log in {folder}"
        return stage
    for path in logs:
        with open(path, encoding="utf-8", errors="replace") as f:
            for line in f:
                found = EPOCH_LINE.search(line)
                if found:
                    _add_epoch(stage, int(found[1]), found[2])
    if not stage.curves:
        stage.note = f"{folder / 'train.log'} has no finished epoch"
    return stage


def _add_epoch(stage, epoch, text):
    parts = re.split(r"\[(\w+)\] ", text)
    for section, values in zip(parts[1::2], parts[2::2], strict=True):
        if section not in ("train", "valid"):
            continue
        for name, value in VALUE.findall(values):
            if not NOT_A_CURVE.search(name):
                curve = stage.curves.setdefault(name, {}).setdefault(section, {})
                curve[epoch] = float(value)


def training_stages(decode_dir=None, exp_dirs=None):
    """Stages to draw: the folders given, else the decoded experiment's three.

    Args:
        decode_dir: `exp/<tag>_instruction/decode_x`; its sisters `<tag>_representation`
            and `<tag>_generative` belong to the same system.
        exp_dirs: list of folders, or None.

    Returns:
        List of Stage.
    """
    if exp_dirs is None and decode_dir is not None:
        experiment = Path(decode_dir).resolve().parent
        tag = re.sub(rf"_({'|'.join(STAGES)})$", "", experiment.name)
        sisters = [experiment.parent / f"{tag}_{stage}" for stage in STAGES]
        exp_dirs = [p for p in sisters if p.is_dir()] or [experiment]
    return [read_training_log(folder) for folder in exp_dirs or []]


def _figure(width, height):
    import matplotlib
    from matplotlib.figure import Figure

    # Text as text: small, searchable, and in the page's own font.
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["font.size"] = 9
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure, label):
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


def _e(text):
    return html.escape(str(text), quote=True)


def _curves_svg(stage):
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


def _bars_svg(task, set_name, systems):
    """Bars of one set, chance as a tick, 95 % intervals; one colour per system."""
    wanted = BAR_METRICS[task]
    rows: dict[tuple, dict] = {}
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
        label = systems[index].system
        for y, name in enumerate(names):
            row = rows[name].get(index)
            if row is None:
                continue
            at = y + (slot - (len(shown) - 1) / 2) * thickness
            value = row.value * scale
            ax.barh(
                at,
                value,
                thickness * 0.9,
                color=COLOURS[index % len(COLOURS)],
                label=label,
            )
            label = None
            if row.low is not None:
                ax.hlines(at, row.low * scale, row.high * scale, color="black", lw=1)
            end = max(value, (row.high or 0) * scale)
            ax.annotate(
                show(row.metric, row.value),
                (end, at),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                size=8,
            )
    label = "chance"
    for y, name in enumerate(names):
        chance = next((r.chance for r in rows[name].values()), None)
        if chance is not None:
            ax.vlines(chance * scale, y - 0.45, y + 0.45, color="#c1121f", label=label)
            label = None
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


def _confusion_svg(set_name, route, details):
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


# ------------------------------------------------------------------------------- audio


class _Players:
    """Audio elements, each clip embedded once, within the page's limit."""

    def __init__(self, sources):
        self._sources = sources  # set -> clip id -> (path, start_s, end_s)
        self._made = {}
        self._embedded_s = 0.0

    def html(self, set_name, clip):
        key = (set_name, clip)
        if key not in self._made:
            if self._embedded_s >= MAX_EMBEDDED_S:
                return (
                    '<span class="quiet">audio left out to keep the page small</span>'
                )
            source = self._sources.get(set_name, {}).get(clip)
            self._made[key] = self._make(source)
        return self._made[key]

    def _make(self, source):
        if source is None:
            return '<span class="quiet">no audio file in wav.scp</span>'
        try:
            samples, rate, cut = read_clip(*source)
        except (RuntimeError, OSError, ValueError) as error:
            return f'<span class="quiet">audio not embedded: {_e(error)}</span>'
        import soundfile

        self._embedded_s += len(samples) / rate
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
        data = base64.b64encode(buffer.getvalue()).decode()
        note = f' <span class="quiet">first {MAX_CLIP_S:g} s</span>' if cut else ""
        return (
            f'<audio controls preload="metadata" src="data:audio/wav;base64,{data}">'
            f"</audio>{note}"
        )


def read_clip(path, start_s=0.0, end_s=None):
    """Mono samples of the first seconds of a clip, at 16 kHz or less.

    Args:
        path: audio file.
        start_s: where the clip begins.
        end_s: where it ends; None: with the file.

    Returns:
        (samples (S,) float32, rate, whether it was cut at `MAX_CLIP_S`).
    """
    import soundfile

    with soundfile.SoundFile(path) as f:
        rate = f.samplerate
        first = round(start_s * rate)
        last = f.frames if end_s is None else min(f.frames, round(end_s * rate))
        wanted = min(last - first, round(MAX_CLIP_S * rate))
        f.seek(first)
        samples = f.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
    if rate > 16000:
        import soxr

        samples, rate = soxr.resample(samples, rate, 16000), 16000
    return samples, rate, last - first > wanted


def _attention_svgs(path, sources, set_name):
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


def _log_spectrogram(samples, rate):
    """(frequencies, frames) dB, Hann window of 32 ms every 10 ms, 60 dB deep."""
    window, hop = int(0.032 * rate), int(0.010 * rate)
    samples = np.pad(samples, (0, max(0, window - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2
    level = 10 * np.log10(power.T + 1e-10)
    return np.maximum(level, level.max() - 60)


# --------------------------------------------------------------------------------- page


def _score_section(systems):
    parts = []
    for task in TASKS:
        found = [[r for r in table.rows if r.task == task] for table in systems]
        if not found[0]:
            continue
        metrics = [
            m
            for m in dict.fromkeys(r.metric for rows in found for r in rows)
            if m not in NOT_TABLED
            and any(
                r.value is not None for rows in found for r in rows if r.metric == m
            )
        ]
        head = "".join(f"<th>{_e(title(m))}</th>" for m in metrics)
        head = f"<tr><th>set</th><th>what</th><th>system</th><th>N</th>{head}</tr>"
        body = []
        for group in dict.fromkeys((r.set, r.where) for rows in found for r in rows):
            for table, rows in zip(systems, found, strict=True):
                here = {r.metric: r for r in rows if (r.set, r.where) == group}
                if not any(r.value is not None for r in here.values()):
                    continue
                n = next(r.n for r in here.values() if r.value is not None)
                cells = [f"<td>{_e(g)}</td>" for g in (*group, table.system, n)]
                cells += [_score_cell(here.get(m)) for m in metrics]
                body.append("<tr>" + "".join(cells) + "</tr>")
        sets = dict.fromkeys(r.set for r in found[0])
        bars = "".join(_bars_svg(task, name, systems) for name in sets)
        parts.append(
            f"<h3>{TASK_TITLES[task]}</h3><div class='wide'><table>{head}"
            f"{''.join(body)}</table></div>{bars}"
        )
    return "".join(parts)


def _score_cell(row):
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


def _caption_section(set_name, examples, players):
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


def _retrieval_section(set_name, examples, players):
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


def _answer_section(set_name, examples, players):
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
    path, table, peers=(), sources=None, decode_dir=None, stages=(), environment=None
):
    """Write the page.

    Args:
        path: of the HTML file.
        table: ScoreTable.
        peers: other ScoreTables to draw beside.
        sources: {set: {clip id: (audio path, start_s, end_s)}} for the players.
        decode_dir: where `<set>/attention.npz` may lie, or None.
        stages: list of Stage.
        environment: {name: value} shown under the title.
    """
    systems = [table, *peers]
    sources = sources or {}
    players = _Players(sources)
    sections = []

    def section(name, content):
        if content:
            anchor = re.sub(r"\W+", "-", name.lower())
            sections.append((name, anchor, content))

    legend = (
        '<p class="quiet">score, 95 % bootstrap interval, <span class="chance">chance'
        "</span>; R@, mAP, accuracy and exact match in %. Hover for the protocol.</p>"
    )
    section("Scores", legend + _score_section(systems))
    section(
        "Learning curves",
        "".join(
            f"<h3>{_e(s.name)}</h3>"
            + (f'<p class="quiet">{_e(s.note)}</p>' if s.note else _curves_svg(s))
            for s in stages
        ),
    )
    for task, (name, make) in EXAMPLE_SECTIONS.items():
        section(
            name,
            "".join(
                make(set_name, details[task], players)
                for set_name, details in table.details.items()
                if task in details
            ),
        )
    confusions = "".join(
        _confusion_svg(set_name, route, found)
        for set_name, details in table.details.items()
        for route, found in details.get("classification", {}).items()
        if "confusion" in found
    )
    section("Confusion matrices", confusions and f"<div class=row>{confusions}</div>")
    if decode_dir is not None:
        found = sorted(Path(decode_dir).glob("*/attention.npz"))
        section(
            "Attention of the queries",
            "".join(
                figure
                for attention in found
                for figure in _attention_svgs(attention, sources, attention.parent.name)
            ),
        )
    notes = dict.fromkeys((r.note, r.key) for r in table.rows if r.note)
    section(
        "Not computed",
        notes
        and "<ul>"
        + "".join(f"<li><code>{_e(key)}</code>: {_e(note)}</li>" for note, key in notes)
        + "</ul>",
    )
    facts = "".join(
        f"<tr><th>{_e(k)}</th><td>{_e(v)}</td></tr>"
        for k, v in (environment or {}).items()
    )
    page = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>{_e(table.system)}: scores</title><style>{STYLE}</style>",
        '<meta name="viewport" content="width=device-width"></head><body>',
        f"<h1>{_e(table.system)}</h1><nav>",
        *(f'<a href="#{anchor}">{_e(name)}</a>' for name, anchor, _ in sections),
        f"</nav><details><summary>Environment</summary><table>{facts}</table></details>",
        *(
            f'<section id="{anchor}"><h2>{_e(name)}</h2>{content}</section>'
            for name, anchor, content in sections
        ),
        "</body></html>",
    ]
    write_atomically(path, "\n".join(page) + "\n")
