"""BEATs in operations that trace: batches of clips of unequal length.

Owns the filterbank of whole batches and a pass that padding cannot reach; weights and
layers stay those of the encoder, and the frames are those that it gives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from espnet2_slit.inference.requests import InferenceError

MEL_BINS = 128  # that BEATs reads


class Filterbank(nn.Module):
    """Kaldi's logarithmic mel filterbank of whole batches, in operations that trace.

    Mean removal, pre-emphasis, window and Fourier transform of a frame are linear: one
    convolution does them all. torchaudio's own is for one clip of a fixed length.

    Args:
        sample_rate: Hz.
        bins: mel bands.
        mean: subtracted from the logarithms.
        std: half of what they are then divided by.
    """

    def __init__(self, sample_rate: int, bins: int, mean: float, std: float):
        super().__init__()
        from torchaudio.compliance import kaldi

        length, self.shift = sample_rate * 25 // 1000, sample_rate * 10 // 1000
        padded = 1 << (length - 1).bit_length()
        frame = torch.eye(length, dtype=torch.float64)  # row i: what sample i does
        frame = frame - frame.mean(dim=1, keepdim=True)
        frame = frame - 0.97 * torch.cat([frame[:, :1], frame[:, :-1]], dim=1)
        window = torch.hann_window(length, periodic=False, dtype=torch.float64) ** 0.85
        spectrum = torch.fft.rfft(frame * window, n=padded)  # (length, K)
        kernel = torch.cat([spectrum.real, spectrum.imag], dim=1).t()[:, None]
        # 20 Hz to the Nyquist frequency; warping is off
        mel = kaldi.get_mel_banks(
            bins, padded, float(sample_rate), 20.0, 0.0, 100.0, -500.0, 1.0
        )[0]
        self.register_buffer("kernel", kernel.float() * 2**15)  # of 16-bit samples
        self.register_buffer("mel", nn.functional.pad(mel, (0, 1)))
        self.mean, self.std = mean, std

    def forward(self, speech: Tensor) -> Tensor:
        """(B, S) in [-1, 1] -> (B, T, bins)."""
        kernel, mel = self.get_buffer("kernel"), self.get_buffer("mel")
        parts = nn.functional.conv1d(speech[:, None], kernel, stride=self.shift)
        real, imaginary = parts.chunk(2, dim=1)
        energy = torch.matmul(mel, real.square() + imaginary.square())
        floor = torch.finfo(torch.float32).eps
        logarithms = energy.transpose(1, 2).clamp(min=floor).log()
        return (logarithms - self.mean) / (2 * self.std)


class BeatsFrames(nn.Module):
    """(B, S) speech and (B,) samples -> (B, F, D_a) frames and (B,) their numbers.

    A clip lasts one window of the encoder at most. Its frames depend on it alone: in
    place of the padding, and of what a clip lacks of a first step, come zeros.

    Args:
        encoder: `BeatsAudioEncoder`; its modules are shared.

    Raises:
        InferenceError: an encoder that fills its windows up.
    """

    def __init__(self, encoder: Any):
        super().__init__()
        if encoder.fill_windows:
            raise InferenceError(
                "a graph reads what there is of audio; expected fill_windows 0, found"
                f" {encoder.fill_windows}"
            )
        # the module is outside torch's registry until here
        self.encoder, self.module = encoder, encoder.frozen.module
        self.filterbank = Filterbank(
            encoder.sample_rate, MEL_BINS, encoder.fbank_mean, encoder.fbank_std
        )

    def forward(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        module: Any = self.module
        grid, encoder = self.encoder.grid, self.encoder
        beyond = torch.arange(speech.shape[1])[None] >= lengths[:, None]
        one_step = grid.step + grid.overhang
        speech = nn.functional.pad(speech.masked_fill(beyond, 0.0), (0, one_step - 1))
        patches = module.patch_embedding(self.filterbank(speech)[:, None])
        features = module.layer_norm(patches.flatten(2).transpose(1, 2))
        if module.post_extract_proj is not None:
            features = module.post_extract_proj(features)
        steps = torch.div(lengths - grid.overhang, grid.step, rounding_mode="floor")
        counts = steps.clamp(min=1) * grid.frames_per_step
        padding = torch.arange(features.shape[1])[None] >= counts[:, None]
        states = _states(module.encoder, features, padding)
        if encoder.layer is None:
            output = states[-1]
            if module.encoder.layer_norm_first:
                output = module.encoder.layer_norm(output)
        elif isinstance(encoder.layer, int):
            output = states[encoder.layer]
        else:
            output = torch.stack(states)
        return encoder._combine(output), counts


def _states(transformer: Any, features: Tensor, padding: Tensor) -> list[Tensor]:
    """(B, F, D) before the first layer and after each, where padding is (B, F)."""
    x = features.masked_fill(padding[..., None], 0.0)
    x = x + transformer.pos_conv(x.transpose(1, 2)).transpose(1, 2)
    if not transformer.layer_norm_first:
        x = transformer.layer_norm(x)
    x, bias = x.transpose(0, 1), None
    states = [x]
    for layer in transformer.layers:
        x, _, bias = layer(x, self_attn_padding_mask=padding, pos_bias=bias)
        states.append(x)
    return [state.transpose(0, 1) for state in states]
