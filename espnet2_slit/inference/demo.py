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
from espnet2_slit.inference.pictures import attention_figure, moments_figure
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.slit import SLIT

MAX_UPLOAD = "200mb"
NO_AUDIO = "Upload or record audio first."
EXAMPLE_RATE = 16000


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
        with tempfile.NamedTemporaryFile(
            "w", dir=self.folder.name, suffix=".csv", delete=False, newline=""
        ) as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", "answer" if question else "caption"])
            writer.writerows(rows)
        return rows, stream.name

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
            " Run: python -m pip install gradio"
        ) from error
    slit = page.slit
    with gr.Blocks(title="SLIT", analytics_enabled=False) as blocks:
        gr.Markdown("# SLIT: describe, question and search sound")
        audio = gr.Audio(
            value=page.example,
            sources=["upload", "microphone"],
            type="filepath",
            label="Audio (at first two whistles and a hum that rises)",
        )
        if slit.generator:
            _writing_tabs(gr, page, audio)
        _classify_tab(gr, page, audio)
        if slit.representation:
            _moments_tab(gr, page, audio)
        with gr.Tab("Look"):
            plot = gr.Plot(label="Spectrogram and where the queries look on it")
            button = gr.Button("Show where the queries look", variant="primary")
            button.click(page.look, audio, plot, api_name="look")
        if page.index is not None:
            _search_tab(gr, page)
    return blocks


def _writing_tabs(gr: Any, page: Page, audio: Any) -> None:
    """Caption, Ask and Many files."""
    with gr.Tab("Caption"):
        text = gr.Textbox(label="Caption")
        gr.Button("Describe", variant="primary").click(
            page.caption, audio, text, api_name="caption"
        )
    with gr.Tab("Ask"):
        question = gr.Textbox(label="Question", value="How many whistles are there?")
        answers = gr.Textbox(
            label="Answers to choose from, separated by commas (empty: any)"
        )
        answer = gr.Textbox(label="Answer")
        button = gr.Button("Ask", variant="primary")
        button.click(page.ask, [audio, question, answers], answer, api_name="ask")
    with gr.Tab("Many files"):
        files = gr.File(label="Audio files", file_count="multiple", type="filepath")
        question = gr.Textbox(label="Question to each file (empty: describe it)")
        rows = gr.Dataframe(
            label="File and text", headers=["file", "text"], interactive=False
        )
        written = gr.File(label="The table as CSV", interactive=False)
        button = gr.Button("Describe all", variant="primary")
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
        route = gr.Radio(routes, value=routes[0], label="Scored by")
        chosen = gr.Label(label="Labels")
        button = gr.Button("Classify", variant="primary")
        button.click(page.classify, [audio, labels, route], chosen, api_name="classify")


def _moments_tab(gr: Any, page: Page, audio: Any) -> None:
    """When something is heard, as rows and on the waveform."""
    with gr.Tab("Moments"):
        text = gr.Textbox(label="What to find", value="a rising hum")
        rows = gr.Dataframe(
            label="Moments, the best first",
            headers=["start s", "end s", "score"],
            interactive=False,
        )
        plot = gr.Plot(label="Moments on the waveform")
        button = gr.Button("Find moments", variant="primary")
        button.click(page.moments, [audio, text], [rows, plot], api_name="moments")


def _search_tab(gr: Any, page: Page) -> None:
    """Search of the folder."""
    with gr.Tab("Search"):
        text = gr.Textbox(label=f"Sound to look for in {page.index.root.name}")
        table = gr.Dataframe(
            label="Files, the best first", headers=["score", "file"], interactive=False
        )
        best = gr.Audio(label="Best match", interactive=False)
        button = gr.Button("Search", variant="primary")
        button.click(page.search, text, [table, best], api_name="search")


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
    )
    return blocks
