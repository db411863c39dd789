"""BEATs and OpenBEATs checkpoints through ESPnet's BeatsEncoder.

Owns what ESPnet's class leaves open: that the weights are really loaded, the filterbank
statistics, frames that are equal on ESPnet 202511 and 202611, and windows filled up as
a released model has learnt them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from espnet2_slit.common.weights import (
    WeightsError,
    load_strictly,
    read_checkpoint,
    shown,
)
from espnet2_slit.model.audio_encoder.base import (
    WRONG_FILE,
    AudioEncoder,
    Grid,
    Window,
)
from espnet2_slit.model.audio_encoder.beats_attention import use_lean_attention

SAMPLE_RATE = 16000
# Log-mel frames of 25 ms each 10 ms, in patches of 16 frames x 16 of 128 mel bins.
FRAME, HOP, PATCH, MEL_BINS = 400, 160, 16, 128
# BeatsEncoder changes shorter input by itself, and differently in 202511 (repeats it)
# and 202611 (pads it).
MIN_SAMPLES = 3200
# Statistics of the published BEATs; OpenBEATs and ESPnet 202611 have others.
FBANK_MEAN, FBANK_STD = 15.41663, 6.55582
# All-ones convolutions that ESPnet 202611 adds to pass padding masks on.
CONSTANTS = ("patch_embedding_pad.", "raw2fbank_pad.")


class BeatsAudioEncoder(AudioEncoder):
    """BEATs: eight frames, one per band of 16 mel bins, for every 160 ms.

    Frames are in order of time, low bands first. A rest of audio below 160 ms gives no
    frame, as in BEATs itself.

    Args:
        path: checkpoint with "cfg" and "model": BEATs as published (pre-trained or
            fine-tuned; the predictor is left out) or made by ESPnet for OpenBEATs.
        layer: see `AudioEncoder`.
        window_s: seconds of audio encoded at once; 10 s is BEATs' training length.
        fbank_mean: of the log-mel filterbank. OpenBEATs: 15.29130, or the value its
            model card gives.
        fbank_std: as above. OpenBEATs: 5.90532.
        max_windows: see `AudioEncoder`.
        windows_per_pass: see `AudioEncoder`.
        precision: see `AudioEncoder`; the filterbank is always in float32.
        fill_windows: windows that every clip has at least; what audio does not fill of
            them, or of a longer clip's last one, are zeros in the place of normalised
            filterbank frames, and the frames made of those are kept. 0: only what
            there is of audio is read. For weights that were trained in this way:
            X-InstructBLIP has 2 windows of 5.135 s.

    Raises:
        FileNotFoundError: no file at path.
        ValueError: not a BEATs checkpoint, weights that do not fit, or a window
            shorter than 0.175 s.
    """

    def __init__(
        self,
        path: str | Path,
        layer: int | str | None = None,
        window_s: float = 10.0,
        fbank_mean: float = FBANK_MEAN,
        fbank_std: float = FBANK_STD,
        max_windows: int = 8,
        windows_per_pass: int = 32,
        precision: str = "float32",
        fill_windows: int = 0,
    ):
        from espnet2_slit.common.compat import BeatsEncoder

        if not 0 <= fill_windows <= max_windows:
            raise ValueError(
                f"fill_windows: expected 0 to max_windows ({max_windows}), found "
                f"{fill_windows}"
            )

        config, weights = _read(Path(path))
        step = PATCH * HOP
        overhang = FRAME - HOP
        window_steps = int(round(window_s * SAMPLE_RATE) - overhang) // step
        if window_steps < 1:
            raise ValueError(
                f"window_s: expected {(step + overhang) / SAMPLE_RATE} or more (one "
                f"patch), found {window_s}"
            )
        module = BeatsEncoder(
            input_size=1,
            beats_config=config,
            fbank_mean=fbank_mean,
            fbank_std=fbank_std,
        )
        load_strictly(
            module, weights, path, WRONG_FILE, CONSTANTS, (*CONSTANTS, "predictor.")
        )
        use_lean_attention(module)
        # The weights stay as they are, so their norm need not be computed each time.
        nn.utils.remove_weight_norm(module.encoder.pos_conv[0])
        super().__init__(
            module,
            kind="beats",
            path=path,
            weights=path,
            sample_rate=SAMPLE_RATE,
            width=module.output_size(),
            grid=Grid(
                step=step,
                overhang=overhang,
                frames_per_step=MEL_BINS // PATCH,
                window_steps=window_steps,
                min_samples=0 if fill_windows else MIN_SAMPLES,
                drops_tail=True,
            ),
            layer=layer,
            layers=module.encoder.layers,
            max_windows=max_windows,
            windows_per_pass=windows_per_pass,
            precision=precision,
            crop=True,  # filterbank frames and patches see nothing beyond themselves
        )
        self.fbank_mean, self.fbank_std = fbank_mean, fbank_std
        self.fill_windows = fill_windows

    def windows(self, samples: int, clip: int = 0) -> list[Window]:
        """The windows of a clip; filled ones follow each other, none is moved back."""
        if not self.fill_windows:
            return super().windows(samples, clip)
        full = self.grid.window_steps * PATCH  # filterbank frames
        count = max(self.fill_windows, -(-_fbank_frames(samples) // full))
        starts = (i * full * HOP for i in range(count))
        length = full * HOP + self.grid.overhang
        frames = self.frames_per_window
        return [
            Window(clip, min(start, samples), min(start + length, samples), 0, frames)
            for start in starts
        ]

    def _final(self, audio: Tensor) -> Tensor:
        module = self.frozen.module
        if not self.fill_windows:
            return module.extract_features(audio)[0]
        with torch.autocast(audio.device.type, enabled=False):
            if _fbank_frames(audio.shape[1]):
                fbank = module.preprocess(audio)
            else:
                fbank = audio.new_zeros(len(audio), 0, MEL_BINS)
            absent = self.grid.window_steps * PATCH - fbank.shape[1]
            fbank = nn.functional.pad(fbank, (0, 0, 0, absent))
        patches = module.patch_embedding(fbank[:, None]).flatten(2).transpose(1, 2)
        frames = module.layer_norm(patches)  # (N, F, embedding)
        if module.post_extract_proj is not None:
            frames = module.post_extract_proj(frames)
        return module.encoder(frames, padding_mask=None)[0]

    def _state(self, state: Tensor) -> Tensor:
        return state.transpose(0, 1)  # (F, N, D_a) -> (N, F, D_a)

    def identity(self) -> dict:
        """Adds the filterbank statistics and, where they are, filled windows."""
        statistics = {"fbank_mean": self.fbank_mean, "fbank_std": self.fbank_std}
        # None equals the absence of the name in older caches
        filled = {"fill_windows": self.fill_windows or None}
        return {**super().identity(), **statistics, **filled}


def _fbank_frames(samples: int) -> int:
    """Filterbank frames of audio: those that lie wholly in it."""
    return max(0, 1 + (samples - FRAME) // HOP)


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and encoder weights of a BEATs checkpoint."""
    checkpoint = read_checkpoint(path)
    if not {"cfg", "model"} <= checkpoint.keys():
        raise WeightsError(
            f'{path}: expected a BEATs checkpoint with "cfg" and "model", found '
            f"{shown(sorted(checkpoint))}. ESPnet's generate_beats_checkpoint makes "
            "one from a trained OpenBEATs model."
        )
    weights = checkpoint["model"]
    if "encoder.patch_embedding.weight" in weights:
        # An ESPnet classifier fine-tuned from BEATs, saved whole.
        weights = {
            name.removeprefix("encoder."): value
            for name, value in weights.items()
            if name.startswith("encoder.")
        }
    # 202611's flash attention applies dropout in eval mode too, so it is not used.
    return {**checkpoint["cfg"], "use_flash_attn": False}, weights
