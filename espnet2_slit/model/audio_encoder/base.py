"""What all audio encoders share: windows, lengths, batching, precision, identity.

A clip's frames depend on the clip alone. Batch neighbours and padding cannot reach them
because padding never reaches the pretrained module: clips are cut to their lengths, cut
into windows, and windows of equal length are run together.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from espnet2_slit.common.identity import fingerprint
from espnet2_slit.common.precision import (
    PRECISIONS,
    choose_precision,
    default_device,
)
from espnet2_slit.model.frozen import Frozen

# Raise when the same weights and options would give other frames than before:
# it is part of `identity()`, so feature caches of older code are refused.
FRAMES_VERSION = 1
# What to do about weights that do not fit.
WRONG_FILE = "Give the checkpoint that belongs to this encoder."
# Values of `layer` that take the states of all layers.
ALL_STATES = ("weighted", "concatenated")


@dataclass(frozen=True)
class Grid:
    """How an encoder's frames lie on its samples.

    A step is the smallest stretch of audio with a whole number of frames. A window of n
    steps reads `n * step + overhang` samples and gives `n * frames_per_step` frames.

    Args:
        step: samples from one step to the next.
        overhang: samples the last step reads beyond its own.
        frames_per_step: frames of one step.
        window_steps: steps of a full window.
        min_samples: audio shorter than this is padded with zeros up to it.
        drops_tail: True if the encoder leaves out a last step that is not complete
            (as BEATs and wav2vec 2.0 do; less than one step); False if it pads it.
    """

    step: int
    overhang: int
    frames_per_step: int
    window_steps: int
    min_samples: int
    drops_tail: bool

    @classmethod
    def of_whole_windows(cls, samples: int, frames: int, min_samples: int) -> Grid:
        """Of an encoder of which only this is known: frames of a full window.

        A last, shorter window gives as many frames as the encoder makes of it.
        """
        return cls(samples, 0, frames, 1, min_samples, drops_tail=False)

    def pooled(self, count: int) -> Grid:
        """Of the means of so many neighbouring frames.

        Raises:
            ValueError: several frames a step are not neighbours in time, and where a
                tail is dropped, the last mean would not end with its step.
        """
        if self.frames_per_step != 1 or self.drops_tail:
            raise ValueError(
                f"pool: expected 1, found {count}; only encoders with one frame for "
                "each step of time, as Whisper, can have theirs averaged"
            )
        steps = max(self.window_steps // count, 1)
        return replace(self, step=self.step * count, window_steps=steps)

    def steps(self, samples: int) -> int:
        """Steps of audio of that many samples, at least one."""
        beyond = max(samples - self.overhang, 0)
        whole = beyond // self.step
        if not self.drops_tail and beyond % self.step:
            whole += 1
        return max(whole, 1)


@dataclass(frozen=True)
class Window:
    """Samples [start, stop) of a clip, and which of the window's frames are kept."""

    clip: int
    start: int
    stop: int
    first_frame: int
    last_frame: int


