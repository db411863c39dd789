"""A page to try a system in the browser: caption, ask, classify, search, and look.

Owns the page; all results come from `slit`, pictures from `pictures`. It needs gradio
(extra: demo). The page is served by this machine to this machine unless another host is
asked for, sends no statistics, and gives out audio of the searched folder only.
"""

from __future__ import annotations

import csv
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_slit.data.audio import AudioError
from espnet2_slit.inference.one_by_one import each, fault_of
from espnet2_slit.inference.pictures import attention_figure, moments_figure, pixels
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.slit import SLIT

MAX_UPLOAD = "200mb"
NO_AUDIO = "Upload or record audio first."
EXAMPLE_RATE = 16000
INTRODUCTION = """# SLIT: describe, question and search sound

The clip that is here at first: two whistles, then a hum that rises."""
# The focus can be seen, and the player's grey can be read on white.
CSS = """
.contain :focus-visible:focus-visible {
    outline: 3px solid var(--color-accent) !important;
    outline-offset: 2px;
}
html:not(.dark) body:not(.dark) .contain {--neutral-400: var(--neutral-500)}
"""


def example_clip() -> np.ndarray:
    """Two whistles over a soft hiss, then a hum that rises: (S,) float32, 5 s.

    What the page opens with, so that its first view needs no file of the visitor.
    """
    time_s = np.arange(5 * EXAMPLE_RATE) / EXAMPLE_RATE
    audio = 0.01 * np.random.default_rng(0).standard_normal(len(time_s))
    for start_s in (0.3, 1.2):
        inside = np.clip((time_s - start_s) / 0.6, 0, 1)
        audio += 0.4 * np.sin(np.pi * inside) * np.sin(2 * np.pi * 2200 * time_s)
    rise = np.clip((time_s - 2.4) / 2.4, 0, 1)
    hum = np.sin(2 * np.pi * (90 + 60 * rise) * time_s)
    audio += 0.3 * np.sin(np.pi * rise) * (hum + 0.5 * np.sign(hum))
    return audio.astype(np.float32)


class Page:
    """What the page's buttons do; every method takes and returns plain values.

    Args:
        slit: system.
        folder: audio to search, None for none; indexed in its own `.slit_index`.

    Raises:
        InferenceError: a folder to search with a system that cannot search.
    """

    def __init__(self, slit: SLIT, folder: str | os.PathLike | None = None):
        self.slit = slit
        self.index: Any = None
        self.folder = tempfile.TemporaryDirectory(prefix="slit_demo_")
        self.example = str(Path(self.folder.name) / "example.wav")
        self.lock = threading.Lock()
        import soundfile

        soundfile.write(self.example, example_clip(), EXAMPLE_RATE)
        if folder:
            from espnet2_slit.inference.search_index import DEFAULT_NAME, SearchIndex

            self.index = SearchIndex(Path(folder).expanduser() / DEFAULT_NAME)
            self.index.update(slit, folder)

    def _run(self, work: Callable, *values: Any) -> Any:
        try:
            with self.lock:
                return work(*values)
        except (AudioError, InferenceError) as error:
            import gradio

            raise gradio.Error(str(error)) from error

    def caption(self, path: str | None) -> str:
        """Path -> caption."""
        if not path:
            return NO_AUDIO
        return self._run(self.slit.caption, path)

    def ask(self, path: str | None, question: str, answers: str = "") -> str:
        """Path, question and answers to choose from (or none) -> answer."""
        if not path:
            return NO_AUDIO
        if not question.strip():
            return "Write a question first."
        candidates = _words(answers) or None
        return self._run(
            lambda: self.slit.answer(path, question.strip(), candidates=candidates)
        )

    def classify(self, path: str | None, labels: str, route: str) -> dict[str, float]:
        """Path and labels, separated by commas -> {label: share}, for gradio's Label.

        Shares are the softmax of the scores, and say which label is ahead, not how
        probable it is.
        """
        words = _words(labels)
        if not path or not words:
            return {NO_AUDIO if not path else "Write labels first.": 0.0}
        scores = self._run(
            lambda: self.slit.classify(path, words, route=route).scores
        )  # {label: score}
        values = np.array(list(scores.values()))
        if route == "similarity":  # cosines lie close together
            values = values / self.temperature
        shares = np.exp(values - values.max())
        return dict(zip(scores, (shares / shares.sum()).tolist(), strict=True))

    @property
    def temperature(self) -> float:
        """Of the contrastive similarities, learned."""
        return float(self.slit.require("representation").model.temperature)

    def look(self, path: str | None) -> Any:
        """Path -> figure, None without audio."""
        if not path:
            return None
        return self._run(attention_figure, self.slit, path)

    def moments(self, path: str | None, text: str) -> tuple[list, Any]:
        """Path and text -> (rows of start, end and score, figure)."""
        if not path or not text.strip():
            return [], None

        def work() -> tuple[list, Any]:
            hits = self.slit.moments(text.strip(), path, top_k=5)
            rows = [
                [round(hit.start_s, 2), round(hit.end_s, 2), round(hit.score, 4)]
                for hit in hits
            ]
            return rows, moments_figure(self.slit, path, hits)

        return self._run(work)

    def table(
        self, paths: Sequence[str] | None, question: str = ""
    ) -> tuple[list, str | None]:
        """Paths and a question (or none) -> (rows of file and text, a CSV of them).

        A file that cannot be used has its fault for a text; the others are served.
        """
        if not paths:
            return [], None
        question = question.strip()

        def work(some: Sequence[str]) -> list[str]:
            if question:
                return self.slit.answer(list(some), question)
            return self.slit.caption(list(some))

        rows = []
        for path, found in self._run(lambda: list(each(list(paths), work))):
            name = os.path.basename(path)
            fault = isinstance(found, Exception)
            text = fault_of(name, found).replace(path, name) if fault else found
            rows.append([name, text])
        kind = "answer" if question else "caption"
        folder = tempfile.mkdtemp(dir=self.folder.name)  # several visitors
        file = os.path.join(folder, f"{kind}s.csv")
        with open(file, "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", kind])
            writer.writerows(rows)
        return rows, file

    def search(self, text: str) -> tuple[list, str | None]:
        """Text -> (rows of score and file, path of the best)."""
        if not text.strip():
            return [], None
        hits = self._run(self.index.search, self.slit, text.strip())
        rows = [
            [round(hit.score, 4), os.path.relpath(hit.item, self.index.root)]
            for hit in hits
        ]
        return rows, hits[0].item if hits else None


