"""Clips of any kind: files, arrays, cached frames, each with a length and a `load`.

Owns the forms in which callers hand over audio and what is kept between two passes. It
leaves decoding of files to `data.audio`, batches to `engine`.
"""

from __future__ import annotations

import math
import numbers
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from espnet2_slit.common.padded import Padded
from espnet2_slit.data.audio import (
    WINDOW_SLACK_S,
    AudioError,
    probe,
    read_audio,
    to_mono,
)
from espnet2_slit.data.clips import Clip
from espnet2_slit.data.kaldi_matrix import FeatureReader

REST_S = 0.1  # a last window shorter than this would say nothing
FORMS = (
    "a path, an array or tensor of samples with its sample rate as (array, rate) or"
    " sample_rate=, {'array': ..., 'sampling_rate': ...}, or a list of these"
)


class Clips(Protocol):
    """Clips as the engine reads them.

    Attributes:
        are_frames: whether `load` gives frames (T, D_a) or audio (S,).
        durations_s: seconds of each clip, to sort them by.
    """

    @property
    def are_frames(self) -> bool:
        """Whether `load` gives frames (T, D_a) or audio (S,)."""

    @property
    def durations_s(self) -> Sequence[float]:
        """Seconds of each clip."""

    def __len__(self) -> int: ...

    def load(self, i: int) -> np.ndarray:
        """Clip i, float32."""


class AudioClips:
    """Clips given as files or arrays, decoded when their batch comes.

    Args:
        items: clips in any of the FORMS.
        sample_rate: Hz of the arrays that come without one.
        target_rate: Hz of the encoder.
        longest_s: seconds that can be read at once.

    Raises:
        AudioError: a clip that cannot be used, before any is decoded.
    """

    are_frames = False

    def __init__(
        self,
        items: Sequence[Any],
        sample_rate: float | None,
        target_rate: int,
        longest_s: float = float("inf"),
    ):
        self.target_rate = target_rate
        self.items: list[Any] = []
        self.durations_s: list[float] = []
        for i, item in enumerate(items):
            item, rate = one_clip(item, i)
            rate = rate or sample_rate
            if isinstance(item, str):
                name, duration_s = item, probe(item).duration_s
                found: Any = (item, 0.0, None)
            elif not rate:
                raise AudioError(
                    f"clip {i} is an array without a sample rate. Pass sample_rate=, or"
                    " (array, rate)."
                )
            else:
                name = f"clip {i}"
                found = to_mono(item, rate, target_rate, name=name)
                duration_s = len(found) / target_rate
            refuse_too_long(name, duration_s, longest_s)
            self.items.append(found)
            self.durations_s.append(duration_s)

    @classmethod
    def of_clips(
        cls, clips: Iterable[Clip], target_rate: int, longest_s: float = float("inf")
    ) -> AudioClips:
        """Clips of a data directory.

        Args:
            clips: files, or parts of them.
            target_rate: Hz of the encoder.
            longest_s: seconds that can be read at once.
        """
        found = cls([], None, target_rate)
        for clip in clips:
            found.items.append((clip.path, clip.start_s, clip.end_s))
            found.durations_s.append(clip.duration_s())
            refuse_too_long(
                f"{clip.path}: clip {clip.id}", clip.duration_s(), longest_s
            )
        return found

    def __len__(self) -> int:
        return len(self.items)

    def name(self, i: int) -> str:
        """What an error calls a clip."""
        item = self.items[i]
        return item[0] if isinstance(item, tuple) else f"clip {i}"

    def load(self, i: int) -> np.ndarray:
        """(S,) float32 at the encoder's rate."""
        return self.load_part(i, 0.0, None)

    def load_part(self, i: int, start_s: float, end_s: float | None) -> np.ndarray:
        """A part of a clip; of a file, only that part is decoded.

        Args:
            i: of the clip.
            start_s: first second wanted.
            end_s: last second wanted; None for the end.

        Returns:
            (S,) float32 at the encoder's rate.
        """
        item = self.items[i]
        if isinstance(item, tuple):
            path, first_s, last_s = item
            end_s = last_s if end_s is None else first_s + end_s
            return read_audio(path, self.target_rate, first_s + start_s, end_s)
        first = round(start_s * self.target_rate)
        last = None if end_s is None else round(end_s * self.target_rate)
        return item[first:last]

    def cut(self, window_s: float) -> tuple[AudioClips, list[tuple[int, float, float]]]:
        """Windows that follow each other, as clips of their own.

        Args:
            window_s: seconds of each; a rest below REST_S stays with the last one.

        Returns:
            The windows, and for each its (clip, start, end in seconds).
        """
        parts, places = AudioClips([], None, self.target_rate), []
        for clip, duration_s in enumerate(self.durations_s):
            count = max(1, math.ceil((duration_s - REST_S) / window_s))
            for k in range(count):
                start_s = k * window_s
                end_s = (k + 1) * window_s if k + 1 < count else duration_s
                item = self.items[clip]
                if isinstance(item, tuple):
                    path, first_s, _ = item
                    parts.items.append((path, first_s + start_s, first_s + end_s))
                else:
                    parts.items.append(self.load_part(clip, start_s, end_s))
                parts.durations_s.append(end_s - start_s)
                places.append((clip, start_s, end_s))
        return parts, places


