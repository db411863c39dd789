"""Windows of a clip in the space of texts: when in the audio, and audio of any length.

Owns cutting a clip's frames into windows that overlap by half, which the queries read
one by one, and the choice of moments among them. A clip is read in parts, so that an
hour needs the memory of a minute. A system that was trained on whole clips needs no
other training: each window is a clip to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from espnet2_slit.common.padded import Padded
from espnet2_slit.inference.clips import AudioClips, Clips
from espnet2_slit.inference.engine import Engine, computes
from espnet2_slit.inference.ranking import similarity
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.retrieval import embed_texts

# Seconds of the windows among which moments are looked for.
MOMENT_WINDOWS_S = (2.5, 5.0, 10.0)
# Of two moments that share more than this part of the shorter one, one is shown.
MAX_SHARED = 0.5


@dataclass(frozen=True)
class Windows:
    """Some windows of a clip.

    Attributes:
        starts_s: (W,) seconds.
        ends_s: (W,) seconds.
        embeddings: (W, Q, E) float32, unit length along E.
    """

    starts_s: np.ndarray
    ends_s: np.ndarray
    embeddings: np.ndarray


@dataclass(frozen=True)
class Moment:
    """A part of a clip that a text describes.

    Attributes:
        start_s: seconds.
        end_s: seconds.
        score: cosine; higher is better.
    """

    start_s: float
    end_s: float
    score: float


def window_starts(steps: int, size: int) -> np.ndarray:
    """Starts of windows that overlap by half; the last one is moved back to be full.

    Args:
        steps: of the clip.
        size: steps of a window.

    Returns:
        (W,) in steps; [0] where the clip is not longer than a window.
    """
    starts = np.arange(0, max(steps - size, 0) + 1, max(size // 2, 1))
    last = max(steps - size, 0)
    return starts if starts[-1] == last else np.append(starts, last)


def window_steps(engine: Engine, window_s: Sequence[float]) -> list[int]:
    """Steps of the encoder in windows of so many seconds.

    Args:
        engine: a system.
        window_s: one or several lengths, seconds.

    Raises:
        InferenceError: a window below one step, or longer than is read at once.
    """
    step_s = engine.encoder.grid.step / engine.sample_rate
    sizes = []
    for seconds in window_s:
        if not step_s <= seconds <= engine.longest_s:
            raise InferenceError(
                f"window_s: expected {step_s:.3g} to {engine.longest_s:.4g} s, which is"
                f" what the system reads at once, found {seconds}."
            )
        sizes.append(round(seconds / step_s))
    if not sizes:
        raise InferenceError("window_s: expected at least one length, found none.")
    return sizes


def iterate_windows(
    engine: Engine, clips: Clips, clip: int, window_s: Sequence[float]
) -> Iterator[Windows]:
    """Windows of a clip, part by part; call it under the engine's lock.

    Args:
        engine: with a representation part.
        clips: waveforms of any length, or frames.
        clip: which of them.
        window_s: lengths of windows, seconds.

    Yields:
        Windows of one length from one part of the clip.

    Raises:
        InferenceError: an impossible length.
    """
    component, grid = engine.require("representation"), engine.encoder.grid
    step_s, per_step = grid.step / engine.sample_rate, grid.frames_per_step
    sizes = window_steps(engine, window_s)
    for begin, frames, windows in _parts(engine, clips, clip, sizes):
        for size in sizes:
            starts = np.array([start for start, other in windows if other == size])
            per_batch = max(1, int(engine.batch_seconds / (size * step_s)))
            for k in range(0, len(starts), per_batch):
                some = starts[k : k + per_batch]
                places = (some - begin) * per_step
                rows = [frames[i : i + size * per_step] for i in places.tolist()]
                lengths = torch.tensor([len(row) for row in rows], device=engine.device)
                padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
                audio, _ = component.model.embed_audio(Padded(padded, lengths))
                ends_s = np.minimum((some + size) * step_s, clips.durations_s[clip])
                yield Windows(some * step_s, ends_s, audio.float().cpu().numpy())


@computes
def embed_windows(
    engine: Engine, clips: Clips, clip: int, window_s: Sequence[float]
) -> list[Windows]:
    """All windows of a clip, as of `iterate_windows`.

    Args:
        engine: with a representation part.
        clips: waveforms of any length, or frames.
        clip: which of them.
        window_s: lengths of windows, seconds.
    """
    return list(iterate_windows(engine, clips, clip, window_s))


def _parts(
    engine: Engine, clips: Clips, clip: int, sizes: Sequence[int]
) -> Iterator[tuple[int, Tensor, list[tuple[int, int]]]]:
    """Parts of a clip, each as long as is read at once.

    Yields:
        (first step, frames (T, D_a), windows that lie in the part as (start, size)).
    """
    component, grid = engine.require("representation"), engine.encoder.grid
    step_s = grid.step / engine.sample_rate
    duration_s = clips.durations_s[clip]
    audio = clips if isinstance(clips, AudioClips) else None
    if audio is not None:
        total = grid.steps(round(duration_s * engine.sample_rate))
        seconds = min(engine.longest_s, max(engine.batch_seconds, max(sizes) * step_s))
        most = max(int(seconds / step_s) - 1, max(sizes))  # one for the rounding below
    else:
        (frames,), _ = engine.frames(component, clips, [clips.load(clip)])
        most = total = max(1, len(frames) // grid.frames_per_step)
    windows = sorted(
        (int(start), size) for size in sizes for start in window_starts(total, size)
    )
    while windows:
        begin = windows[0][0]
        inside = [w for w in windows if min(sum(w), total) <= begin + most]
        windows = [w for w in windows if min(sum(w), total) > begin + most]
        if audio is not None:
            # A step more: a file of another rate ends between two samples of ours.
            end = max(sum(window) for window in inside) + 1
            end_s = None if end >= total else end * step_s
            samples = audio.load_part(clip, begin * step_s, end_s)
            (frames,), _ = engine.frames(component, clips, [samples])
            yield begin, frames, inside
        else:
            yield 0, frames, inside


def best_moments(
    starts_s: np.ndarray, ends_s: np.ndarray, scores: np.ndarray, top_k: int
) -> list[int]:
    """The best windows of a clip, of which no two show much the same.

    Args:
        starts_s: (W,).
        ends_s: (W,).
        scores: (W,).
        top_k: how many are wanted.

    Returns:
        Indices, best first.
    """
    chosen: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if len(chosen) == top_k:
            break
        shared = np.minimum(ends_s[chosen], ends_s[i]) - np.maximum(
            starts_s[chosen], starts_s[i]
        )
        shorter = np.minimum((ends_s - starts_s)[chosen], ends_s[i] - starts_s[i])
        if np.all(shared < MAX_SHARED * shorter):
            chosen.append(i)
    return chosen


@computes
def find_moments(
    engine: Engine,
    clips: Clips,
    clip: int,
    texts: Sequence[str],
    top_k: int = 10,
    window_s: Sequence[float] = MOMENT_WINDOWS_S,
) -> list[list[Moment]]:
    """When in a clip what texts describe is heard.

    Args:
        engine: with a representation part.
        clips: waveforms of any length, or frames.
        clip: which of them.
        texts: M texts.
        top_k: moments for each text.
        window_s: lengths of the windows among which they are chosen.

    Returns:
        For each text moments, best first.
    """
    text = embed_texts(engine, texts)  # (M,E)
    starts, ends, scores = [], [], []
    for found in iterate_windows(engine, clips, clip, window_s):
        starts.append(found.starts_s)
        ends.append(found.ends_s)
        scores.append(similarity(found.embeddings, text))  # (M,W)
    start, end = np.concatenate(starts), np.concatenate(ends)
    return [
        [
            Moment(float(start[i]), float(end[i]), float(row[i]))
            for i in best_moments(start, end, row, top_k)
        ]
        for row in np.concatenate(scores, axis=1)
    ]