def _words(line: str) -> list[str]:
    """Different words or phrases between commas."""
    return list(dict.fromkeys(w.strip() for w in line.split(",") if w.strip()))


def build(page: Page) -> Any:
    """The page as gradio Blocks.

    Raises:
        ImportError: gradio is not installed.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError(
            "slit demo needs gradio, which is not installed."
            " Run: python -m pip install 'espnet2_slit[demo]'"
        ) from error
    slit = page.slit
    with gr.Blocks(title="SLIT", analytics_enabled=False) as blocks:
        gr.Markdown(INTRODUCTION)
        with gr.Row():  # one below the other where the window is narrow
            with gr.Column(scale=2, min_width=320):
                audio = gr.Audio(
                    value=page.example,
                    sources=["upload", "microphone"],
                    type="filepath",
                    label="Audio",
                    buttons=["download"],
                )
            with (
                gr.Column(scale=3, min_width=320),
                gr.Tabs(overflow_behavior="wrap"),
            ):
                if slit.generator:
                    _writing_tabs(gr, page, audio)
                _classify_tab(gr, page, audio)
                if slit.representation:
                    _moments_tab(gr, page, audio)
                _look_tab(gr, page, audio)
                if page.index is not None:
                    _search_tab(gr, page)
    return blocks


def theme() -> Any:
    """Gradio's, with text and buttons dark enough to read (4.5 to 1, as WCAG asks)."""
    import gradio as gr

    return gr.themes.Default(primary_hue="blue").set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        color_accent="*primary_600",
        body_text_color_subdued="*neutral_500",
    )


