"""A page to try a system in the browser: caption, ask, classify, search, and look.

Owns the page and the picture of the attention; all results come from `inference`. It
needs gradio (extra: demo). The page is served by this machine to this machine unless
another host is asked for, sends no statistics, and gives out audio of the searched
folder only.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np

from espnet2_slit.data.audio import AudioError, read_audio
from espnet2_slit.inference.attention import attention
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.slit import SLIT

MEL_BINS, MEL_RATE = 128, 100  # of the spectrogram: bins, columns per second
MAX_UPLOAD = "200mb"
NO_AUDIO = "Upload or record audio first."


def log_mel(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """(MEL_BINS, columns) log-mel spectrogram of (S,) audio, for looking at.

    Args:
        audio: (S,) float32.
        sample_rate: Hz.
    """
    import torch
    import torchaudio

    hop = sample_rate // MEL_RATE
    size = 4 * hop
    samples = torch.from_numpy(np.pad(audio, (0, max(0, size - len(audio)))))
    spectrum = torch.stft(
        samples, size, hop, window=torch.hann_window(size), return_complex=True
    ).abs()  # (bins, columns)
    banks = torchaudio.functional.melscale_fbanks(
        size // 2 + 1, 20.0, sample_rate / 2, MEL_BINS, sample_rate, mel_scale="htk"
    )
    return (banks.T @ spectrum.square() + 1e-8).log10().numpy()


def attention_map(weights: np.ndarray, bands: int) -> np.ndarray:
    """Attention over the frames as a picture of time and, where there are, bands.

    Args:
        weights: (T,), bands of one moment side by side, low ones first.
        bands: frames that an encoder gives for one moment.

    Returns:
        (bands, T // bands), greatest value 1.
    """
    moments = len(weights) // bands
    picture = weights[: moments * bands].reshape(moments, bands).T
    return picture / max(float(picture.max()), 1e-12)


def encoder_bands(slit: SLIT) -> int:
    """Frequency bands that the encoder has a frame for; 1 where it has none."""
    identity = slit.encoder_identity
    banded = identity["kind"] == "beats" or "spectrogram" in str(
        identity.get("model_type", "")
    )
    return slit.encoder.grid.frames_per_step if banded else 1


def attention_figure(slit: SLIT, path: str, instruction: str | None = None):
    """Spectrogram with the queries' attention over it, and each query's own row.

    Args:
        slit: system.
        path: audio file.
        instruction: None for the representation part, else what the generator reads.

    Returns:
        matplotlib Figure.
    """
    from matplotlib.figure import Figure

    audio = read_audio(path, slit.sample_rate)
    weights = attention(slit, slit.clips([path]), instruction)[0].mean(axis=0)  # (Q,T)
    bands = encoder_bands(slit)
    duration_s = len(audio) / slit.sample_rate
    covered_s = weights.shape[1] / slit.encoder_identity["frames_per_second"]
    figure = Figure(figsize=(9, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    extent = (0, duration_s, 0, MEL_BINS)
    style = {"origin": "lower", "aspect": "auto"}
    spectrogram = log_mel(audio, slit.sample_rate)
    top.imshow(spectrogram, extent=extent, cmap="gray", **style)
    picture = attention_map(weights.mean(axis=0), bands)
    top.imshow(
        np.ma.masked_less(picture, 0.02),
        extent=(0, covered_s, 0, MEL_BINS),
        cmap="autumn",
        alpha=0.75 * picture,
        **style,
    )
    top.set_ylabel("mel bin")
    top.set_title("attention of all queries over the spectrogram")
    rows = np.stack([attention_map(row, bands).max(axis=0) for row in weights])
    rows_extent = (0, covered_s, -0.5, len(rows) - 0.5)
    bottom.imshow(rows, extent=rows_extent, cmap="magma", **style)
    bottom.set_ylabel("query")
    bottom.set_xlabel("seconds")
    top.set_xlim(0, duration_s)
    return figure


class Page:
    """What the page's buttons do; every method takes and returns plain values.

    Args:
        slit: system.
        folder: audio to search, None for none; indexed in its own `.slit_index`.

    Raises:
        InferenceError: a folder to search with a system that cannot search.
    """

    def __init__(self, slit: SLIT, folder: str | os.PathLike | None = None):
        self.slit, self.index = slit, None
        # Attention is read by hooks on the one model: requests go one by one.
        self.lock = threading.Lock()
        if folder:
            from espnet2_slit.inference.search_index import DEFAULT_NAME, SearchIndex

            self.index = SearchIndex(Path(folder).expanduser() / DEFAULT_NAME)
            self.index.update(slit, folder)

    def _run(self, work, *values):
        try:
            with self.lock:
                return work(*values)
        except (AudioError, InferenceError) as error:
            import gradio

            raise gradio.Error(str(error)) from error

    def caption(self, path):
        """Path -> caption."""
        if not path:
            return NO_AUDIO
        return self._run(self.slit.caption, path)

    def ask(self, path, question):
        """Path and question -> answer."""
        if not path:
            return NO_AUDIO
        if not question.strip():
            return "Write a question first."
        return self._run(self.slit.answer, path, question.strip())

    def classify(self, path, labels, route):
        """Path and labels, separated by commas -> {label: share}, for gradio's Label.

        Shares are the softmax of the scores, and say which label is ahead, not how
        probable it is.
        """
        words = list(dict.fromkeys(w.strip() for w in labels.split(",") if w.strip()))
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
    def temperature(self):
        """Of the contrastive similarities, learned."""
        return float(self.slit.representation.model.temperature)

    def look(self, path):
        """Path -> figure, None without audio."""
        if not path:
            return None
        return self._run(attention_figure, self.slit, path)

    def search(self, text):
        """Text -> (rows of score and file, path of the best)."""
        if not text.strip():
            return [], None
        hits = self._run(self.index.search, self.slit, text.strip())
        rows = [
            [round(hit.score, 4), os.path.relpath(hit.item, self.index.root)]
            for hit in hits
        ]
        return rows, hits[0].item if hits else None


def build(page: Page):
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
    routes = (["similarity", "matching"] if slit.representation else []) + (
        ["language_model"] if slit.generator else []
    )
    with gr.Blocks(title="SLIT", analytics_enabled=False) as blocks:
        gr.Markdown("# SLIT: describe, question and search sound")
        audio = gr.Audio(
            sources=["upload", "microphone"], type="filepath", label="Audio"
        )
        if slit.generator:
            with gr.Tab("Caption"):
                text = gr.Textbox(label="Caption")
                gr.Button("Describe", variant="primary").click(
                    page.caption, audio, text, api_name="caption"
                )
            with gr.Tab("Ask"):
                question = gr.Textbox(
                    label="Question", placeholder="How many times does it knock?"
                )
                answer = gr.Textbox(label="Answer")
                button = gr.Button("Ask", variant="primary")
                button.click(page.ask, [audio, question], answer, api_name="ask")
        with gr.Tab("Classify"):
            labels = gr.Textbox(
                label="Labels, separated by commas", value="dog, rain, siren"
            )
            route = gr.Radio(routes, value=routes[0], label="Scored by")
            chosen = gr.Label(label="Labels")
            button = gr.Button("Classify", variant="primary")
            button.click(
                page.classify, [audio, labels, route], chosen, api_name="classify"
            )
        with gr.Tab("Look"):
            plot = gr.Plot(label="Spectrogram and attention")
            button = gr.Button("Show where the queries look", variant="primary")
            button.click(page.look, audio, plot, api_name="look")
        if page.index is not None:
            with gr.Tab("Search"):
                text = gr.Textbox(label=f"Sound to look for in {page.index.root.name}")
                table = gr.Dataframe(headers=["score", "file"], interactive=False)
                best = gr.Audio(label="Best match", interactive=False)
                button = gr.Button("Search", variant="primary")
                button.click(page.search, text, [table, best], api_name="search")
    return blocks


def launch(
    slit: SLIT,
    folder: str | os.PathLike | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    block: bool = True,
):
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
        allowed_paths=[str(page.index.root)] if page.index is not None else [],
        footer_links=[],
        ssr_mode=False,
        quiet=not block,
    )
    return blocks