class AudioEncoder(nn.Module):
    """A frozen pretrained audio encoder; subclasses give `_final` and the facts.

    Audio longer than the encoder's window is cut into windows that follow each other
    without a gap; the last one is moved back so that it is full, and only its new
    frames are kept. Nothing is truncated: a clip with more than `max_windows` windows
    is an error. The encoder does not resample and does not mix down.

    Attributes:
        sample_rate: of the speech it takes, Hz.
        width: D_a.
        frames_per_second: frames per second of audio.
        max_duration_s: seconds of audio one window covers.
        frames_per_window: frames of a full window; frame t belongs to window
            t // frames_per_window.
        max_windows: windows a clip may have.
        num_layers: layers to choose `layer` from; None if there is no choice.
        trainable: True if `layer` is "weighted": the frames then depend on trained
            weights and must not be cached.

    Args:
        module: the pretrained module.
        kind: its name in `build_audio_encoder`.
        path: where the weights came from, as the user gave it.
        weights: file, folder or module that `fingerprint` digests.
        sample_rate: see above.
        width: see above.
        grid: how frames lie on samples.
        layer: None for the module's final output; k for the hidden state after k
            layers (0: before the first), and layers behind it are dropped; "weighted"
            for a learned weighting of all these states; "concatenated" for all of them
            side by side, which makes frames `num_layers + 1` times as wide.
        layers: the module's own list of layers to choose from; None for no choice.
        max_windows: see above.
        windows_per_pass: windows run at once, which bounds memory.
        precision: float32, or bfloat16/float16 to run under autocast; "auto" is chosen
            here, once, and is part of the identity. It is the same in and outside of
            a training loop's own autocast, so that cached frames equal frames computed
            on the fly.
        crop: cut audio to whole steps before encoding, so that more windows are of
            equal length. Only for encoders whose frames do not depend on the tail.
        pool: neighbouring frames whose mean is one frame, so that the Q-Former reads,
            and a cache holds, fewer. Only for encoders with one frame a step.

    Raises:
        ValueError: layer, precision or a count is out of range.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        kind: str,
        path: str | Path,
        weights: str | Path | nn.Module,
        sample_rate: int,
        width: int,
        grid: Grid,
        layer: int | str | None = None,
        layers: nn.ModuleList | None = None,
        max_windows: int = 8,
        windows_per_pass: int = 32,
        precision: str = "float32",
        crop: bool = False,
        pool: int = 1,
    ):
        super().__init__()
        precision = choose_precision(
            precision, default_device(), (*PRECISIONS, "float16")
        )
        if min(max_windows, windows_per_pass, pool) < 1:
            raise ValueError(
                "max_windows, windows_per_pass and pool: expected 1 or more, found "
                f"{max_windows}, {windows_per_pass} and {pool}"
            )
        if pool > 1:
            grid = grid.pooled(pool)
        num_layers = None if layers is None else len(layers)
        _check_layer(layer, num_layers, kind)
        if isinstance(layer, int):
            del layers[max(layer, 1) :]
        self.frozen = Frozen(module)
        self.kind, self.path = kind, str(path)
        self._weights = (weights,)  # torch would register a module
        if layer == "concatenated":
            width *= num_layers + 1
        self.sample_rate, self.width, self.grid = sample_rate, width, grid
        self.layer, self.num_layers = layer, num_layers
        self.max_windows, self.windows_per_pass = max_windows, windows_per_pass
        self.precision, self.crop, self.pool = precision, crop, pool
        self.frames_per_second = sample_rate * grid.frames_per_step / grid.step
        self.max_duration_s = grid.window_steps * grid.step / sample_rate
        self.frames_per_window = grid.window_steps * grid.frames_per_step
        self._layers = layers if layers is None else (layers,)  # not registered
        self.trainable = layer == "weighted"
        if self.trainable:  # zeros: the plain mean of all layers to start with
            self.layer_weights = nn.Parameter(torch.zeros(num_layers + 1))

    def _final(self, audio: Tensor) -> Tensor:
        """The module's final output for windows (N, s) of equal length."""
        raise NotImplementedError

    def _state(self, state: Tensor) -> Tensor:
        """A layer's output, brought into the form of `_final`'s."""
        return state

    def _arrange(self, output: Tensor) -> Tensor:
        """What `_final` gives -> (N, F, D_a) in order of time.

        F may exceed the frames of the audio where the module pads by itself: what is
        beyond is cut off by the caller.
        """
        return output

    def _encode(self, audio: Tensor) -> Tensor:
        """Windows (N, s) -> (N, F, D_a), or (K, N, F, D_a) for all states."""
        if self.layer is None:
            return self._arrange(self._final(audio))
        states: list[Tensor] = []

        def keep(layer: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
            if not states:
                states.append(inputs[0])
            states.append(output[0] if isinstance(output, tuple) else output)

        hooks = [layer.register_forward_hook(keep) for layer in self._layers[0]]
        try:
            self._final(audio)
        finally:
            for hook in hooks:
                hook.remove()
        if isinstance(self.layer, int):
            return self._arrange(self._state(states[self.layer]))
        return torch.stack([self._arrange(self._state(state)) for state in states])

    def forward(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch; no gradients but those of learned layer weights.

        Args:
            speech: (B, S) float in [-1, 1] at `sample_rate`, mono.
            speech_lengths: (B,) samples of each clip.

        Returns:
            frames (B, T, D_a) float32, zeros beyond a clip's length; and their lengths
            (B,) int64.

        Raises:
            ValueError: speech is not (B, S), a length is 0 or beyond S, or a clip has
                more than `max_windows` windows.
        """
        clip_samples = speech_lengths.tolist()
        self._check(speech, clip_samples)
        device = self.frozen.device
        speech = speech.to(device=device, dtype=torch.float32)
        windows = [
            window
            for clip, samples in enumerate(clip_samples)
            for window in self.windows(samples, clip)
        ]
        # Windows in order of time, so that pieces of a clip can be put together.
        pieces: dict[int, list] = {clip: [] for clip in range(len(clip_samples))}
        groups = defaultdict(list)
        for window in windows:
            groups[window.stop - window.start].append(window)
        for group in groups.values():
            for i in range(0, len(group), self.windows_per_pass):
                part = group[i : i + self.windows_per_pass]
                for window, frames in zip(part, self._run(speech, part), strict=True):
                    kept = frames[window.first_frame : window.last_frame]
                    pieces[window.clip].append((window.start, kept))
        clips = [
            torch.cat([kept for _, kept in sorted(pieces[clip], key=lambda p: p[0])])
            for clip in range(len(clip_samples))
        ]
        lengths = torch.tensor([len(frames) for frames in clips], device=device)
        return nn.utils.rnn.pad_sequence(clips, batch_first=True), lengths

    def _run(self, speech: Tensor, windows: list[Window]) -> Tensor:
        """Encode windows of equal length: (N, F, D_a) float32."""
        audio = torch.stack([speech[w.clip, w.start : w.stop] for w in windows])
        missing = self.grid.min_samples - audio.shape[1]
        if missing > 0:
            audio = nn.functional.pad(audio, (0, missing))
        dtype = getattr(torch, self.precision)
        with (
            torch.no_grad(),
            torch.autocast(
                audio.device.type,
                dtype=torch.bfloat16 if dtype == torch.float32 else dtype,
                enabled=dtype != torch.float32,
            ),
        ):
            frames = self._encode(audio).float()
        return self._combine(frames)

    def _combine(self, frames: Tensor) -> Tensor:
        """What `_encode` gives -> (N, F, D_a): states into one, frames pooled."""
        if self.trainable:  # (K, N, F, D_a) -> (N, F, D_a)
            share = self.layer_weights.float().softmax(dim=0).to(frames.device)
            frames = torch.einsum("k,knfd->nfd", share, frames)
        elif self.layer == "concatenated":
            frames = frames.permute(1, 2, 0, 3).flatten(2)  # (N, F, K * D_a)
        if self.pool > 1:  # a last, shorter group is the mean of what it has
            frames = nn.functional.avg_pool1d(
                frames.transpose(1, 2), self.pool, ceil_mode=True
            ).transpose(1, 2)
        return frames

    def windows(self, samples: int, clip: int = 0) -> list[Window]:
        """The windows of a clip of that many samples."""
        grid = self.grid
        total, full = grid.steps(samples), grid.window_steps
        if total <= full:
            stop = samples
            if self.crop:
                stop = min(samples, total * grid.step + grid.overhang)
                # Below the minimum zeros are added: keep what audio there is.
                stop = max(stop, min(samples, grid.min_samples))
            return [Window(clip, 0, stop, 0, total * grid.frames_per_step)]
        windows = []
        for first in range(0, total, full):
            last = min(first + full, total)
            origin = last - full  # the last window is moved back to be full
            start = origin * grid.step
            stop = min(start + full * grid.step + grid.overhang, samples)
            kept = ((first - origin) * grid.frames_per_step, self.frames_per_window)
            windows.append(Window(clip, start, stop, *kept))
        return windows

    def _check(self, speech: Tensor, clip_samples: list[int]) -> None:
        if speech.dim() != 2:
            raise ValueError(
                f"speech: expected (B, S), one channel; found {tuple(speech.shape)}. "
                "Mix the audio down to mono when preparing the data."
            )
        if len(clip_samples) != len(speech):
            raise ValueError(
                f"speech_lengths: expected {len(speech)} lengths, found "
                f"{len(clip_samples)}"
            )
        for clip, samples in enumerate(clip_samples):
            if not 0 < samples <= speech.shape[1]:
                raise ValueError(
                    f"clip {clip} of the batch: expected 1 to {speech.shape[1]} "
                    f"samples, found {samples}. Remove empty audio from wav.scp."
                )
            count = len(self.windows(samples, clip))
            if count > self.max_windows:
                raise ValueError(
                    f"clip {clip} of the batch lasts {samples / self.sample_rate:.1f} s"
                    f", which is {count} windows of {self.max_duration_s:.2f} s; "
                    f"expected at most {self.max_windows}. Raise "
                    "audio_encoder_conf.max_windows (and train with it), or cut the "
                    "audio into segments."
                )

    def identity(self) -> dict:
        """What the frames depend on: plain values that feature caches compare."""
        pool = {"pool": self.pool} if self.pool > 1 else {}
        return pool | {
            "kind": self.kind,
            "path": self.path,
            "fingerprint": fingerprint(self._weights[0]),
            "layer": self.layer,
            "sample_rate": self.sample_rate,
            "width": self.width,
            "frames_per_second": self.frames_per_second,
            "window_s": self.max_duration_s,
            "precision": self.precision,
            "code_version": FRAMES_VERSION,
        }

    def extra_repr(self) -> str:
        """The facts a user asks for first."""
        return (
            f"{self.kind}, {self.sample_rate} Hz -> {self.frames_per_second:g} frames "
            f"of {self.width} a second, window {self.max_duration_s:g} s, layer "
            f"{self.layer}"
        )


def _check_layer(layer: int | str | None, num_layers: int | None, kind: str) -> None:
    if layer is None:
        return
    if num_layers is None:
        raise ValueError(
            f"layer: {kind} has no layers of equal width and rate to choose from; "
            f"expected null, found {layer!r}"
        )
    is_index = isinstance(layer, int) and not isinstance(layer, bool)
    if layer not in ALL_STATES and not (is_index and 0 <= layer <= num_layers):
        raise ValueError(
            f"layer: expected null, 'weighted', 'concatenated' or 0 to {num_layers}, "
            f"found {layer!r}"
        )
