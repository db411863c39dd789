"""Frames on disk: Kaldi's matrices, in two bytes a value where that is fine enough.

Frames are stored in Kaldi's own two-byte matrices ("CM2"). Of what kaldiio (ESPnet
202511) and omniio (202611) both read, it is the only form with two bytes a value: a
numpy fp16 array in an ark is read by kaldiio alone. Its 65,536 levels span the whole
matrix, so a matrix with far outliers, where ordinary channels would lose precision, is
stored in float32 instead; both kinds stand side by side in one ark.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from espnet2_slit.data.kaldi_dir import read_pairs

# Relative rounding error of an ordinary channel; bfloat16's own is 1.7e-3.
TOLERANCE = 1e-3
LEVELS = 65535  # of a two-byte matrix


class FeatureCacheError(ValueError):
    """A cache that cannot be used; the message gives expected, found and remedy."""


def write_matrix(
    stream: BinaryIO, key: str, frames: np.ndarray, tolerance: float = TOLERANCE
) -> int:
    """Append one clip to an ark.

    Args:
        stream: binary file open for writing.
        key: clip id.
        frames: (T, D_a) float array, finite.
        tolerance: highest rounding error, relative to the median channel's size, for
            which two bytes a value are used; 0 stores float32.

    Returns:
        Offset of the matrix in the file, as feats.scp wants it.

    Raises:
        FeatureCacheError: NaN, infinite or empty frames.
    """
    frames = np.ascontiguousarray(frames, dtype=np.float32)
    if frames.ndim != 2 or not frames.size:
        raise FeatureCacheError(
            f"clip {key}: frames of shape {frames.shape}, expected (frames, width)."
            " Is the clip long enough for the encoder?"
        )
    low, high = float(frames.min()), float(frames.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise FeatureCacheError(
            f"clip {key}: the encoder returned NaN or infinite frames."
            " Check its weights and its precision."
        )
    stream.write(key.encode() + b" ")
    offset = stream.tell()
    # Uniform rounding to a step has an error of step / sqrt(12).
    error = (high - low) / LEVELS / 12**0.5
    channel_size = float(np.median(np.sqrt(np.mean(np.square(frames), axis=0))))
    if error <= tolerance * channel_size:
        span = high - low or 1.0  # a constant matrix: all values at level 0
        values = np.rint((frames - low) * (LEVELS / span)).clip(0, LEVELS)
        stream.write(b"\0BCM2 " + struct.pack("<ffii", low, span, *frames.shape))
        stream.write(values.astype("<u2").tobytes())
    else:
        rows, columns = frames.shape
        stream.write(b"\0BFM \4" + struct.pack("<i", rows))
        stream.write(b"\4" + struct.pack("<i", columns))
        stream.write(frames.astype("<f4").tobytes())
    return offset


def read_matrix(stream: BinaryIO, offset: int) -> np.ndarray:
    """Read one clip's frames.

    Args:
        stream: binary file.
        offset: as in feats.scp.

    Returns:
        (T, D_a) float32.

    Raises:
        FeatureCacheError: no matrix at this place, or the file ends within it.
    """
    stream.seek(offset)
    kind = stream.read(6)
    if kind == b"\0BCM2 ":
        low, span, rows, columns = struct.unpack("<ffii", stream.read(16))
        width, dtype = 2, "<u2"
    elif kind == b"\0BFM \4":
        rows, _, columns = struct.unpack("<ibi", stream.read(9))
        width, dtype = 4, "<f4"
    else:
        raise FeatureCacheError(
            f"{stream.name}: no feature matrix at byte {offset} (found {kind!r})."
            " feats.scp and the ark are of different runs: encode the set again."
        )
    data = stream.read(rows * columns * width)
    if len(data) < rows * columns * width:
        raise FeatureCacheError(
            f"{stream.name}: ends within the matrix at byte {offset}: truncated."
            " Encode the set again; whole shards are kept."
        )
    frames = np.frombuffer(data, dtype=dtype).reshape(rows, columns)
    if width == 2:
        # In this order, so that it equals kaldiio's and omniio's reading to the bit.
        return np.float32(low) + np.float32(span) * frames.astype(
            np.float32
        ) / np.float32(LEVELS)
    return frames.astype(np.float32)


class FeatureReader(Mapping[str, np.ndarray]):
    """feats.scp as a mapping: sample id -> (T, D_a) float32, read when asked for.

    Keeps its arks open; make one per process.

    Args:
        scp: path of feats.scp.
    """

    def __init__(self, scp: str | os.PathLike):
        self.places: dict[str, tuple[str, int]] = {}
        for key, place in read_pairs(Path(scp)):
            ark, colon, offset = place.rpartition(":")
            if not colon or not offset.isdigit():
                raise FeatureCacheError(
                    f"{scp}: {key}: expected '<ark>:<byte>', found {place!r}."
                )
            self.places[key] = (ark, int(offset))
        self.streams: dict[str, BinaryIO] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __getitem__(self, key: str) -> np.ndarray:
        ark, offset = self.places[key]
        if ark not in self.streams:
            self.streams[ark] = open(ark, "rb")  # noqa: SIM115, closed by close()
        return read_matrix(self.streams[ark], offset)

    def close(self) -> None:
        """Close the arks."""
        for stream in self.streams.values():
            stream.close()
        self.streams = {}
