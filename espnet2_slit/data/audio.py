"""Reads any audio into mono float32 at one rate; every way it can fail has a name.

Owns the way from an open file or an array to a clip: mixing down, resampling (soxr),
the checks that need all samples. Whatever a file, its decoder or the resampler does,
there is audio or an `AudioError`. It asks `audio_file` for samples, `levels` what they
mean, and leaves windows and features to the audio encoder.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from typing import Any

import numpy as np

from espnet2_slit.data import containers, levels
from espnet2_slit.data.audio_file import (
    OTHER_DECODERS,
    RATES,
)
from espnet2_slit.data.audio_file import AudioError as AudioError
from espnet2_slit.data.audio_file import audio_fault, named, open_audio

# A clip below this cannot hold one 25 ms analysis window of any encoder we load.
MIN_DURATION_S = 0.01
# (C, S) and (S, C) arrays are both in use; nobody records more channels than this.
MAX_CHANNELS = 64
# A tail shorter than a step of the encoder's frames needs no window of its own.
WINDOW_SLACK_S = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AudioInfo:
    """What a file holds, known without keeping its samples.

    Attributes:
        sample_rate: Hz.
        channels: count.
        duration_s: seconds, of the whole file; counted where its header cannot say.
        plain: True where libsndfile alone reads all of it: one file behind a header
            that is right.
        floats: True where samples may lie above full scale.
    """

    sample_rate: int
    channels: int
    duration_s: float
    plain: bool = True
    floats: bool = False


@dataclass(frozen=True)
class Reading:
    """A clip and what had to be done to it.

    Attributes:
        samples: (S,) float32, mono, in [-1, 1].
        notes: what was mended, in words; () for most files.
    """

    samples: np.ndarray
    notes: tuple[str, ...] = ()


def check_length(name: str, seconds: float, longest_s: float | None) -> None:
    """Refuse a clip that the audio encoder will not read, before anything is computed.

    Args:
        name: of the clip.
        seconds: it lasts.
        longest_s: that the encoder reads; None for no limit.

    Raises:
        AudioError: it is longer.
    """
    if longest_s is not None and seconds > longest_s + WINDOW_SLACK_S:
        raise AudioError(
            f"{name} lasts {seconds:.1f} s, longer than the {longest_s:.1f} s that the"
            " audio encoder reads. Cut it into segments, or raise"
            " audio_encoder_conf.max_windows (and train with it)."
        )


# ------------------------------------------------------------------------ reading


def is_audio(path: str | os.PathLike) -> bool:
    """Whether a file is audio by its content, or at least by its name."""
    if os.fspath(path).lower().endswith(containers.AUDIO_SUFFIXES):
        return True
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as stream:
            return containers.kind_of(stream.read(containers.HEAD_BYTES)) is not None
    except OSError:
        return False


def probe(path: str | os.PathLike) -> AudioInfo:
    """Look into a file.

    Args:
        path: audio file of any format libsndfile reads, or ffmpeg where it is there.

    Returns:
        AudioInfo.

    Raises:
        AudioError: missing, empty, truncated or unreadable file; 0 s of audio.
    """
    with open_audio(path) as (layout, parts):
        seconds, facts = 0.0, []
        for opened in parts:
            with opened as part:
                frames = part.frames
                if frames is None:
                    frames = sum(len(block) for block in part.blocks(0, None))
                file = part.file
                seconds += frames / file.samplerate
                facts.append((file.samplerate, file.channels, file.subtype))
        plain = not layout.note and not layout.patches and part.frames is not None
        # Others look at the name first.
        suffix = os.path.splitext(os.fspath(path))[1].lower()
        plain = plain and suffix in containers.SNDFILE_SUFFIXES
        floats = any(kind in ("FLOAT", "DOUBLE") for _, _, kind in facts)
    if seconds < MIN_DURATION_S:
        raise audio_fault(
            path,
            f"holds {seconds:.4f} s of audio, expected at least {MIN_DURATION_S} s",
            "Remove it from the data",
        )
    return AudioInfo(facts[0][0], facts[0][1], seconds, plain, floats)


class _Resampler:
    """soxr block by block, to the bit what it gives for the whole at once."""

    def __init__(self, sample_rate, target_rate):
        self.stream = None
        if sample_rate != target_rate:
            import soxr

            self.stream = soxr.ResampleStream(sample_rate, target_rate, 1, "float32")

    def __call__(self, block, last=False):
        if self.stream is None:
            return block
        return self.stream.resample_chunk(block, last=last)


def _decode(part, path, target_rate, start_s, end_s, channel=None):
    """A stretch of one part: ((S,) float32 at `target_rate`, Levels)."""
    file, frames = part.file, part.frames
    rate = file.samplerate
    first = round(start_s * rate)
    wanted = None if frames is None or not part.exact else frames - first
    if end_s is not None and end_s >= 0:
        until = round(end_s * rate) - first
        wanted = until if wanted is None else min(wanted, until)
    found = levels.Levels(file.channels)
    resample = _Resampler(rate, target_rate)
    pieces, got = [], 0
    for block in part.blocks(first, wanted) if first >= 0 else ():
        got += len(block)
        pieces.append(resample(found.mix(block, channel)))
    if not got and (start_s > 0 or end_s is not None):
        lasts = "" if frames is None else f", it lasts {frames / rate:.3f} s"
        raise audio_fault(
            path,
            f"has no audio from {start_s} s to {end_s} s{lasts}",
            "Correct the segments file",
        )
    if part.exact and frames is not None and got < wanted:
        raise audio_fault(
            path,
            f"is truncated: {got / rate:.3f} s could be decoded of"
            f" {wanted / rate:.3f} s that its header promises",
            "Copy or export it again",
        )
    pieces.append(resample(np.zeros(0, np.float32), last=True))
    return np.concatenate(pieces), found


def _finish(path, audio, found, target_rate, notes):
    """The checks that need all samples, and one factor for all of them."""
    if len(audio) < MIN_DURATION_S * target_rate:
        raise audio_fault(
            path,
            f"holds {len(audio) / target_rate:.4f} s of audio, expected at least"
            f" {MIN_DURATION_S} s",
            "Remove it from the data",
        )
    fault = found.fault()
    if fault:
        raise audio_fault(path, fault, "Export it again, or remove it from the data")
    audio, more = found.scale(audio)
    return Reading(np.ascontiguousarray(audio), tuple([*notes, *more]))


def read(
    path: str | os.PathLike,
    target_rate: int,
    start_s: float = 0.0,
    end_s: float | None = None,
    content: bytes | None = None,
) -> Reading:
    """Decode a file, or a stretch of it, and say what had to be mended.

    Args:
        path: audio file of any format, rate and channel count that libsndfile reads,
            or ffmpeg where it is there.
        target_rate: Hz wanted.
        start_s: first second wanted.
        end_s: last second wanted; None or a negative value means the end.
        content: the bytes, where `path` is only their name.

    Returns:
        Reading.

    Raises:
        AudioError: missing, empty, truncated or unreadable file, 0 s, samples that
            cannot be sound.
    """
    stretch = (path, target_rate, start_s, end_s)
    with open_audio(path, content) as (layout, parts):
        notes = [layout.note] if layout.note else []
        if len(parts) > 1:
            return _read_chain(parts, *stretch, notes)
        with parts[0] as part:
            audio, found = _decode(part, *stretch)
    channel = None if found.broken else found.cancelled()
    if channel is not None:
        with open_audio(path, content) as (_, parts), parts[0] as part:
            audio, found = _decode(part, *stretch, channel)
        notes.append(levels.CANCELLING)
    return _finish(path, audio, found, target_rate, notes)


def _read_chain(parts, path, target_rate, start_s, end_s, notes):
    """Files that lie behind each other in one; each may have a rate of its own."""
    pieces, done = [], []
    for opened in parts:
        with opened as part:
            audio, found = _decode(part, path, target_rate, 0.0, None)
        one = _finish(path, audio, found, target_rate, ())
        pieces.append(one.samples)
        done += one.notes
    audio = np.concatenate(pieces)
    first = round(start_s * target_rate)
    end = len(audio)
    if end_s is not None and end_s >= 0:
        end = min(end, round(end_s * target_rate))
    if first < 0 or end <= first:
        raise audio_fault(
            path,
            f"has no audio from {start_s} s to {end_s} s, it lasts"
            f" {len(audio) / target_rate:.3f} s",
            "Correct the segments file",
        )
    return Reading(audio[first:end], tuple(dict.fromkeys([*notes, *done])))


def read_audio(
    path: str | os.PathLike,
    target_rate: int,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> np.ndarray:
    """Decode a file, or a stretch of it; what had to be mended is logged.

    Args:
        path: as for `read`.
        target_rate: Hz wanted.
        start_s: first second wanted.
        end_s: last second wanted; None or a negative value means the end.

    Returns:
        (S,) float32, mono at `target_rate`.

    Raises:
        AudioError: as for `read`.
    """
    found = read(path, target_rate, start_s, end_s)
    _log(path, found.notes)
    return found.samples


def _log(name, notes):
    for note in notes:
        # Loud music overshoots when it is decoded: too common to warn of.
        common = note in (levels.ABOVE, containers.NO_LENGTH, OTHER_DECODERS)
        logger.log(logging.INFO if common else logging.WARNING, "%s: %s", name, note)


# ------------------------------------------------------------------------- arrays


def to_mono(
    audio: Any, sample_rate: Any, target_rate: int, name: str = "audio array"
) -> np.ndarray:
    """Down-mix and resample one clip given as an array.

    Args:
        audio: (S,), (S, channels) or (channels, S): numpy array or tensor. Integers are
            scaled by their type's range, floats as those of a file.
        sample_rate: Hz of `audio`.
        target_rate: Hz wanted.
        name: what to call the clip in an error.

    Returns:
        (S',) float32, mono at `target_rate`.

    Raises:
        AudioError: 0 s, samples that cannot be sound, an impossible shape or rate.
    """
    with named(name):
        found = _array(audio, sample_rate, target_rate, name)
    _log(name, found.notes)
    return found.samples


def _array(audio, sample_rate, target_rate, name):
    if hasattr(audio, "detach"):
        audio = audio.detach().cpu()
        if audio.is_floating_point():
            audio = audio.float()  # numpy has no bfloat16
        audio = audio.numpy()
    audio = np.asarray(audio)
    if audio.ndim == 2 and audio.size:
        channel_axis = int(audio.shape[1] <= audio.shape[0])
        if audio.shape[channel_axis] > MAX_CHANNELS:
            raise audio_fault(
                name,
                f"has shape {audio.shape}, expected (samples,) or at most"
                f" {MAX_CHANNELS} channels",
                "Pass one clip at a time, several clips as a list",
            )
        audio = audio if channel_axis else audio.T  # (S,channels)
    elif audio.ndim != 1 and audio.size:
        raise audio_fault(
            name,
            f"has shape {audio.shape}, expected (samples,) or (samples, channels)",
            "Pass one clip at a time, several clips as a list",
        )
    if audio.dtype.kind in "iu":
        try:
            audio = levels.integers_to_float(audio)
        except ValueError as error:
            raise audio_fault(name, str(error), "Pass floats in [-1, 1]") from error
    elif audio.dtype.kind != "f":
        raise audio_fault(
            name, f"holds {audio.dtype}, expected numbers", "Pass floats in [-1, 1]"
        )
    rate = _rate(sample_rate, name)
    with np.errstate(over="ignore"):  # beyond float32: infinite, and named below
        audio = audio.astype(np.float32, copy=False)
    audio = audio.reshape(len(audio), -1) if audio.size else audio.reshape(0, 1)
    found = levels.Levels(audio.shape[1])
    mono, notes = found.mix(audio), []
    channel = None if found.broken else found.cancelled()
    if channel is not None:
        found = levels.Levels(audio.shape[1])
        mono = found.mix(audio, channel)
        notes.append(levels.CANCELLING)
    resample = _Resampler(rate, target_rate)
    mono = np.concatenate([resample(mono), resample(mono[:0], last=True)])
    return _finish(name, mono, found, target_rate, notes)


def _rate(sample_rate, name):
    """A rate that can be one, as a number.

    Raises:
        AudioError: it is none.
    """
    try:
        rate = float(sample_rate)
    except (TypeError, ValueError):
        rate = 0.0
    if not RATES[0] <= rate <= RATES[1]:
        raise audio_fault(
            name,
            f"has sample rate {sample_rate}, expected {RATES[0]} to {RATES[1]} Hz",
            "Pass its rate in Hz",
        )
    return int(rate) if rate == int(rate) else rate