def refuse_too_long(name: str, duration_s: float, longest_s: float) -> None:
    """Raises AudioError for a clip longer than the system reads at once."""
    if duration_s > longest_s + WINDOW_SLACK_S:
        raise AudioError(
            f"{name}: lasts {duration_s:.1f} s, this system reads at most"
            f" {longest_s:.1f} s at once. Take it in windows (window_s of caption, or"
            " moments; an index has windows of its own), or cut it."
        )


class CachedClips:
    """Clips whose frames are cached.

    Args:
        scp: feats.scp.
        keys: sample ids, one for each clip.
        frames_per_second: of the encoder.
    """

    are_frames = True

    def __init__(
        self, scp: str | os.PathLike, keys: Iterable[str], frames_per_second: float
    ):
        self.reader = FeatureReader(scp)
        self.keys = list(keys)
        shapes = Path(scp).parent / "feats_shape"
        if shapes.is_file():
            from espnet2_slit.data.kaldi_dir import read_map

            table = read_map(shapes)
            frames = [int(table[key].split(",")[0]) for key in self.keys]
        else:
            frames = [len(self.reader[key]) for key in self.keys]
        self.durations_s = [count / frames_per_second for count in frames]

    def __len__(self) -> int:
        return len(self.keys)

    def load(self, i: int) -> np.ndarray:
        """(T, D_a) float32."""
        return self.reader[self.keys[i]]


class Subset:
    """Some of the clips, as clips of their own.

    Args:
        clips: all of them.
        indices: which.
    """

    def __init__(self, clips: Clips, indices: Sequence[int]):
        self.whole, self.indices = clips, indices
        self.are_frames = clips.are_frames
        self.durations_s = [clips.durations_s[i] for i in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, i: int) -> np.ndarray:
        """Audio or frames of one clip."""
        return self.whole.load(self.indices[i])


class FrameCache:
    """Frames of waveform clips between two passes, in a temporary file.

    Args:
        count: N clips.
        width: D_a.
        frames_per_second: of the encoder.
    """

    are_frames = True

    def __init__(self, count: int, width: int, frames_per_second: float):
        self.width, self.frames_per_second = width, frames_per_second
        self.places = [(0, 0)] * count
        self.durations_s = [0.0] * count
        self.file = tempfile.TemporaryFile()

    def __enter__(self) -> FrameCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __len__(self) -> int:
        return len(self.places)

    def put(self, batch: Sequence[int], frames: Padded) -> None:
        """Keep a batch.

        Args:
            batch: B indices of clips.
            frames: (B, T, D_a).
        """
        self.file.seek(0, os.SEEK_END)
        arrays, lengths = frames.values.float().cpu().numpy(), frames.mask().sum(dim=1)
        for clip, row, length in zip(batch, arrays, lengths.tolist(), strict=True):
            self.places[clip] = (self.file.tell(), length)
            self.durations_s[clip] = length / self.frames_per_second
            self.file.write(np.ascontiguousarray(row[:length]).tobytes())

    def load(self, i: int) -> np.ndarray:
        """(T, D_a) float32."""
        offset, length = self.places[i]
        self.file.seek(offset)
        data = self.file.read(length * self.width * 4)
        return np.frombuffer(data, np.float32).reshape(length, self.width)


# ------------------------------------------------------------------ forms of a clip


def one_clip(item: Any, place: int) -> tuple[str | np.ndarray, float | None]:
    """A clip in any of its forms -> (path, None), or (array, its rate or None).

    Args:
        item: see FORMS.
        place: of the clip in what was given, for the error.

    Raises:
        AudioError: none of the forms.
    """
    rate = None
    if isinstance(item, dict):  # a row of datasets; undecoded ones have a path alone
        rate = item.get("sampling_rate")
        item = item.get("path") if item.get("array") is None else item["array"]
    elif hasattr(item, "get_all_samples"):  # torchcodec's decoder, of datasets
        samples = item.get_all_samples()
        item, rate = samples.data, samples.sample_rate
    elif isinstance(item, tuple) and len(item) == 2:
        item, rate = item if _is_number(item[1]) else item[::-1]
    if isinstance(item, (str, os.PathLike)):
        return os.fspath(item), None
    if isinstance(item, Tensor):
        item = item.detach().cpu()
        # NumPy has no bfloat16
        item = (item.float() if item.is_floating_point() else item).numpy()
    if not isinstance(item, np.ndarray) or not (rate is None or _is_number(rate)):
        raise AudioError(
            f"clip {place}: expected {FORMS}; found {type(item).__name__}"
            + ("." if rate is None else f" with sample rate {rate!r}.")
        )
    return item, None if rate is None else float(rate)


def clip_list(audio: Any) -> tuple[list[Any], bool]:
    """What a caller gave as audio -> (list of clips, True if it was one clip)."""
    if isinstance(audio, tuple):
        one = len(audio) == 2 and any(_is_number(value) for value in audio)
    else:
        one = not isinstance(audio, (list, Iterator))
    return ([audio], True) if one else (list(audio), False)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def pad(arrays: Sequence[Any]) -> Padded:
    """Arrays of different length as one (B, longest, ...)."""
    arrays = [np.asarray(array) for array in arrays]
    lengths = [len(array) for array in arrays]
    shape = (len(arrays), max(lengths), *arrays[0].shape[1:])
    padded = np.zeros(shape, arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return Padded(torch.from_numpy(padded), torch.tensor(lengths))