def _writing_tabs(gr: Any, page: Page, audio: Any) -> None:
    """Caption, Ask and Many files."""
    with gr.Tab("Caption"):
        button = gr.Button("Describe", variant="primary")
        text = gr.Textbox(label="Caption", interactive=False)
        button.click(page.caption, audio, text, api_name="caption")
    with gr.Tab("Ask"):
        question = gr.Textbox(label="Question", value="How many whistles are there?")
        answers = gr.Textbox(
            label="Answers to choose from, separated by commas (empty: any)"
        )
        button = gr.Button("Ask", variant="primary")
        answer = gr.Textbox(label="Answer", interactive=False)
        asked = [audio, question, answers]
        when = (button.click, question.submit, answers.submit)
        gr.on(when, page.ask, asked, answer, api_name="ask")
    with gr.Tab("Many files"):
        files = gr.File(
            label="Audio files", file_count="multiple", type="filepath", height=160
        )
        question = gr.Textbox(label="Question to each file (empty: describe it)")
        button = gr.Button("Describe all", variant="primary")
        rows = gr.Dataframe(
            label="File and text",
            headers=["file", "text"],
            interactive=False,
            wrap=True,
            column_widths=["40%", "60%"],
        )
        written = gr.File(label="The table as CSV", interactive=False, height=100)
        button.click(page.table, [files, question], [rows, written], api_name="table")


def _classify_tab(gr: Any, page: Page, audio: Any) -> None:
    """Labels, and how they are scored."""
    routes = (["similarity", "matching"] if page.slit.representation else []) + (
        ["language_model"] if page.slit.generator else []
    )
    with gr.Tab("Classify"):
        labels = gr.Textbox(
            label="Labels, separated by commas", value="whistle, hum, rattle"
        )
        choices = [(route.replace("_", " "), route) for route in routes]
        route = gr.Radio(choices, value=routes[0], label="Scored by")
        button = gr.Button("Classify", variant="primary")
        chosen = gr.Label(label="Label that fits best")
        asked, when = [audio, labels, route], (button.click, labels.submit)
        gr.on(when, page.classify, asked, chosen, api_name="classify")


def _moments_tab(gr: Any, page: Page, audio: Any) -> None:
    """When something is heard, as rows and on the waveform."""
    with gr.Tab("Moments"):
        text = gr.Textbox(label="What to find", value="a rising hum")
        button = gr.Button("Find moments", variant="primary")
        picture = _picture(
            gr, "Waveform with the moments of the table below marked on it"
        )
        rows = gr.Dataframe(
            label="Moments, the best first",
            headers=["start, s", "end, s", "score"],
            interactive=False,
        )

        def find(path: str | None, text: str) -> tuple[list, np.ndarray | None]:
            found, figure = page.moments(path, text)
            return found, figure and pixels(figure)

        when = (button.click, text.submit)
        gr.on(when, find, [audio, text], [rows, picture], api_name="moments")


def _look_tab(gr: Any, page: Page, audio: Any) -> None:
    """The attention of the queries."""
    with gr.Tab("Look"):
        button = gr.Button("Show where the queries look", variant="primary")
        picture = _picture(gr, "Spectrogram, with where the queries look marked on it")

        def look(path: str | None) -> np.ndarray | None:
            figure = page.look(path)
            return figure and pixels(figure)

        button.click(look, audio, picture, api_name="look")


def _picture(gr: Any, text: str) -> Any:
    """Where a figure is shown; its title says what it is, `text` says so to readers."""
    return gr.Image(
        label=text,
        alt_text=text,
        show_label=False,
        interactive=False,
        buttons=["download", "fullscreen"],
    )


def _search_tab(gr: Any, page: Page) -> None:
    """Search of the folder."""
    with gr.Tab("Search"):
        text = gr.Textbox(
            label=f"Sound to look for in {page.index.root.name}", value="a rising hum"
        )
        button = gr.Button("Search", variant="primary")
        best = gr.Audio(label="Best match", interactive=False, buttons=["download"])
        table = gr.Dataframe(
            label="Files, the best first", headers=["score", "file"], interactive=False
        )
        when = (button.click, text.submit)
        gr.on(when, page.search, text, [table, best], api_name="search")


def launch(
    slit: SLIT,
    folder: str | os.PathLike | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    block: bool = True,
) -> Any:
    """Serve the page until it is stopped.

    Args:
        slit: system.
        folder: audio to search.
        host: address to serve on.
        port: of it; 0 takes a free one.
        block: False returns at once.

    Returns:
        The gradio Blocks, whose `local_url` is where the page is.
    """
    page = Page(slit, folder)
    blocks = build(page)
    blocks.launch(
        server_name=host,
        server_port=port or None,
        share=False,
        prevent_thread_lock=not block,
        max_file_size=MAX_UPLOAD,
        allowed_paths=[
            page.folder.name,
            *([str(page.index.root)] if page.index is not None else []),
        ],
        footer_links=[],
        ssr_mode=False,
        quiet=not block,
        theme=theme(),
        css=CSS,
    )
    return blocks
