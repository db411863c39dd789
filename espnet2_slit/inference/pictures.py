"""Pictures of audio for the demo page: spectrogram, attention, moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from espnet2_slit.data.audio import read_audio
from espnet2_slit.inference.attention import attention
from espnet2_slit.inference.slit import SLIT, Hit

MEL_BINS, MEL_RATE = 128, 100  # of the spectrogram: bins, columns per second
DPI = 150  # sharp on a screen of two pixels a point
COLUMNS = 1000  # of a waveform
READ_S = 60.0  # of a waveform at once


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


def attention_figure(slit: SLIT, path: str, instruction: str | None = None) -> Any:
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
    figure = Figure(figsize=(6.4, 4.2), dpi=DPI, layout="constrained")
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


def envelope(slit: SLIT, path: str, columns: int = COLUMNS) -> np.ndarray:
    """The loudest sample of each of so many parts of a file, read bit by bit.

    Args:
        slit: whose sample rate is read at.
        path: audio file of any length.
        columns: parts.

    Returns:
        (columns,) float32, 0 or more.
    """
    clips = slit.clips([path], any_length=True)
    duration_s = clips.durations_s[0]
    loudest = np.zeros(columns, np.float32)
    for start_s in np.arange(0, duration_s, READ_S):
        end_s = start_s + READ_S
        audio = clips.load_part(0, start_s, end_s if end_s < duration_s else None)
        times_s = start_s + np.arange(len(audio)) / slit.sample_rate
        places = np.minimum(times_s / duration_s * columns, columns - 1).astype(int)
        np.maximum.at(loudest, places, np.abs(audio))
    return loudest


def moments_figure(slit: SLIT, path: str, hits: Sequence[Hit]) -> Any:
    """The waveform with moments marked on it, the best one darkest.

    Args:
        slit: system.
        path: audio file of any length.
        hits: moments, best first.

    Returns:
        matplotlib Figure.
    """
    from matplotlib.figure import Figure

    duration_s = slit.clips([path], any_length=True).durations_s[0]
    loudest = envelope(slit, path)
    figure = Figure(figsize=(6.4, 2.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    seconds = (np.arange(COLUMNS) + 0.5) * duration_s / COLUMNS
    axes.fill_between(seconds, -loudest, loudest, color="0.45", linewidth=0)
    for place, hit in enumerate(hits):
        strength = 0.5 * (1 - place / len(hits))
        start_s, end_s = hit.start_s or 0.0, hit.end_s or duration_s
        axes.axvspan(start_s, end_s, color="tab:orange", alpha=0.15 + strength)
        middle = (start_s + end_s) / 2
        axes.text(
            middle,
            0.9,
            str(place + 1),
            ha="center",
            transform=(axes.get_xaxis_transform()),
        )
    axes.set_xlim(0, duration_s)
    axes.set_yticks([])
    axes.set_xlabel("seconds")
    axes.set_title("moments on the waveform, 1 the best")
    return figure


def pixels(figure: Any) -> np.ndarray:
    """A figure as an image: (height, width, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
