"""A system's models, and how clips of any kind reach them in batches.

Owns the loaded components, the frozen audio encoder that they share, batches that do
not change a result, and the lock. It leaves what is asked of the models to
`generation`, `retrieval`, `classification`, `attention` and `windows`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch

from espnet2_slit.common import templates
from espnet2_slit.common.identity import comes_from_hub, identity_differences
from espnet2_slit.common.padded import Padded
from espnet2_slit.data.audio import AudioError
from espnet2_slit.data.feature_cache import in_order, length_batches
from espnet2_slit.inference.clips import AudioClips, Clips, FrameCache, pad
from espnet2_slit.inference.defaults import TaskDefaults, read_defaults, wording
from espnet2_slit.inference.requests import InferenceError, Options, generation_options
from espnet2_slit.inference.system import read_config, resolve
from espnet2_slit.model.language_model import GenerationOptions
from espnet2_slit.model.qformer import QFormer

# Padded seconds in one batch: 16 clips of 10 s; a longer clip is a batch of its own.
BATCH_SECONDS = 160.0
MAX_WINDOWS = 8  # windows of a clip, as of AudioEncoder where a training names none

P = ParamSpec("P")
R = TypeVar("R")


def computes(
    function: Callable[Concatenate[Engine, P], R],
) -> Callable[Concatenate[Engine, P], R]:
    """Run a function of an engine without gradients, and alone on it.

    Hooks hang on the modules for the time of a computation (of the vocabulary
    projection, of the attention), and random numbers are the process': so threads take
    their turns.
    """

    @functools.wraps(function)
    def alone(engine: Engine, *args: P.args, **options: P.kwargs) -> R:
        with engine.lock, torch.inference_mode():
            return function(engine, *args, **options)

    return alone


@dataclass
class Component:
    """One trained model of a system.

    Attributes:
        model: RepresentationModel or PromptedModel.
        options: of its training.
        preprocess: SLITPreprocessor as in training.
        config_file: where the options came from.
        model_file: where the weights came from.
    """

    model: Any
    options: argparse.Namespace
    preprocess: Any
    config_file: Path
    model_file: Path

    def __post_init__(self) -> None:
        # A text of an evaluation set stands in hundreds of pairs.
        self.text_ids = functools.lru_cache(maxsize=200_000)(self._text_ids)
        self.prompt = functools.lru_cache(maxsize=10_000)(self._prompt)

    @property
    def qformer(self) -> QFormer:
        """Its Q-Former.

        Raises:
            InferenceError: stacked frames stand in its place.
        """
        if self.model.qformer is None:
            raise InferenceError(
                f"{self.config_file}: expected a Q-Former, whose queries look at "
                f"frames, found connector: {self.options.connector}. Ask a system with "
                "one."
            )
        return self.model.qformer

    def _text_ids(self, text: str) -> np.ndarray:
        """Ids of a text for the Q-Former."""
        return self.preprocess("", {"text": text})["qformer_text"]

    def _prompt(self, instruction: str) -> dict[str, np.ndarray]:
        """{"llm_prompt": ids, "qformer_instruction": ids}, as far as the model has it.

        A generative model has one fixed prompt, or none; a question then goes to the
        language model alone.
        """
        if self.options.model == "instruction":
            arrays = self.preprocess("", {"instruction": instruction})
            names = ("llm_prompt", "qformer_instruction")
            return {name: arrays[name] for name in names if name in arrays}
        if instruction == templates.instruction("caption"):
            ids = self.preprocess.prompt_ids
            return {"llm_prompt": np.asarray(ids)} if ids else {}
        ids = self.preprocess.prompt_encoder.encode_prompt(instruction)
        return {"llm_prompt": np.asarray(ids)}


def load_component(
    config_file: str | Path,
    model_file: str | Path,
    device: torch.device,
    moved: dict[str, str | None],
) -> Component:
    """Build one component, its frozen parts found where they are now.

    Args:
        config_file: config.yaml of its training.
        model_file: its weights.
        device: where it goes.
        moved: {name of a frozen part: its path now, or None}.

    Raises:
        InferenceError: a frozen part is not there.
    """
    from espnet2_slit.task import SLITTask

    config = read_config(config_file)
    overrides: dict[str, Any] = {}
    for name in ("qformer_tokenizer", "language_model"):
        if config.get(name):
            identity = config.get(f"{name}_identity")
            overrides[name] = place_of(
                name, config[name], config_file, identity, moved[name]
            )
    # Learned layer weights belong to a component, so its encoder cannot be shared.
    weighted = (config.get("audio_encoder_conf") or {}).get("layer") == "weighted"
    if weighted:
        path = place_of(
            "audio_encoder",
            config["audio_encoder_conf"]["path"],
            config_file,
            config["audio_encoder_identity"],
            moved["audio_encoder"],
        )
        overrides["audio_encoder_conf"] = {"path": path}
    model, options = SLITTask.build_model_from_file(
        config_file,
        model_file,
        str(device),
        overrides=overrides,
        with_audio_encoder=weighted,
    )
    if config.get("language_model"):
        model.language_model.merge_adapters()
    preprocess = SLITTask.build_preprocess_fn(options, train=False)
    return Component(model, options, preprocess, Path(config_file), Path(model_file))


def place_of(
    name: str,
    value: str,
    config_file: str | os.PathLike,
    identity: dict[str, Any] | None,
    moved: str | None,
) -> str:
    """Where a frozen part is: its path, or its name on the Hub.

    Args:
        name: of the part.
        value: as the training names it.
        config_file: of the training.
        identity: of the part, as the training recorded it.
        moved: where the caller says that it is now, or None.

    Raises:
        InferenceError: nothing is there.
    """
    found = resolve(str(moved or value), config_file)
    from_hub = comes_from_hub(found, None if moved else identity)
    if not Path(found).exists() and not from_hub:
        raise InferenceError(
            f"{name}: expected a file or folder at {str(moved or value)!r} (named in"
            f" {config_file}), found nothing. Pass its path: {name}=..."
        )
    return found


class Engine:
    """The components of a system, with clips brought to them.

    Threads may share it: computations take their turns, see `computes`.

    Args:
        representation: (config.yaml, weights) of a representation training, or None.
        generator: (config.yaml, weights) of a generative or instruction training, or
            None.
        device: "cpu", "cuda" or "cuda:N".
        batch_size: clips (or questions) in a batch.
        batch_seconds: padded seconds of audio in a batch.
        moved: {"audio_encoder", "language_model", "qformer_tokenizer": path or None} of
            frozen parts that are not where training had them.

    Raises:
        InferenceError: no component given, a frozen part that is not there, components
            of different encoders.
    """

    def __init__(
        self,
        representation: tuple[Any, Any] | None,
        generator: tuple[Any, Any] | None,
        device: str,
        batch_size: int,
        batch_seconds: float,
        moved: dict[str, str | None],
    ):
        self.device = torch.device(device)
        self.batch_size, self.batch_seconds = int(batch_size), float(batch_seconds)
        self.lock = threading.RLock()
        if self.batch_size < 1:
            raise InferenceError(
                f"batch_size: expected at least 1, found {batch_size}."
            )
        self._encoder_path = moved["audio_encoder"]
        self._encoder: Any = None
        load = functools.partial(load_component, device=self.device, moved=moved)
        self.representation = load(*representation) if representation else None
        self.generator = load(*generator) if generator else None
        identities = [
            part.options.audio_encoder_identity
            for part in (self.representation, self.generator)
            if part
        ]
        if not identities:
            raise InferenceError(
                "expected a representation or a generator part, found neither."
                " Use SLIT.from_pretrained(folder)."
            )
        differences = identity_differences(identities[0], identities[-1])
        if differences:
            raise InferenceError(
                "the two parts were trained with different audio encoders: "
                + "; ".join(differences)
                + ". Link parts of one encoder (slit_pack --link true)."
            )

    # --------------------------------------------------------------- components

    @property
    def first(self) -> Component:
        """The representation part, else the generator."""
        return self.representation or self.require("generator")

    def require(self, name: str) -> Component:
        """A component that a request needs.

        Args:
            name: "representation" or "generator".

        Raises:
            InferenceError: the system does not have it.
        """
        part = getattr(self, name)
        if part is None:
            trainings = {
                "representation": "representation",
                "generator": "generative or instruction",
            }
            raise InferenceError(
                f"this system has no {name} part. Link a {trainings[name]} experiment"
                " to it (slit_pack --link true)."
            )
        return part

    @property
    def encoder_identity(self) -> dict[str, Any]:
        """What the frames are made by; caches are compared with it."""
        return self.first.options.audio_encoder_identity

    @property
    def sample_rate(self) -> int:
        """Hz of the encoder."""
        return self.encoder_identity["sample_rate"]

    @property
    def longest_s(self) -> float:
        """Seconds of audio that are read at once."""
        conf = self.first.options.audio_encoder_conf or {}
        windows = conf.get("max_windows", MAX_WINDOWS)
        return windows * float(self.encoder_identity["window_s"])

    @property
    def encoder(self) -> Any:
        """The frozen audio encoder, loaded on first use.

        Raises:
            InferenceError: its weights are not here, or not those of the training.
        """
        with self.lock:
            if self._encoder is None:
                self._encoder = self._load_encoder()
            return self._encoder

    def _load_encoder(self) -> Any:
        from espnet2_slit.model.audio_encoder import build_audio_encoder

        part = self.first
        if part.model.audio_encoder is not None:
            return part.model.audio_encoder
        conf = dict(part.options.audio_encoder_conf)
        conf["path"] = place_of(
            "audio_encoder",
            str(conf.get("path")),
            part.config_file,
            self.encoder_identity,
            self._encoder_path,
        )
        encoder = build_audio_encoder(part.options.audio_encoder, **conf)
        differences = identity_differences(self.encoder_identity, encoder.identity())
        if differences:
            raise InferenceError(
                f"audio_encoder: {conf['path']} is not the encoder of the training: "
                + "; ".join(differences)
                + ". Pass the right one: audio_encoder=..."
            )
        return encoder.to(self.device).eval()

    def describe(self) -> dict[str, Any]:
        """What this system is: plain values for decode.json and `info`."""
        content: dict[str, Any] = {"encoder": self.encoder_identity}
        for name in ("representation", "generator"):
            part = getattr(self, name)
            if part is not None:
                content[name] = {
                    "model": part.options.model,
                    "config": str(part.config_file),
                    "model_file": str(part.model_file),
                    "parameters": sum(p.numel() for p in part.model.parameters()),
                }
        if self.generator is not None:
            content["language_model"] = self.generator.options.language_model_identity
        return content

    # ----------------------------------------------------------- how it is asked

    @functools.cached_property
    def defaults(self) -> dict[str, TaskDefaults]:
        """How the generator is asked where a call does not say, by task."""
        options = self.require("generator").options
        return read_defaults(getattr(options, "inference_conf", None))

    def wording(self, task: str, question: str = "") -> str:
        """The instruction of a task, in the words that the generator knows best.

        Args:
            task: caption, question_answering or classification.
            question: for question_answering.
        """
        return wording(self.defaults[task], task, question)

    def writing(self, task: str, options: Options = None) -> GenerationOptions:
        """How to write: what is given, over the generator's defaults of the task.

        Args:
            task: caption or question_answering.
            options: GenerationOptions are taken as they are.
        """
        if isinstance(options, GenerationOptions):
            return options
        return generation_options(self.defaults[task].merged(options or {}))

    # -------------------------------------------------------------------- clips

    def clips(
        self,
        audio: Sequence[Any],
        sample_rate: float | None = None,
        any_length: bool = False,
    ) -> AudioClips:
        """A list of files or arrays as clips.

        Args:
            audio: see `clips.FORMS`.
            sample_rate: Hz of arrays that come without one.
            any_length: also clips that are not read at once, but in windows.

        Raises:
            AudioError: a clip that cannot be used; the message names it.
        """
        longest_s = float("inf") if any_length else self.longest_s
        return AudioClips(audio, sample_rate, self.sample_rate, longest_s)

    def batches(
        self, clips: Clips, chosen: Iterable[int] | None = None
    ) -> Iterator[tuple[list[int], list[np.ndarray]]]:
        """Batches of like length; the next one loads meanwhile.

        Args:
            clips: N clips.
            chosen: indices of those wanted; None for all.

        Yields:
            (indices, what `load` gives for each).
        """
        chosen = list(range(len(clips)) if chosen is None else chosen)
        durations = {i: clips.durations_s[i] for i in chosen}
        batches = length_batches(durations, chosen, self.batch_seconds, self.batch_size)

        def load(batch: list[int]) -> tuple[list[int], list[np.ndarray]]:
            return batch, [clips.load(i) for i in batch]

        yield from in_order(load, batches, 1)

    def frames(
        self, part: Component, clips: Clips, arrays: Sequence[np.ndarray]
    ) -> Padded:
        """Frames of one batch for a component.

        Args:
            part: a component; one with learned layer weights has an encoder of its own.
            clips: what the arrays were loaded from.
            arrays: B of them.

        Returns:
            (B, T, D_a), on the device.

        Raises:
            AudioError: the encoder does not take a clip.
        """
        padded = pad(arrays).to(self.device)
        if clips.are_frames:
            return padded
        encoder = part.model.audio_encoder
        if encoder is None:
            encoder = self.encoder
        try:
            return Padded(*encoder(*padded))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:  # a clip's fault: others go on
            which = f"one of {len(clips)} clips"
            if len(clips) == 1 and isinstance(clips, AudioClips):
                which = clips.name(0)
            raise AudioError(
                f"{which}: the audio encoder cannot read it ({error})."
            ) from error

    @contextlib.contextmanager
    def encoded(self, clips: Clips) -> Iterator[Clips]:
        """The clips as frames for several passes; waveforms are encoded now, once.

        Encoding a waveform twice costs more than keeping its frames for a while.
        Components with learned layer weights have frames of their own: nothing is kept.

        Args:
            clips: of any kind.
        """
        parts = [part for part in (self.representation, self.generator) if part]
        if clips.are_frames or any(p.model.audio_encoder is not None for p in parts):
            yield clips
            return
        width = self.first.model.encoder_width
        rate = self.encoder_identity["frames_per_second"]
        with FrameCache(len(clips), width, rate) as cache:
            with self.lock, torch.inference_mode():
                for batch, arrays in self.batches(clips):
                    cache.put(batch, self.frames(self.first, clips, arrays))
            yield cache

    def several_passes(
        self, clips: Clips, several: bool
    ) -> contextlib.AbstractContextManager[Clips]:
        """`encoded` where several passes follow, else the clips as they are."""
        return self.encoded(clips) if several else contextlib.nullcontext(clips)
