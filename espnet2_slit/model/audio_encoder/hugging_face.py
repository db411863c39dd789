"""Pretrained audio encoders of transformers: AST, CLAP, Whisper, wav2vec 2.0 and kin.

Owns, for each family, how its own feature extractor is applied, how its output is laid
out in time, and how much audio it takes. To add a family: a subclass with `geometry`,
`_final` and perhaps `_arrange`, and its model type in FAMILIES.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espnet2_slit.common.identity import weights_folder
from espnet2_slit.model.audio_encoder.base import AudioEncoder, Grid

# Published checkpoints leave these out: they are for masked training.
MAY_LACK = ("masked_spec_embed",)


class HuggingFaceAudioEncoder(AudioEncoder):
    """An encoder with the feature extractor that was saved with it.

    Args:
        module: the part of the model that encodes audio.
        extractor: turns audio into the module's input.
        grid: see `AudioEncoder`.
        width: see `AudioEncoder`.
        layers: see `AudioEncoder`.
        revision: of the Hub repository, if any.
        **common: see `AudioEncoder`.
    """

    def __init__(
        self,
        module: nn.Module,
        extractor: Any,
        grid: Grid,
        width: int,
        layers: Any,
        revision: str | None,
        **common: Any,
    ):
        super().__init__(
            module,
            kind="hugging_face",
            sample_rate=extractor.sampling_rate,
            width=width,
            grid=grid,
            layers=layers,
            **common,
        )
        self.extractor, self.revision = extractor, revision

    def _extract(self, audio: Tensor, name: str, **options: Any) -> Tensor:
        """The extractor's array of that name for windows (N, s), on their device."""
        arrays = list(audio.cpu().numpy())
        features = self.extractor(
            arrays, sampling_rate=self.sample_rate, return_tensors="pt", **options
        )
        return features[name].to(device=audio.device, dtype=torch.float32)

    def identity(self) -> dict:
        """Adds the model type and the Hub revision."""
        model_type = self.frozen.module.config.model_type
        facts = {"model_type": model_type, "revision": self.revision}
        return {**super().identity(), **facts}


class AstEncoder(HuggingFaceAudioEncoder):
    """Audio Spectrogram Transformer: for every 100 ms the patches of all frequencies.

    The extractor pads each window to the model's fixed length (10.24 s), as in its
    training. The two classification tokens are left out.
    """

    @staticmethod
    def load(path: str | Path, hub: dict) -> tuple[nn.Module, Any]:
        """Model, audio module, its layers."""
        from transformers import ASTModel

        model = _load(ASTModel, path, hub)
        layers = getattr(model, "layers", None) or model.encoder.layer
        return model, layers

    @staticmethod
    def geometry(
        module: nn.Module, extractor: Any, window_s: float | None
    ) -> tuple[Grid, int]:
        """How frames lie on samples, and their width."""
        _fixed_window(window_s, "AST")
        config = module.config
        hop = extractor.sampling_rate // 100  # filterbank frames of 25 ms each 10 ms
        frame = extractor.sampling_rate // 40
        reach = config.patch_size - config.time_stride
        patches = (config.num_mel_bins - config.patch_size) // config.frequency_stride
        steps = (config.max_length - config.patch_size) // config.time_stride + 1
        grid = Grid(
            step=config.time_stride * hop,
            overhang=reach * hop + frame - hop,
            frames_per_step=patches + 1,
            window_steps=steps,
            min_samples=frame,
            drops_tail=False,
        )
        return grid, config.hidden_size

    def _final(self, audio: Tensor) -> Tensor:
        values = self._extract(audio, "input_values")
        return self.frozen(input_values=values).last_hidden_state

    def _arrange(self, output: Tensor) -> Tensor:
        patches = output[:, 2:]  # [CLS] and the distillation token
        high = self.grid.frames_per_step
        # Patches come frequency by frequency; frames are wanted in order of time.
        return patches.unflatten(1, (high, -1)).transpose(1, 2).flatten(1, 2)


