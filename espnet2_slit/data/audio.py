"""Reads any audio into mono float32 at one rate; every way it can fail has a name.

Owns decoding, the checks at that border and resampling (soxr): whatever a file, its
decoder or the resampler does, there is audio or an `AudioError`. It asks `containers`
what a file promises, `levels` what its samples mean, and leaves windows and features to
the audio encoder.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import mmap
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_slit.data import containers, levels, other_decoders

# A clip below this cannot hold one 25 ms analysis window of any encoder we load.
MIN_DURATION_S = 0.01
# (C, S) and (S, C) arrays are both in use; nobody records more channels than this.
MAX_CHANNELS = 64
# Hz of what can be sound: from infrasound to bats. A header beyond is wrong, and its
# length in seconds would fill the memory.
RATES = (1000, 1_000_000)
BLOCK_FRAMES = 65536
# A tail shorter than a step of the encoder's frames needs no window of its own.
WINDOW_SLACK_S = 0.1
OTHER_DECODERS = "read by ffmpeg's decoders"
UNKNOWN_FRAMES = 2**62  # libsndfile's word for "no length" is 2^63 - 1

logger = logging.getLogger(__name__)


class AudioError(ValueError):
    """Audio that cannot be used; the message names the file, the fault, the remedy."""


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


def check_length(name, seconds, longest_s):
    """Refuse a clip that the audio encoder will not read, before anything is computed.

    Args:
        name: of the clip.
        seconds: it lasts.
        longest_s: that the encoder reads; None for no limit.

    Raises:
        AudioError: it is longer.
    """
    if longest_s is not None and seconds > longest_s + WINDOW_SLACK_S:
        raise _fault(
            name,
            f"lasts {seconds:.1f} s, longer than the {longest_s:.1f} s that the audio"
            " encoder reads",
            "Cut it into segments, or raise audio_encoder_conf.max_windows (and train"
            " with it)",
        )


def _fault(path, fault, remedy):
    return AudioError(f"{path}: {fault}. {remedy}")


# ------------------------------------------------------------------------ sources


class _Memory(mmap.mmap):
    """A file in memory that may be sought beyond its end, as any file may."""

    def seek(self, position, whence=os.SEEK_SET):
        """Go to a place, the end for all beyond it."""
        origin = (0, self.tell(), len(self))[whence]
        super().seek(min(max(origin + position, 0), len(self)))


class _Source:
    """A file, or bytes that a command gave; open while its block is.

    Args:
        path: of a file, or what to call the bytes.
        content: the bytes; None opens `path`.
        name: what to call it in an error; default: its path.
    """

    def __init__(self, path, content: bytes | None = None, name=None):
        self.path, self.content = path, content
        self.name = name or path
        self.data: bytes | mmap.mmap = content or b""

    def __enter__(self) -> _Source:
        if self.content is None:
            _check_file(self.path)
            with open(self.path, "rb") as stream:
                # Private: a header is mended in memory alone.
                self.data = _Memory(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        elif not self.content:
            raise _fault(self.path, "gave no audio (0 bytes)", "Run it by hand")
        return self

    def __exit__(self, *_) -> None:
        if isinstance(self.data, mmap.mmap):
            self.data.close()

    @contextlib.contextmanager
    def handle(self, layout: containers.Layout):
        """What soundfile opens for the whole file."""
        if self.content is None and not layout.patches:
            # Without its name libsndfile looks at the content, not at the suffix.
            handle = os.open(self.path, os.O_RDONLY)
            try:
                yield handle
            finally:
                os.close(handle)
            return
        data: Any = self.data if self.content is None else bytearray(self.content)
        for at, right in layout.patches.items():
            data[at : at + len(right)] = right
        if isinstance(data, mmap.mmap):
            data.seek(0)
            yield data
        else:
            yield io.BytesIO(data)


def _check_file(path):
    """Raise AudioError for what can be seen without opening the file."""
    text = os.fspath(path)
    if text.rstrip().endswith("|"):
        raise _fault(
            text,
            "is a shell command, expected an audio file",
            "Run the command once and name its output file (commands in wav.scp are"
            " run by slit data prepare alone)",
        )
    file = Path(text)
    if file.is_dir():
        raise _fault(text, "is a folder, expected an audio file", "Name a file in it")
    if not file.exists():
        raise _fault(
            text,
            "no such audio file",
            "Check the path (a relative one starts from the working directory)",
        )
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise _fault(
            text, "is a pipe or a device, expected a file", "Write its audio to a file"
        )
    if status.st_size == 0:
        raise _fault(text, "the file is empty (0 bytes)", "Copy or export it again")


def _no_audio(path, head: bytes, fault: str) -> AudioError:
    """What to say of a file without a known beginning."""
    start = head[:200].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return _fault(
            path, "is a pointer of Git LFS, not the audio", "Run: git lfs pull"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return _fault(
            path, "is a web page, not audio: a download that failed", "Get it again"
        )
    if os.fspath(path).lower().endswith(containers.HEADERLESS_SUFFIXES):
        return _fault(
            path,
            "cannot be read as audio: it has no header that tells rate and format",
            "Convert it, with the numbers of its recording: ffmpeg -f s16le -ar 16000"
            " -ac 1 -i x.raw x.wav",
        )
    return _fault(
        path,
        f"cannot be read as audio ({fault})",
        "Convert it to wav or flac, e.g. with ffmpeg",
    )


@contextlib.contextmanager
def _named(path):
    """Whatever goes wrong inside becomes an AudioError that names the file."""
    try:
        yield
    except AudioError:
        raise
    except Exception as error:  # libsndfile, soxr, the system: a file's fault
        words = getattr(error, "error_string", None) or error
        raise _fault(
            path,
            f"cannot be read as audio ({type(error).__name__}: {words})",
            "Convert it to wav or flac, e.g. with ffmpeg",
        ) from error


# -------------------------------------------------------------------------- parts


@dataclass
class _Part:
    """A file, or one of a chain, open for reading from its begin to its end.

    Attributes:
        name: of the whole file.
        file: soundfile.SoundFile.
        frames: samples per channel; None if only decoding tells.
        exact: False if `frames` does not bind the decoder.
    """

    name: str
    file: Any
    frames: int | None
    exact: bool = True

    def blocks(self, first: int, wanted: int | None) -> Iterator[np.ndarray]:
        """(n, channels) float32 from sample `first`, `wanted` of them.

        Raises:
            AudioError: the decoder gives up within.
        """
        if first and self.exact and self.frames is not None:
            self.file.seek(first)
            first = 0
        left = math.inf if wanted is None else wanted
        while left > 0:
            size = int(min(BLOCK_FRAMES, first + left))
            try:
                block = self.file.read(size, dtype="float32", always_2d=True)
            except RuntimeError as error:
                raise _fault(
                    self.name,
                    f"breaks off while it is decoded ({error or 'damaged data'}):"
                    " truncated or damaged",
                    "Copy or export it again",
                ) from error
            if not len(block):
                return
            skipped = min(first, len(block))
            first -= skipped
            block = block[skipped:]
            left -= len(block)
            yield block


def _open(handle, path, head: bytes):
    import soundfile

    try:
        file = soundfile.SoundFile(handle, closefd=False)
    except Exception as error:
        words = getattr(error, "error_string", None) or error
        raise _no_audio(path, head, str(words)) from error
    # soundfile seeks after each block, where a stream without length cannot.
    file.seekable = lambda: False
    if not RATES[0] <= file.samplerate <= RATES[1]:
        rate = file.samplerate
        file.close()
        raise _fault(
            path,
            f"has sample rate {rate} Hz, expected {RATES[0]} to {RATES[1]}",
            "Its header is damaged: export it again",
        )
    return file


@contextlib.contextmanager
def _to_the_end(data: bytes, path):
    """MPEG audio through a pipe: there the decoder cannot guess a length."""
    out, into = os.pipe()

    def feed():
        with contextlib.suppress(BrokenPipeError), os.fdopen(into, "wb") as stream:
            stream.write(data)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        with _open(out, path, data[: containers.HEAD_BYTES]) as file:
            yield file
    finally:
        os.close(out)  # lets the feeder go
        feeder.join()


@contextlib.contextmanager
def _parts(source: _Source, layout: containers.Layout):
    """The parts of a file as context managers of _Part."""
    data, path = source.data, source.name
    head = bytes(data[: containers.HEAD_BYTES])

    @contextlib.contextmanager
    def whole():
        with source.handle(layout) as handle, _open(handle, path, head) as file:
            known = 0 <= file.frames < UNKNOWN_FRAMES
            yield _Part(path, file, file.frames if known else None)

    @contextlib.contextmanager
    def part(start, end, exact, frames):
        piece = bytes(data[start:end])
        if exact:
            with _open(io.BytesIO(piece), path, piece[:64]) as file:
                yield _Part(path, file, file.frames)
        else:
            with _to_the_end(piece, path) as file:
                yield _Part(path, file, frames, exact=False)

    yield [part(*found) for found in layout.parts] or [whole()]


@contextlib.contextmanager
def _opened(path, content=None):
    """(layout, parts) of a file, decoded by other means where libsndfile cannot."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_named(path))
        source = stack.enter_context(_Source(path, content))
        layout = containers.inspect(source.data)
        if layout.missing:
            raise _fault(
                path,
                f"the {layout.kind} file is truncated: its header promises"
                f" {layout.missing} more bytes than the file has",
                "Copy or export it again",
            )
        found = containers.kind_of(source.data[: containers.HEAD_BYTES])
        if found and not found[1]:
            wav = stack.enter_context(_other(source, found[0]))
            source = stack.enter_context(_Source(wav, name=path))
            layout = containers.Layout(found[0], note=OTHER_DECODERS)
        yield layout, stack.enter_context(_parts(source, layout))


