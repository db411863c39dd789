"""Opening a file for its samples: what it is, how its parts are decoded, what is wrong.

Owns the ways to a decoder (libsndfile by a file's content, a pipe where a length would
be guessed, ffmpeg's libraries) and the name of every way in which it can fail. What the
samples mean, and their rate, is left to `audio`.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_slit.data import containers, other_decoders

# Hz of what can be sound: from infrasound to bats. A header beyond is wrong, and its
# length in seconds would fill the memory.
RATES = (1000, 1_000_000)
BLOCK_FRAMES = 65536
OTHER_DECODERS = "read by ffmpeg's decoders"
UNKNOWN_FRAMES = 2**62  # libsndfile's word for "no length" is 2^63 - 1


class AudioError(ValueError):
    """Audio that cannot be used; the message names the file, the fault, the remedy."""


def audio_fault(path: Any, fault: str, remedy: str) -> AudioError:
    """An AudioError; the words are put together here alone."""
    return AudioError(f"{path}: {fault}. {remedy}")


# ------------------------------------------------------------------------ sources


class _Memory(mmap.mmap):
    """A file in memory that may be sought beyond its end, as any file may."""

    def seek(self, position, whence=os.SEEK_SET):
        """Go to a place, the end for all beyond it."""
        origin = (0, self.tell(), len(self))[whence]
        super().seek(min(max(origin + position, 0), len(self)))


class _Bytes(io.BytesIO):
    """Bytes that may be sought before their beginning: damaged headers lead there."""

    def seek(self, position, whence=os.SEEK_SET):
        """Go to a place, the beginning for all before it."""
        origin = (0, self.tell(), self.getbuffer().nbytes)[whence]
        return super().seek(max(origin + position, 0))


class Source:
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

    def __enter__(self) -> Source:
        if self.content is None:
            _check_file(self.path)
            with open(self.path, "rb") as stream:
                # Private: a header is mended in memory alone.
                self.data = _Memory(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        elif not self.content:
            raise audio_fault(self.path, "gave no audio (0 bytes)", "Run it by hand")
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
            yield _Bytes(data)


def _check_file(path):
    """Raise AudioError for what can be seen without opening the file."""
    text = os.fspath(path)
    if text.rstrip().endswith("|"):
        raise audio_fault(
            text,
            "is a shell command, expected an audio file",
            "Run the command once and name its output file (commands in wav.scp are"
            " run by slit data prepare alone)",
        )
    file = Path(text)
    if file.is_dir():
        raise audio_fault(
            text, "is a folder, expected an audio file", "Name a file in it"
        )
    if not file.exists():
        raise audio_fault(
            text,
            "no such audio file",
            "Check the path (a relative one starts from the working directory)",
        )
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise audio_fault(
            text, "is a pipe or a device, expected a file", "Write its audio to a file"
        )
    if status.st_size == 0:
        raise audio_fault(
            text, "the file is empty (0 bytes)", "Copy or export it again"
        )


def _no_audio(path, head: bytes, fault: str) -> AudioError:
    """What to say of a file without a known beginning."""
    start = head[:200].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return audio_fault(
            path, "is a pointer of Git LFS, not the audio", "Run: git lfs pull"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return audio_fault(
            path, "is a web page, not audio: a download that failed", "Get it again"
        )
    if os.fspath(path).lower().endswith(containers.HEADERLESS_SUFFIXES):
        return audio_fault(
            path,
            "cannot be read as audio: it has no header that tells rate and format",
            "Convert it, with the numbers of its recording: ffmpeg -f s16le -ar 16000"
            " -ac 1 -i x.raw x.wav",
        )
    return audio_fault(
        path,
        f"cannot be read as audio ({fault})",
        "Convert it to wav or flac, e.g. with ffmpeg",
    )


@contextlib.contextmanager
def named(path: Any) -> Iterator[None]:
    """Whatever goes wrong inside becomes an AudioError that names the file."""
    try:
        yield
    except AudioError:
        raise
    except Exception as error:  # libsndfile, soxr, the system: a file's fault
        words = getattr(error, "error_string", None) or error
        raise audio_fault(
            path,
            f"cannot be read as audio ({type(error).__name__}: {words})",
            "Convert it to wav or flac, e.g. with ffmpeg",
        ) from error


# -------------------------------------------------------------------------- parts


@dataclass
class Part:
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
                raise audio_fault(
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
        raise audio_fault(
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
def _parts(source: Source, layout: containers.Layout):
    """The parts of a file as context managers of Part."""
    data, path = source.data, source.name
    head = bytes(data[: containers.HEAD_BYTES])

    @contextlib.contextmanager
    def whole():
        with source.handle(layout) as handle, _open(handle, path, head) as file:
            known = 0 <= file.frames < UNKNOWN_FRAMES
            yield Part(path, file, file.frames if known else None)

    @contextlib.contextmanager
    def part(start, end, exact, frames):
        piece = bytes(data[start:end])
        if exact:
            with _open(_Bytes(piece), path, piece[:64]) as file:
                yield Part(path, file, file.frames)
        else:
            with _to_the_end(piece, path) as file:
                yield Part(path, file, frames, exact=False)

    yield [part(*found) for found in layout.parts] or [whole()]


@contextlib.contextmanager
def open_audio(
    path: Any, content: bytes | None = None
) -> Iterator[tuple[containers.Layout, list[Any]]]:
    """A file's parts, decoded by other means where libsndfile cannot.

    Args:
        path: of the file, or the name of `content`.
        content: the bytes; None opens `path`.

    Yields:
        (what its bytes say, context managers of Part).

    Raises:
        AudioError: it cannot be opened, or lacks bytes that it promises.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(named(path))
        source = stack.enter_context(Source(path, content))
        layout = containers.inspect(source.data)
        if layout.missing:
            raise audio_fault(
                path,
                f"the {layout.kind} file is truncated: its header promises"
                f" {layout.missing} more bytes than the file has",
                "Copy or export it again",
            )
        found = containers.kind_of(source.data[: containers.HEAD_BYTES])
        if found and not found[1]:
            wav = stack.enter_context(_other(source, found[0]))
            source = stack.enter_context(Source(wav, name=path))
            layout = containers.Layout(found[0], note=OTHER_DECODERS)
        yield layout, stack.enter_context(_parts(source, layout))


@contextlib.contextmanager
def _other(source: Source, kind: str):
    """A WAV file of what libsndfile has no decoder for."""
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
            raise audio_fault(source.path, fault, remedy) from error