class ClapEncoder(HuggingFaceAudioEncoder):
    """CLAP's HTS-AT: two frequency halves for every 0.3125 s, before pooling.

    The extractor repeats short audio up to 10 s, as in CLAP's training; frames of the
    repetitions are cut off. CLAP's fusion of long audio is not used, since it draws
    its crops at random and marks a random clip of each batch as long: windows are cut
    instead.
    """

    @staticmethod
    def load(path: str | Path, hub: dict) -> tuple[nn.Module, Any]:
        """Audio module and no layers: HTS-AT's differ in width and rate."""
        from transformers import AutoConfig, ClapAudioModel, ClapModel

        if AutoConfig.from_pretrained(path, **hub).model_type == "clap_audio_model":
            return _load(ClapAudioModel, path, hub), None
        return _load(ClapModel, path, hub).audio_model, None

    @staticmethod
    def geometry(
        module: nn.Module, extractor: Any, window_s: float | None
    ) -> tuple[Grid, int]:
        """How frames lie on samples, and their width."""
        _fixed_window(window_s, "CLAP")
        config = module.config
        ratio = config.spec_size // config.num_mel_bins
        shrink = 2 ** (len(config.depths) - 1)
        cells = config.spec_size // shrink // config.patch_stride[0]
        steps = cells * ratio  # the spectrogram is folded into a square
        grid = Grid(
            step=extractor.nb_max_samples // steps,
            overhang=0,
            frames_per_step=cells // ratio,
            window_steps=steps,
            min_samples=extractor.hop_length,
            drops_tail=False,
        )
        return grid, config.hidden_size

    def _final(self, audio: Tensor) -> Tensor:
        features = self._extract(audio, "input_features")
        short = torch.zeros(len(audio), 1, dtype=torch.bool, device=audio.device)
        return self.frozen(features, is_longer=short).last_hidden_state

    def _arrange(self, output: Tensor) -> Tensor:
        # (N, D_a, frequency, time) -> (N, time * frequency, D_a)
        return output.permute(0, 3, 2, 1).flatten(1, 2)


class WhisperEncoder(HuggingFaceAudioEncoder):
    """Whisper's encoder: a frame for every 20 ms.

    Without `window_s` the extractor pads each window to 30 s, as in Whisper's training,
    so short clips cost as much as long ones; frames of the padding are cut off. With it
    a window is as long as its audio and takes the first of Whisper's positions.
    """

    @staticmethod
    def load(path: str | Path, hub: dict) -> tuple[nn.Module, Any]:
        """Audio module and its layers."""
        from transformers import WhisperModel

        encoder = _load(WhisperModel, path, hub).encoder
        return encoder, encoder.layers

    @staticmethod
    def geometry(
        module: nn.Module, extractor: Any, window_s: float | None
    ) -> tuple[Grid, int]:
        """How frames lie on samples, and their width."""
        steps = module.config.max_source_positions
        step = extractor.n_samples // steps
        if window_s is not None:
            longest = extractor.n_samples / extractor.sampling_rate
            steps = round(window_s * extractor.sampling_rate / step)
            if not 0 < steps <= module.config.max_source_positions:
                raise ValueError(
                    f"window_s: expected more than 0 and at most {longest:g} s, which "
                    f"are Whisper's positions; found {window_s}"
                )
        grid = Grid(
            step=step,
            overhang=0,
            frames_per_step=1,
            window_steps=steps,
            min_samples=1,
            drops_tail=False,
        )
        return grid, module.config.d_model

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.pads = self.max_duration_s * self.sample_rate == self.extractor.n_samples

    def _final(self, audio: Tensor) -> Tensor:
        if self.pads:
            features = self._extract(audio, "input_features")
            return self.frozen(features).last_hidden_state
        # The module itself insists on 30 s: its parts are called one by one instead.
        module, step = self.frozen.module, self.grid.step
        whole = self.grid.steps(audio.shape[1]) * step
        audio = nn.functional.pad(audio, (0, whole - audio.shape[1]))
        states = self._extract(audio, "input_features", padding=False)
        for convolution in (module.conv1, module.conv2):
            states = nn.functional.gelu(convolution(states))
        states = states.transpose(1, 2)  # (N, D_a, F) -> (N, F, D_a)
        states = states + module.embed_positions.weight[: states.shape[1]]
        for layer in module.layers:
            states = layer(states, None)
            states = states[0] if isinstance(states, tuple) else states
        return module.layer_norm(states)