@contextlib.contextmanager
def _other(source: _Source, kind: str):
    """A WAV file of what libsndfile has no decoder for."""
    import tempfile

    with contextlib.ExitStack() as stack:
        path = source.path
        if source.content is not None:
            copy = stack.enter_context(tempfile.NamedTemporaryFile())
            copy.write(source.content)
            copy.flush()
            path = copy.name
        try:
            yield stack.enter_context(other_decoders.decoded(path))
        except other_decoders.DecoderError as error:
            remedy = "Copy or export it again, or convert it: ffmpeg -i x x.wav"
            if not other_decoders.available():
                remedy = other_decoders.REMEDY
            fault = f"cannot be read as audio: it is {kind}, {error}"
            raise _fault(source.path, fault, remedy) from error


# ------------------------------------------------------------------------ reading


def is_audio(path) -> bool:
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


def probe(path):
    """Look into a file.

    Args:
        path: audio file of any format libsndfile reads, or ffmpeg where it is there.

    Returns:
        AudioInfo.

    Raises:
        AudioError: missing, empty, truncated or unreadable file; 0 s of audio.
    """
    with _opened(path) as (layout, parts):
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
        raise _fault(
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
        raise _fault(
            path,
            f"has no audio from {start_s} s to {end_s} s{lasts}",
            "Correct the segments file",
        )
    if part.exact and frames is not None and got < wanted:
        raise _fault(
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
        raise _fault(
            path,
            f"holds {len(audio) / target_rate:.4f} s of audio, expected at least"
            f" {MIN_DURATION_S} s",
            "Remove it from the data",
        )
    fault = found.fault()
    if fault:
        raise _fault(path, fault, "Export it again, or remove it from the data")
    audio, more = found.scale(audio)
    return Reading(np.ascontiguousarray(audio), tuple([*notes, *more]))


def read(path, target_rate, start_s=0.0, end_s=None, content=None):
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
    with _opened(path, content) as (layout, parts):
        notes = [layout.note] if layout.note else []
        if len(parts) > 1:
            return _read_chain(parts, *stretch, notes)
        with parts[0] as part:
            audio, found = _decode(part, *stretch)
    channel = None if found.broken else found.cancelled()
    if channel is not None:
        with _opened(path, content) as (_, parts), parts[0] as part:
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
        raise _fault(
            path,
            f"has no audio from {start_s} s to {end_s} s, it lasts"
            f" {len(audio) / target_rate:.3f} s",
            "Correct the segments file",
        )
    return Reading(audio[first:end], tuple(dict.fromkeys([*notes, *done])))


def read_audio(path, target_rate, start_s=0.0, end_s=None):
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


def to_mono(audio, sample_rate, target_rate, name="audio array"):
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
    with _named(name):
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
            raise _fault(
                name,
                f"has shape {audio.shape}, expected (samples,) or at most"
                f" {MAX_CHANNELS} channels",
                "Pass one clip at a time, several clips as a list",
            )
        audio = audio if channel_axis else audio.T  # (S,channels)
    elif audio.ndim != 1 and audio.size:
        raise _fault(
            name,
            f"has shape {audio.shape}, expected (samples,) or (samples, channels)",
            "Pass one clip at a time, several clips as a list",
        )
    if audio.dtype.kind in "iu":
        try:
            audio = levels.integers_to_float(audio)
        except ValueError as error:
            raise _fault(name, str(error), "Pass floats in [-1, 1]") from error
    elif audio.dtype.kind != "f":
        raise _fault(
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
        raise _fault(
            name,
            f"has sample rate {sample_rate}, expected {RATES[0]} to {RATES[1]} Hz",
            "Pass its rate in Hz",
        )
    return int(rate) if rate == int(rate) else rate
