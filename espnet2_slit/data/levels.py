"""What samples mean: which numbers are full scale, which cannot be sound.

Owns one treatment of odd values for training and for use: PCM kept as floats, floats
above full scale, corrupt samples, channels that cancel. Where samples come from is left
to `audio`.
"""

from __future__ import annotations

import numpy as np

# Recorders with 32-bit floats go some 20 dB above full scale; beyond 36 dB the numbers
# are integers that somebody stored as floats.
HIGHEST_FLOAT = 64.0
INTEGER_SCALES = (2.0**15, 2.0**23, 2.0**31)
FLOAT_SCALES = (2.0**7, *INTEGER_SCALES)
# Channels whose mean has less than this share of the louder one's power cancel out.
CANCELLED = 0.01
LOUD = 2.0  # a peak that resampling and decoding of loud music do not reach
ABOVE = "above full scale, scaled down"
INTEGERS = "integers stored as floats, scaled"
CANCELLING = "channels cancel out, the louder one taken"


class Levels:
    """Statistics of a clip that is read block by block.

    Args:
        channels: count.
    """

    def __init__(self, channels: int):
        self.samples = self.broken = self.above = 0
        self.peak = 0.0
        self.power = np.zeros(channels)
        self.mixed = 0.0

    def mix(self, block: np.ndarray, channel: int | None = None) -> np.ndarray:
        """Take in a block and mix it down.

        Args:
            block: (n, channels) float32.
            channel: take this one instead of the mean.

        Returns:
            (n,) float32.
        """
        finite = np.isfinite(block)
        if not finite.all():
            self.broken += int(block.size - finite.sum())
        # Sums of squares in float64: a corrupt sample may be 1e38.
        if block.shape[1] == 1:
            mono = block[:, 0]
        else:
            self.power += np.einsum("nc,nc->c", block, block, dtype=np.float64)
            mono = block.mean(axis=1) if channel is None else block[:, channel]
            self.mixed += float(np.einsum("n,n->", mono, mono, dtype=np.float64))
        size = np.abs(mono)
        self.samples += len(mono)
        self.peak = max(self.peak, float(size.max(initial=0.0)))
        if self.peak > 1.0:
            self.above += int((size > 1.0).sum())
        return mono

    def cancelled(self) -> int | None:
        """The channel to take where the mean of all would be (nearly) silent.

        The loudest, of equally loud ones the first.
        """
        highest = self.power.max()
        if self.mixed < CANCELLED * highest:
            return int(np.argmax(self.power > 0.99 * highest))
        return None

    def fault(self) -> str | None:
        """Why this cannot be sound; None if it can."""
        if self.broken:
            return f"{self.broken} of {self.samples} samples are NaN or infinite"
        if self.peak <= HIGHEST_FLOAT:
            return None
        if self.peak > INTEGER_SCALES[-1] or self.above < 0.01 * self.samples:
            return (
                f"{self.above} of {self.samples} samples are far above full scale (up"
                f" to {self.peak:.3g}), the others are not: it is damaged"
                if self.above < self.samples
                else f"its samples go up to {self.peak:.3g}, which no format gives"
            )
        return None

    def scale(self, audio: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Bring a clip to [-1, 1] by one factor; (audio, notes of what was done)."""
        notes = []
        if self.peak > HIGHEST_FLOAT:
            audio = audio / next(s for s in FLOAT_SCALES if s >= self.peak)
            notes.append(INTEGERS)
        highest = float(np.abs(audio).max(initial=0.0))
        if highest > 1.0:
            audio = audio / highest
            notes.append(f"{ABOVE} (peak {highest:.3g})" if highest > LOUD else ABOVE)
        return audio.astype(np.float32, copy=False), notes


def integers_to_float(audio: np.ndarray) -> np.ndarray:
    """Integer PCM -> float32 in [-1, 1].

    A type's range is full scale; but 64 bits are what Python makes of any integers, so
    there the smallest of 16, 24 and 32 bits that holds them.

    Args:
        audio: integers, any shape.

    Raises:
        ValueError: uint64, or values beyond 32 bits.
    """
    limits = np.iinfo(audio.dtype)
    if limits.bits < 64:
        middle = (limits.max + limits.min + 1) / 2  # 0 for signed, 128 for uint8
        full = limits.max - middle + 1
        return ((audio.astype(np.float64) - middle) / full).astype(np.float32)
    highest = max(abs(int(audio.min(initial=0))), abs(int(audio.max(initial=0))))
    if audio.dtype.kind == "u" or highest > 2**31:
        raise ValueError(f"holds {audio.dtype} up to {highest}, expected PCM")
    full = next(scale for scale in INTEGER_SCALES if scale >= highest)
    return (audio / full).astype(np.float32)