class WaveEncoder(HuggingFaceAudioEncoder):
    """wav2vec 2.0, HuBERT, WavLM, data2vec-audio: a frame for every 20 ms.

    Windows are normalised one by one, if the extractor says so. There is never any
    padding, which matters: the group norm of the base models runs over all of time,
    masked or not.
    """

    @staticmethod
    def load(path: str | Path, hub: dict) -> tuple[nn.Module, Any]:
        """Audio module and its layers."""
        from transformers import AutoModel

        model = _load(AutoModel, path, hub)
        return model, model.encoder.layers

    @staticmethod
    def geometry(
        module: nn.Module, extractor: Any, window_s: float | None
    ) -> tuple[Grid, int]:
        """How frames lie on samples, and their width."""
        config = module.config
        step = math.prod(config.conv_stride)
        reach = 1  # samples that one frame sees
        for kernel, stride in zip(
            reversed(config.conv_kernel), reversed(config.conv_stride), strict=True
        ):
            reach = (reach - 1) * stride + kernel
        samples = round((30.0 if window_s is None else window_s) * 1000)
        samples = samples * extractor.sampling_rate // 1000
        if samples < reach:
            raise ValueError(
                f"window_s: expected {reach / extractor.sampling_rate} (one frame) or "
                f"more, found {window_s}"
            )
        grid = Grid(
            step=step,
            overhang=reach - step,
            frames_per_step=1,
            window_steps=(samples - reach) // step + 1,
            min_samples=reach,
            drops_tail=True,
        )
        return grid, config.hidden_size

    def _final(self, audio: Tensor) -> Tensor:
        values = self._extract(audio, "input_values", padding=False)
        return self.frozen(values).last_hidden_state


FAMILIES = {
    "audio-spectrogram-transformer": AstEncoder,
    "clap": ClapEncoder,
    "clap_audio_model": ClapEncoder,
    "whisper": WhisperEncoder,
    "wav2vec2": WaveEncoder,
    "hubert": WaveEncoder,
    "wavlm": WaveEncoder,
    "data2vec-audio": WaveEncoder,
}


def load_hugging_face(
    path: str | Path,
    layer: int | str | None = None,
    window_s: float | None = None,
    revision: str | None = None,
    max_windows: int = 8,
    windows_per_pass: int = 32,
    precision: str = "float32",
    pool: int = 1,
) -> HuggingFaceAudioEncoder:
    """Load an audio encoder with its feature extractor.

    Args:
        path: folder of `save_pretrained`, or a name on the Hugging Face Hub. The model
            type in its config.json decides the family.
        layer: see `AudioEncoder`; CLAP has no choice.
        window_s: seconds encoded at once, 30 by default. Whisper takes at most 30 and
            then pads nothing; AST and CLAP have fixed windows of their own.
        revision: branch, tag or commit on the Hub.
        max_windows: see `AudioEncoder`.
        windows_per_pass: see `AudioEncoder`.
        precision: see `AudioEncoder`.
        pool: see `AudioEncoder`; Whisper alone has a choice.

    Returns:
        The encoder, in eval mode.

    Raises:
        ValueError: another model type, missing weights, or an option out of range.
    """
    from transformers import AutoConfig, AutoFeatureExtractor

    hub = dict(revision=revision)
    model_type = AutoConfig.from_pretrained(path, **hub).model_type
    if model_type not in FAMILIES:
        raise ValueError(
            f"{path}: expected a model of type {', '.join(FAMILIES)}; found "
            f"{model_type!r}. Choose another encoder, or add its family to "
            "audio_encoder/hugging_face.py."
        )
    family = FAMILIES[model_type]
    module, layers = family.load(path, hub)
    extractor = AutoFeatureExtractor.from_pretrained(path, **hub)
    grid, width = family.geometry(module, extractor, window_s)
    return family(
        module,
        extractor,
        grid,
        width,
        layers,
        revision,
        path=path,
        weights=weights_folder(path, revision),
        layer=layer,
        max_windows=max_windows,
        windows_per_pass=windows_per_pass,
        precision=precision,
        pool=pool,
    )


def _load(model_class: Any, path: str | Path, hub: dict) -> nn.Module:
    model, report = model_class.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, **hub
    )
    missing = [n for n in sorted(report["missing_keys"]) if not n.endswith(MAY_LACK)]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} weights of {type(model).__name__} are not in its "
            f"files, so they would stay random: {', '.join(missing[:8])}. Give the "
            "folder of a complete model."
        )
    return model


def _fixed_window(window_s: float | None, family: str) -> None:
    if window_s is not None:
        raise ValueError(
            f"window_s: {family} has a window of its own; expected null, found "
            f"{window_s}"
        )
