"""Reads any audio into mono float32 at one rate; every way it can fail has a name.

Owns decoding (libsndfile), down-mixing, resampling (soxr) and the checks at that
border. It leaves windows and features to the audio encoder.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# A clip below this cannot hold one 25 ms analysis window of any encoder we load.
MIN_DURATION_S = 0.01
# (C, S) and (S, C) arrays are both in use; nobody records more channels than this.
MAX_CHANNELS = 64


class AudioError(ValueError):
    """Audio that cannot be used; the message names the file, the fault, the remedy."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says, before anything is decoded.

    Attributes:
        sample_rate: Hz.
        channels: count.
        duration_s: seconds, of the whole file.
    """

    sample_rate: int
    channels: int
    duration_s: float


def _fault(path, fault, remedy):
    return AudioError(f"{path}: {fault}. {remedy}")


def _check_file(path):
    """Raise AudioError for what can be seen without decoding."""
    text = os.fspath(path)
    if text.rstrip().endswith("|"):
        raise _fault(
            text,
            "is a shell command, expected an audio file",
            "Run the command once and name its output file (commands in wav.scp are"
            " never executed)",
        )
    file = Path(text)
    if file.is_dir():
        raise _fault(text, "is a folder, expected an audio file", "Name a file in it")
    if not file.exists():
        raise _fault(
            text,
            "no such audio file",
            "Check the path (a relative one starts" " from the working directory)",
        )
    if file.stat().st_size == 0:
        raise _fault(text, "the file is empty (0 bytes)", "Copy or export it again")


def _missing_wav_bytes(path):
    """Bytes that a RIFF header promises and the file does not have.

    libsndfile quietly shortens a cut-off WAV file; a clip whose second half is gone
    would then train the model on a caption that describes sounds it never hears.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        if stream.read(4) != b"RIFF":
            return 0
        stream.seek(12)
        while True:
            header = stream.read(8)
            if len(header) < 8:
                return 0
            name, length = struct.unpack("<4sI", header)
            if name == b"data":
                # Writers to a pipe leave a placeholder near 2^31 or 2^32 here.
                if length >= 0x7FFFF000:
                    return 0
                return max(0, stream.tell() + length - size)
            stream.seek(length + length % 2, os.SEEK_CUR)


def probe(path):
    """Read a file's header.

    Args:
        path: audio file of any format libsndfile reads.

    Returns:
        AudioInfo.

    Raises:
        AudioError: missing, empty, truncated or unreadable file; 0 s of audio.
    """
    import soundfile

    _check_file(path)
    missing = _missing_wav_bytes(path)
    if missing:
        raise _fault(
            path,
            f"the WAV file is truncated: its header promises {missing} more bytes than"
            " the file has",
            "Copy or export it again",
        )
    try:
        info = soundfile.info(os.fspath(path))
    except (RuntimeError, OSError) as error:
        raise _fault(
            path,
            f"cannot be read as audio ({error})",
            "Convert it to wav or flac, e.g. with ffmpeg",
        ) from error
    duration_s = info.frames / info.samplerate
    if duration_s < MIN_DURATION_S:
        raise _fault(
            path,
            f"holds {duration_s:.4f} s of audio, expected at least {MIN_DURATION_S} s",
            "Remove it from the data",
        )
    return AudioInfo(info.samplerate, info.channels, duration_s)


def to_mono(audio, sample_rate, target_rate, name="audio array"):
    """Down-mix and resample one clip given as an array.

    Args:
        audio: (S,), (S, channels) or (channels, S): numpy array or tensor. Integers are
            scaled by their type's range, floats are taken as they are.
        sample_rate: Hz of `audio`.
        target_rate: Hz wanted.
        name: what to call the clip in an error.

    Returns:
        (S',) float32, mono at `target_rate`.

    Raises:
        AudioError: 0 s, NaN or infinite samples, an impossible shape or rate.
    """
    if hasattr(audio, "detach"):
        audio = audio.detach().cpu().numpy()
    audio = np.asarray(audio)
    if audio.ndim == 2 and audio.size:
        channel_axis = int(audio.shape[1] <= audio.shape[0])
        if audio.shape[channel_axis] > MAX_CHANNELS:
            raise _fault(
                name,
                f"has shape {audio.shape}, expected (samples,) or at most"
                f" {MAX_CHANNELS} channels",
                "Pass one clip at a time, several clips as a list",
            )
    elif audio.ndim != 1 and audio.size:
        raise _fault(
            name,
            f"has shape {audio.shape}, expected (samples,) or (samples, channels)",
            "Pass one clip at a time, several clips as a list",
        )
    if audio.dtype.kind in "iu":
        limits = np.iinfo(audio.dtype)
        middle = (limits.max + limits.min + 1) / 2  # 0 for signed, 128 for uint8
        audio = (audio.astype(np.float32) - middle) / (limits.max - middle + 1)
    elif audio.dtype.kind == "f":
        audio = audio.astype(np.float32)
    else:
        raise _fault(
            name, f"holds {audio.dtype}, expected numbers", "Pass floats in [-1, 1]"
        )
    if audio.ndim == 2 and audio.size:
        audio = audio.mean(axis=channel_axis)  # (S,)
    if not sample_rate or sample_rate < 0:
        raise _fault(name, f"has sample rate {sample_rate}", "Pass its rate in Hz")
    if audio.size < MIN_DURATION_S * sample_rate:
        raise _fault(
            name,
            f"holds {audio.size / sample_rate:.4f} s of audio, expected at least"
            f" {MIN_DURATION_S} s",
            "Remove it from the data",
        )
    if not np.isfinite(audio).all():
        count = int(np.size(audio) - np.isfinite(audio).sum())
        raise _fault(
            name,
            f"{count} of {audio.size} samples are NaN or infinite",
            "Export it again, or remove it from the data",
        )
    if int(sample_rate) != int(target_rate):
        import soxr

        audio = soxr.resample(audio, sample_rate, target_rate)
    return np.ascontiguousarray(audio, dtype=np.float32)


def read_audio(path, target_rate, start_s=0.0, end_s=None):
    """Decode a file, or a stretch of it.

    Args:
        path: audio file of any format, rate and channel count libsndfile reads.
        target_rate: Hz wanted.
        start_s: first second wanted.
        end_s: last second wanted; None or a negative value means the end.

    Returns:
        (S,) float32, mono at `target_rate`.

    Raises:
        AudioError: missing, empty, truncated or unreadable file, 0 s, NaN samples.
    """
    import soundfile

    info = probe(path)
    first = round(start_s * info.sample_rate)
    wanted = round(info.duration_s * info.sample_rate) - first
    if end_s is not None and end_s >= 0:
        wanted = min(wanted, round(end_s * info.sample_rate) - first)
    if first < 0 or wanted <= 0:
        raise _fault(
            path,
            f"has no audio from {start_s} s to {end_s} s, it lasts"
            f" {info.duration_s:.3f} s",
            "Correct the segments file",
        )
    try:
        audio, sample_rate = soundfile.read(
            os.fspath(path), frames=wanted, start=first, dtype="float32", always_2d=True
        )
    except (RuntimeError, OSError) as error:
        raise _fault(
            path,
            f"breaks off while it is decoded ({error}): truncated or damaged",
            "Copy or export it again",
        ) from error
    if len(audio) < wanted:
        raise _fault(
            path,
            f"is truncated: {len(audio) / sample_rate:.3f} s could be decoded of"
            f" {wanted / sample_rate:.3f} s that its header promises",
            "Copy or export it again",
        )
    return to_mono(audio.mean(axis=1), sample_rate, target_rate, name=path)
