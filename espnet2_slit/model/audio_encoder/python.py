"""An audio encoder of the user's own: any callable that a Python name leads to.

The contract is the one that benchmarks of audio encoders ask for, so that an encoder
written for them is used as it is: `encoder(audio, mask) -> (features, mask)`.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from espnet2_slit.model.audio_encoder.base import AudioEncoder, Grid

CONTRACT = (
    "a torch module with forward(audio (B, S), mask (B, S)) -> features (B, T, D_a) or "
    "(features, mask (B, T)), and with output_dim and sampling_rate"
)


class PythonAudioEncoder(AudioEncoder):
    """What `package.module:factory` returns, inside our windows, cache and checks.

    The factory is code that the user names, and it is run: name only code you trust.
    Audio is cut into windows of `window_s`; padding never reaches the module, so its
    mask is always full. Where the module pads by itself, the mask that it returns says
    which frames belong to the audio.

    Args:
        path: `package.module:factory`; the module is imported as Python does, from the
            working directory, PYTHONPATH or an installed package.
        factory_conf: keywords of the factory.
        window_s: seconds of audio encoded at once.
        min_duration_s: audio shorter than this is padded with zeros up to it.
        max_windows: see `AudioEncoder`.
        windows_per_pass: see `AudioEncoder`.
        precision: see `AudioEncoder`.

    Raises:
        ValueError: the name leads to nothing, or what it gives breaks the contract.
    """

    def __init__(
        self,
        path: str,
        factory_conf: dict[str, Any] | None = None,
        window_s: float = 10.0,
        min_duration_s: float = 0.4,
        max_windows: int = 8,
        windows_per_pass: int = 32,
        precision: str = "float32",
    ):
        module = _build(path, factory_conf or {})
        rate, width = int(module.sampling_rate), int(module.output_dim)
        samples = round(window_s * rate)
        if not 0 < min_duration_s <= window_s:
            raise ValueError(
                f"min_duration_s: expected more than 0 and at most window_s "
                f"({window_s}), found {min_duration_s}"
            )
        with torch.no_grad():
            frames = _features(module, torch.zeros(1, samples), path)
        if frames.shape[-1] != width:
            raise ValueError(
                f"{path}: features are {frames.shape[-1]} wide, its output_dim says "
                f"{width}"
            )
        super().__init__(
            module,
            kind="python",
            path=path,
            weights=module,
            sample_rate=rate,
            width=width,
            grid=Grid.of_whole_windows(
                samples, frames.shape[1], round(min_duration_s * rate)
            ),
            max_windows=max_windows,
            windows_per_pass=windows_per_pass,
            precision=precision,
        )
        self.factory_conf = factory_conf or {}

    def _final(self, audio: Tensor) -> Tensor:
        return _features(self.frozen, audio, self.path)

    def identity(self) -> dict:
        """Adds the keywords of the factory."""
        return {**super().identity(), "factory_conf": self.factory_conf}


def _build(path: str, conf: dict[str, Any]) -> nn.Module:
    """The module that the factory makes."""
    name, _, attribute = path.partition(":")
    if not name or not attribute.isidentifier():
        raise ValueError(
            f"audio_encoder python: expected a path like package.module:factory, found "
            f"{path!r}"
        )
    try:
        factory = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{path}: cannot be imported ({error}). Expected a function or class that "
            "Python finds from here: set PYTHONPATH to its folder, or install its "
            "package."
        ) from error
    module = factory(**conf)
    lacking = [
        name for name in ("output_dim", "sampling_rate") if not hasattr(module, name)
    ]
    if not isinstance(module, nn.Module) or lacking:
        raise ValueError(
            f"{path} gave a {type(module).__name__} "
            + (f"without {' and '.join(lacking)}" if lacking else "")
            + f"; expected {CONTRACT}"
        )
    return module.eval()


def _features(module: nn.Module, audio: Tensor, path: str) -> Tensor:
    """Windows (N, s) of equal length -> (N, F, D_a), frames of the audio alone."""
    output = module(audio, torch.ones_like(audio, dtype=torch.bool))
    features, mask = output if isinstance(output, tuple) else (output, None)
    if not isinstance(features, Tensor) or features.dim() != 3:
        found = getattr(features, "shape", type(features).__name__)
        raise ValueError(f"{path}: expected features (B, T, D_a), found {found}")
    if mask is not None:
        features = features[:, : int(mask[0].sum())]
    if features.shape[1] == 0:
        raise ValueError(
            f"{path}: no frame for {audio.shape[1]} samples; raise min_duration_s"
        )
    return features
