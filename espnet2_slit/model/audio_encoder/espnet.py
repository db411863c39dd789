"""The encoder of any trained ESPnet model, from its config.yaml and weights.

Owns building the front part of the model (frontend, normalisation, pre-encoder,
encoder, post-encoder) by the classes its task names; decoders are not built.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from espnet2_slit.common.weights import load_strictly, read_weights
from espnet2_slit.model.audio_encoder.base import WRONG_FILE, AudioEncoder, Grid

PARTS = ("frontend", "normalize", "preencoder", "encoder", "postencoder")


class EspnetAudioEncoder(AudioEncoder):
    """Frontend to encoder of a trained ESPnet model, run on audio.

    Windows follow each other without overlap; a last, shorter one gives as many frames
    as the encoder makes of it.

    Args:
        path: weights (`valid.acc.best.pth`, `*epoch.pth`, ...).
        config: the model's config.yaml; "" for the one beside the weights.
        task: name of the module in `espnet2.tasks` whose classes the config names.
        sample_rate: in Hz; None takes it from `frontend_conf.fs` (16 kHz if the
            frontend does not say, as its own default).
        window_s: seconds of audio encoded at once.
        min_duration_s: audio shorter than this is padded with zeros up to it.
        max_windows: see `AudioEncoder`.
        windows_per_pass: see `AudioEncoder`.
        precision: see `AudioEncoder`.

    Raises:
        FileNotFoundError: no weights or no config.
        ValueError: weights that do not fit, or a model that does not take audio.
    """

    def __init__(
        self,
        path: str | Path,
        config: str | Path = "",
        task: str = "asr",
        sample_rate: int | None = None,
        window_s: float = 30.0,
        min_duration_s: float = 0.4,
        max_windows: int = 8,
        windows_per_pass: int = 32,
        precision: str = "float32",
    ):
        path = Path(path)
        config = Path(config) if config else path.parent / "config.yaml"
        for file, what in ((path, "weights"), (config, "config.yaml")):
            if not file.is_file():
                raise FileNotFoundError(
                    f"audio_encoder espnet: expected the model's {what}, found no file "
                    f"at {file}. Set audio_encoder_conf.path and .config."
                )
        with open(config, encoding="utf-8") as stream:
            settings = yaml.safe_load(stream)
        module = _build(settings, task, path).eval()  # before it sees any input
        rate = sample_rate or _sample_rate(settings)
        samples = int(round(window_s * rate))
        try:
            with torch.no_grad():
                width = module(torch.zeros(1, samples)).shape
        except Exception as error:
            raise ValueError(
                f"{config}: the model could not encode {window_s} s of audio at {rate} "
                f"Hz ({type(error).__name__}: {error}). Expected a model that takes "
                f"audio; its frontend is {settings.get('frontend')!r}, input_size "
                f"{settings.get('input_size')!r}."
            ) from error
        frames, width = width[1], width[2]
        super().__init__(
            module,
            kind="espnet",
            path=path,
            weights=path,
            sample_rate=rate,
            width=width,
            grid=Grid.of_whole_windows(
                samples, frames, int(round(min_duration_s * rate))
            ),
            max_windows=max_windows,
            windows_per_pass=windows_per_pass,
            precision=precision,
        )

    def _final(self, audio: Tensor) -> Tensor:
        return self.frozen(audio)


class _Front(nn.Module):
    """The parts of an ESPnet model up to its encoder, under their usual names."""

    def __init__(self, parts: dict[str, nn.Module]):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.names = tuple(parts)

    def forward(self, audio: Tensor) -> Tensor:
        """Audio (N, s) of equal length -> (N, F, D_a)."""
        lengths = torch.full((len(audio),), audio.shape[1], device=audio.device)
        states = audio
        for name in self.names:
            states, lengths = self.get_submodule(name)(states, lengths)[:2]
            if isinstance(states, tuple):  # with outputs of intermediate layers
                states = states[0]
        return states[:, : int(lengths[0])]


def _build(settings: dict, task: str, path: Path) -> _Front:
    """Build and load the parts that the config names."""
    from espnet2_slit.common import compat

    compat.prepare_espnet_import()
    if not task.isidentifier():
        raise ValueError(f"task: expected a name in espnet2.tasks, found {task!r}")
    choices = importlib.import_module(f"espnet2.tasks.{task}")
    weights = read_weights(path)
    size = settings.get("input_size")
    parts: dict[str, nn.Module] = {}
    for part in PARTS:
        name = settings.get(part)
        if name is None or (part == "frontend" and size is not None):
            continue
        known = getattr(choices, f"{part}_choices", None)
        if known is None:
            raise ValueError(
                f"espnet2.tasks.{task} has no {part}, the model's config has "
                f"{part}: {name}. Set audio_encoder_conf.task to the model's task."
            )
        conf = dict(settings.get(f"{part}_conf") or {})
        built_class = known.get_class(name)
        if part in ("encoder", "postencoder"):
            conf["input_size"] = size
        if part == "normalize" and "stats_file" in conf:
            parts[part] = _global_normalize(built_class, conf, weights, path)
        else:
            parts[part] = built_class(**conf)
        if part != "normalize":
            size = parts[part].output_size()
    if "encoder" not in parts:
        raise ValueError(f"{path}: the model's config names no encoder")
    front = _Front(parts)
    mine = tuple(f"{name}." for name in parts)
    own = {name: value for name, value in weights.items() if name.startswith(mine)}
    load_strictly(front, own, path, WRONG_FILE)
    return front


def _global_normalize(
    built_class: type, conf: dict, weights: dict, path: Path
) -> nn.Module:
    """Global normalisation from the weights: its statistics file may be elsewhere."""
    if not {"normalize.mean", "normalize.std"} <= weights.keys():
        raise ValueError(f"{path}: expected normalize.mean and normalize.std in it")
    mean, std = (weights[f"normalize.{n}"].double().numpy() for n in ("mean", "std"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "feats_stats.npz"
        np.savez(file, count=1.0, sum=mean, sum_square=std**2 + mean**2)
        part = built_class(**{**conf, "stats_file": str(file)})
    return part.float()


def _sample_rate(settings: dict) -> int:
    """ESPnet writes 16000 or "16k"."""
    rate = str((settings.get("frontend_conf") or {}).get("fs", "16k"))
    thousands = 1000 if rate.endswith("k") else 1
    return int(float(rate.removesuffix("k")) * thousands)
