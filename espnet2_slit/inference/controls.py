"""Other audio in place of clips' own, to see what a system has from listening."""

from __future__ import annotations

import numpy as np

from espnet2_slit.inference.clips import AudioClips, Clips
from espnet2_slit.inference.requests import InferenceError

NOISE_RMS = 0.05  # -26 dB of full scale, whatever the clip's own level
CONTROLS = ("silence", "noise", "shuffled")


class OtherAudio:
    """Clips of the same number, each with other audio than its own.

    Silence and white noise last as long as the clip; `shuffled` is another clip of the
    set, each one once.

    Args:
        clips: the set's own; for silence and noise waveforms.
        control: silence, noise or shuffled.
        seed: of the noise and of the order.

    Raises:
        InferenceError: another control, cached frames where waveforms are needed, or a
            single clip to shuffle.
    """

    def __init__(self, clips: Clips, control: str, seed: int = 0):
        if control not in CONTROLS:
            raise InferenceError(f"control: expected {CONTROLS}, found {control!r}.")
        self.clips, self.control, self.seed = clips, control, seed
        self.are_frames = clips.are_frames
        self.other = np.arange(len(clips))
        if control == "shuffled":
            if len(clips) < 2:
                raise InferenceError("control shuffled: expected two or more clips.")
            order = np.random.default_rng(seed).permutation(len(clips))
            self.other[order] = np.roll(order, 1)  # one cycle: no clip keeps its own
        elif not isinstance(clips, AudioClips):
            raise InferenceError(
                f"control {control}: expected waveforms, found cached frames. Decode"
                " with --audio waveform."
            )
        self.durations_s = [clips.durations_s[i] for i in self.other.tolist()]

    def __len__(self) -> int:
        return len(self.clips)

    def load(self, i: int) -> np.ndarray:
        """(S,) or (T, D_a) float32 in place of clip i."""
        if self.control == "shuffled":
            return self.clips.load(int(self.other[i]))
        assert isinstance(self.clips, AudioClips)
        samples = round(self.durations_s[i] * self.clips.target_rate)
        if self.control == "silence":
            return np.zeros(samples, np.float32)
        noise = np.random.default_rng([self.seed, i]).standard_normal(samples)
        return (NOISE_RMS * noise).astype(np.float32)
