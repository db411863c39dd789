"""Audio that libsndfile has no decoder for, where ffmpeg's libraries are there.

Owns the two ways to them: the program ffmpeg, or the package PyAV, which brings them
along. Both write a WAV file of floats, which is then read like any other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain

REMEDY = (
    "Install ffmpeg (apt install ffmpeg, conda install ffmpeg) or PyAV (python -m pip"
    " install av), or convert it: ffmpeg -i x.m4a x.wav"
)


class DecoderError(ValueError):
    """No decoder is there, or it does not take the file; the message says which."""


def available() -> str | None:
    """Which of the two is used: ffmpeg, PyAV, or None where neither is."""
    if shutil.which("ffmpeg"):
        return "ffmpeg"
    return "PyAV" if find_spec("av") else None


@contextlib.contextmanager
def decoded(path: str | os.PathLike) -> Iterator[str]:
    """A WAV file of the first audio stream, there until the block is left.

    Args:
        path: of any file that ffmpeg reads.

    Yields:
        Path of the WAV file, float32, with the stream's own rate and channels.

    Raises:
        DecoderError: see there.
    """
    way = available()
    if way is None:
        raise DecoderError("needs ffmpeg's decoders, which are not installed")
    handle, wav = tempfile.mkstemp(suffix=".wav")
    os.close(handle)
    try:
        _by_ffmpeg(path, wav) if way == "ffmpeg" else _by_pyav(path, wav)
        yield wav
    finally:
        os.unlink(wav)


def _by_ffmpeg(path, wav) -> None:
    # Playlists and the like may name addresses; only files are opened.
    command = ["ffmpeg", "-nostdin", "-v", "error", "-xerror"]
    command += ["-protocol_whitelist", "file", "-y", "-i", f"file:{os.fspath(path)}"]
    command += ["-map", "0:a:0", "-c:a", "pcm_f32le", "-rf64", "auto", "-f", "wav"]
    done = subprocess.run([*command, wav], capture_output=True, check=False)
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    if done.returncode:
        fault = said[-1] if said else f"exit status {done.returncode}"
        if any("matches no streams" in line for line in said):
            fault = "it has no audio stream"
        raise DecoderError(f"ffmpeg: {fault}")


def _by_pyav(path, wav) -> None:
    import av
    import soundfile

    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.audio:
                raise DecoderError("PyAV: it has no audio stream")
            stream = container.streams.audio[0]
            channels = stream.codec_context.channels
            resampler = av.AudioResampler(format="flt")
            with soundfile.SoundFile(
                wav, "w", stream.codec_context.sample_rate, channels, "FLOAT", None,
                "RF64",
            ) as out:  # fmt: skip
                for frame in chain(container.decode(stream), [None]):
                    for piece in resampler.resample(frame):
                        out.write(piece.to_ndarray().reshape(-1, channels))
    except (av.FFmpegError, RuntimeError, OSError) as error:
        raise DecoderError(f"PyAV: {error}") from error
