"""SLIT: caption, answer, classify, embed and search with a trained system.

Owns bringing audio of any kind to the models in batches that do not change a result,
and what is computed once and used often: frames per clip, keys and values per clip,
tokens per text. It leaves networks to `espnet_model`, wording to `templates`,
evaluation sets to `decoding`.

    slit = SLIT.from_pretrained("exp/mini_instruction")
    slit.caption("x.wav")
    slit.answer("x.wav", "How many dogs are there?")
    slit.classify("x.wav", ["dog", "rain"]).label
    slit.search("a dog barks", ["x.wav", "y.wav"])[0].index
"""

from __future__ import annotations

import contextlib
import functools
import numbers
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from espnet2_slit.common import templates
from espnet2_slit.common.identity import comes_from_hub, identity_differences
from espnet2_slit.data.audio import AudioError, probe, read_audio, to_mono
from espnet2_slit.data.feature_cache import length_batches
from espnet2_slit.data.kaldi_matrix import FeatureReader
from espnet2_slit.inference import packing
from espnet2_slit.model.query_windows import query_windows, split_windows

ROUTES = ("similarity", "matching", "language_model")
# How a label becomes a text that the contrastive and matching sides compare with audio.
LABEL_TEMPLATES = ("{}", "the sound of {}")
RERANK = 128  # candidates that the matching head looks at, as in BLIP-2's evaluation
# Padded seconds in one batch: 16 clips of 10 s; a longer clip is a batch of its own.
BATCH_SECONDS = 160.0
FORMS = (
    "a path, an array or tensor of samples with its sample rate as (array, rate) or"
    " sample_rate=, {'array': ..., 'sampling_rate': ...}, or a list of these"
)
# Pairs of clip and text that the matching head sees at once.
PAIRS_PER_BATCH = 256


class InferenceError(ValueError):
    """A request that cannot be served; the message says what is missing."""


@dataclass(frozen=True)
class Classification:
    """Scores of one clip over the labels.

    Attributes:
        label: the best one.
        scores: {label: score}, best first; of one clip, comparable with each other.
    """

    label: str
    scores: dict


@dataclass(frozen=True)
class Hit:
    """One result of a search.

    Attributes:
        index: of the clip (or text) in what was given.
        score: higher is better; comparable within one search.
        item: the path or text itself; None for arrays.
    """

    index: int
    score: float
    item: str | None


# -------------------------------------------------------------------------- audio


class Speech:
    """Clips given as files or arrays, decoded when their batch comes.

    What clips of any kind have: a length, `durations_s` to sort them by, `load(i)`, and
    `are_frames`, which says whether that gives audio or frames.

    Args:
        items: paths, arrays, tensors, or pairs (array, sample rate).
        sample_rate: Hz of the arrays that come without one.
        target_rate: Hz of the encoder.

    Raises:
        AudioError: a file that cannot be used, before any is decoded.
    """

    are_frames = False

    def __init__(self, items, sample_rate, target_rate):
        self.target_rate = target_rate
        self.items, self.durations_s = [], []
        for i, item in enumerate(items):
            item, rate = one_clip(item, i)
            if isinstance(item, str):
                self.items.append((item, 0.0, None))
                self.durations_s.append(probe(item).duration_s)
                continue
            rate = rate or sample_rate
            if not rate:
                raise AudioError(
                    f"clip {i} is an array without a sample rate. Pass sample_rate=, or"
                    " (array, rate)."
                )
            audio = to_mono(item, rate, target_rate, name=f"clip {i}")
            self.items.append(audio)
            self.durations_s.append(len(audio) / target_rate)

    @classmethod
    def of_clips(cls, clips, target_rate):
        """Clips of a data directory (`clips.Clip`)."""
        speech = cls([], None, target_rate)
        speech.items = [(clip.path, clip.start_s, clip.end_s) for clip in clips]
        speech.durations_s = [clip.duration_s() for clip in clips]
        return speech

    def __len__(self):
        return len(self.items)

    def load(self, i):
        """(S,) float32 at the encoder's rate."""
        item = self.items[i]
        if isinstance(item, tuple):
            path, start_s, end_s = item
            return read_audio(path, self.target_rate, start_s, end_s)
        return item


class Features:
    """Clips whose frames are cached.

    Args:
        scp: feats.scp.
        keys: sample ids, one for each clip.
        frames_per_second: of the encoder.
    """

    are_frames = True

    def __init__(self, scp, keys, frames_per_second):
        self.reader = FeatureReader(scp)
        self.keys = list(keys)
        shapes = Path(scp).parent / "feats_shape"
        if shapes.is_file():
            from espnet2_slit.data.kaldi_dir import read_map

            table = read_map(shapes)
            frames = [int(table[key].split(",")[0]) for key in self.keys]
        else:
            frames = [len(self.reader[key]) for key in self.keys]
        self.durations_s = [count / frames_per_second for count in frames]

    def __len__(self):
        return len(self.keys)

    def load(self, i):
        """(T, D_a) float32."""
        return self.reader[self.keys[i]]


def one_clip(item, place):
    """A clip in any of its forms -> (path, None), or (array, its rate or None).

    Args:
        item: see FORMS.
        place: of the clip in what was given, for the error.

    Raises:
        AudioError: none of the forms.
    """
    rate = None
    if isinstance(item, dict):  # a row of datasets; undecoded ones have a path alone
        array = item.get("array")
        item, rate = array if array is not None else item.get("path"), item.get(
            "sampling_rate"
        )
    elif hasattr(item, "get_all_samples"):  # torchcodec's decoder, of datasets
        samples = item.get_all_samples()
        item, rate = samples.data, samples.sample_rate
    elif isinstance(item, tuple) and len(item) == 2:
        item, rate = item if _is_number(item[1]) else item[::-1]
    if isinstance(item, (str, os.PathLike)):
        return os.fspath(item), None
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu()
        # NumPy has no bfloat16
        item = (item.float() if item.is_floating_point() else item).numpy()
    if not isinstance(item, np.ndarray) or not (rate is None or _is_number(rate)):
        raise AudioError(
            f"clip {place}: expected {FORMS}; found {type(item).__name__}"
            + ("." if rate is None else f" with sample rate {rate!r}.")
        )
    return item, None if rate is None else float(rate)


def clip_list(audio):
    """What a caller gave as audio -> (list of clips, True if it was one clip)."""
    if isinstance(audio, tuple):
        one = len(audio) == 2 and any(_is_number(value) for value in audio)
    else:
        one = not isinstance(audio, (list, Iterator))
    return ([audio], True) if one else (list(audio), False)


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def word_list(name, words):
    """Several texts that a caller gave, as a list.

    Raises:
        InferenceError: a string, which is no list of its letters; no or empty texts.
    """
    if isinstance(words, (str, bytes)):
        raise InferenceError(
            f"{name}: expected a list of texts, found the string {words!r}. Write"
            f" [{words!r}]."
        )
    words = list(words)
    if not words:
        raise InferenceError(f"{name}: expected at least one text, found none.")
    for word in words:
        not_empty(name, word)
    return words


def not_empty(name, text):
    """The text itself.

    Raises:
        InferenceError: blanks alone, or no string.
    """
    if not isinstance(text, str):
        raise InferenceError(f"{name}: expected a text, found {text!r}.")
    if not text.strip():
        raise InferenceError(f"{name}: the text is empty. Write some words.")
    return text


def _pad(arrays):
    """Arrays of different length -> tensor (B, longest, ...), and lengths (B,)."""
    arrays = [np.asarray(array) for array in arrays]
    lengths = [len(array) for array in arrays]
    shape = (len(arrays), max(lengths), *arrays[0].shape[1:])
    padded = np.zeros(shape, arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(padded), torch.tensor(lengths)


# --------------------------------------------------------------------------- parts


@dataclass
class Part:
    """One trained model of a system.

    Attributes:
        model: RepresentationModel, GenerativeModel or InstructionModel.
        options: of its training.
        preprocess: SLITPreprocessor as in training.
        config_file: where the options came from.
        model_file: where the weights came from.
    """

    model: torch.nn.Module
    options: object
    preprocess: object
    config_file: Path
    model_file: Path

    def __post_init__(self):
        # A text of an evaluation set stands in hundreds of pairs.
        self.text_ids = functools.lru_cache(maxsize=200_000)(self._text_ids)
        self.prompt = functools.lru_cache(maxsize=10_000)(self._prompt)

    def _text_ids(self, text):
        """Ids of a text for the Q-Former."""
        return self.preprocess("", {"text": text})["qformer_text"]

    def _prompt(self, instruction):
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


def computes(method):
    """Run a method without gradients, and alone: one computation at a time."""

    @functools.wraps(method)
    def alone(self, *args, **options):
        with self._lock, torch.inference_mode():
            return method(self, *args, **options)

    return alone


class SLIT:
    """A trained system: one representation part, one generator part, or both.

    The representation part (stage 1) embeds, searches and matches; the generator part
    (stage 2 or instruction tuning) writes and ranks. Both read the same frozen audio
    encoder, which is loaded when the first waveform comes. Results do not depend on the
    batch size, except for sampled text.

    Threads may share a system: what they ask is computed one after the other, since
    parts of a computation hang on the modules for its time.

    Args:
        representation_train_config: config.yaml of a stage-1 experiment.
        representation_model_file: its weights.
        generator_train_config: config.yaml of a stage-2 or instruction experiment.
        generator_model_file: its weights.
        device: "cpu", "cuda" or "cuda:N".
        batch_size: clips (or questions) in a batch.
        batch_seconds: padded seconds of audio in a batch.
        audio_encoder: path of the encoder's weights, if they have moved.
        language_model: path or hub name of the language model, if it has moved.
        qformer_tokenizer: path of the Q-Former's tokenizer, if it has moved.

    Raises:
        InferenceError: no part given, a frozen part that is not there, parts of
            different encoders.
    """

    def __init__(
        self,
        representation_train_config=None,
        representation_model_file=None,
        generator_train_config=None,
        generator_model_file=None,
        device="cpu",
        batch_size=16,
        batch_seconds=BATCH_SECONDS,
        audio_encoder=None,
        language_model=None,
        qformer_tokenizer=None,
    ):
        self.device = torch.device(device)
        self.batch_size = int(batch_size)
        self.batch_seconds = float(batch_seconds)
        if self.batch_size < 1:
            raise InferenceError(
                f"batch_size: expected at least 1, found {batch_size}."
            )
        self._lock = threading.RLock()
        self._encoder_path = audio_encoder
        self._encoder = None
        moved = {
            "audio_encoder": audio_encoder,
            "language_model": language_model,
            "qformer_tokenizer": qformer_tokenizer,
        }
        self.representation = self.generator = None
        if representation_train_config:
            self.representation = self._load(
                representation_train_config, representation_model_file, moved
            )
        if generator_train_config:
            self.generator = self._load(
                generator_train_config, generator_model_file, moved
            )
        parts = [part for part in (self.representation, self.generator) if part]
        if not parts:
            raise InferenceError(
                "expected a representation or a generator part, found neither."
                " Use SLIT.from_pretrained(folder)."
            )
        if len(parts) == 2:
            one, other = (part.options.audio_encoder_identity for part in parts)
            differences = identity_differences(one, other)
            if differences:
                raise InferenceError(
                    "the two parts were trained with different audio encoders: "
                    + "; ".join(differences)
                    + ". Link parts of one encoder (slit_pack --link true)."
                )

    @classmethod
    def from_pretrained(cls, source, cache_dir=None, revision=None, **options):
        """Open a system.

        Args:
            source: experiment folder, archive of slit_pack, or the name of a Hugging
                Face repository.
            cache_dir: where archives are unpacked.
            revision: of the repository.
            **options: `device`, `batch_size`, and the paths of frozen parts that are
                not where training had them; see the class.

        Returns:
            SLIT.

        Raises:
            packing.PackingError: nothing usable at `source`.
        """
        system = packing.open_system(source, cache_dir, revision)
        files = {}
        for part, (config_file, model_file) in system.parts.items():
            files[f"{part}_train_config"] = config_file
            files[f"{part}_model_file"] = model_file
        return cls(**files, **options)

    def _load(self, config_file, model_file, moved):
        """Build one part, its frozen parts found where they are now."""
        from espnet2_slit.task import SLITTask

        config = packing.read_config(config_file)
        overrides = {}
        for name in ("qformer_tokenizer", "language_model"):
            value = moved[name] or config.get(name)
            if config.get(name):
                found = None if moved[name] else config.get(f"{name}_identity")
                overrides[name] = self._place(name, value, config_file, found)
        # Learned layer weights belong to a part, so its encoder cannot be shared.
        weighted = (config.get("audio_encoder_conf") or {}).get("layer") == "weighted"
        if weighted:
            path = moved["audio_encoder"] or config["audio_encoder_conf"]["path"]
            found = None if moved["audio_encoder"] else config["audio_encoder_identity"]
            path = self._place("audio_encoder", path, config_file, found)
            overrides["audio_encoder_conf"] = {"path": path}
        model, options = SLITTask.build_model_from_file(
            config_file,
            model_file,
            str(self.device),
            overrides=overrides,
            with_audio_encoder=weighted,
        )
        preprocess = SLITTask.build_preprocess_fn(options, train=False)
        return Part(model, options, preprocess, Path(config_file), Path(model_file))

    @staticmethod
    def _place(name, value, config_file, identity):
        found = packing.resolve(str(value), config_file)
        if not Path(found).exists() and not comes_from_hub(found, identity):
            raise InferenceError(
                f"{name}: expected a file or folder at {value!r} (named in"
                f" {config_file}), found nothing. Pass its path: {name}=..."
            )
        return found

    # ------------------------------------------------------------------ encoder

    @property
    def _any_part(self):
        return self.representation or self.generator

    @property
    def encoder_identity(self):
        """What the frames are made by; caches are compared with it."""
        return self._any_part.options.audio_encoder_identity

    @property
    def encoder(self):
        """The frozen audio encoder, loaded on first use.

        Raises:
            InferenceError: its weights are not here, or not those of the training.
        """
        if self._encoder is None:
            from espnet2_slit.model.audio_encoder import build_audio_encoder

            part = self._any_part
            if part.model.audio_encoder is not None:
                self._encoder = part.model.audio_encoder
                return self._encoder
            conf = dict(part.options.audio_encoder_conf)
            path = self._encoder_path or conf.get("path")
            found = None if self._encoder_path else self.encoder_identity
            conf["path"] = self._place("audio_encoder", path, part.config_file, found)
            encoder = build_audio_encoder(part.options.audio_encoder, **conf)
            differences = identity_differences(
                self.encoder_identity, encoder.identity()
            )
            if differences:
                raise InferenceError(
                    f"audio_encoder: {conf['path']} is not the encoder of the"
                    " training: "
                    + "; ".join(differences)
                    + ". Pass the right one: audio_encoder=..."
                )
            self._encoder = encoder.to(self.device).eval()
        return self._encoder

    @property
    def sample_rate(self):
        """Hz of the encoder."""
        return self.encoder_identity["sample_rate"]

    def _frames(self, part, clips, arrays):
        """Frames of one batch: (B, T, D_a) and (B,), on the device."""
        padded, lengths = _pad(arrays)
        padded, lengths = padded.to(self.device), lengths.to(self.device)
        if clips.are_frames:
            return padded, lengths
        encoder = part.model.audio_encoder
        if encoder is None:
            encoder = self.encoder
        return encoder(padded, lengths)

    def _batches(self, clips, chosen=None):
        """(indices, arrays) of batches of like length; the next one loads meanwhile."""
        chosen = range(len(clips)) if chosen is None else chosen
        durations = {i: clips.durations_s[i] for i in chosen}
        batches = length_batches(durations, chosen, self.batch_seconds, self.batch_size)
        if not batches:
            return
        with ThreadPoolExecutor(1) as reader:

            def load(batch):
                return [clips.load(i) for i in batch]

            pending = reader.submit(load, batches[0])
            for k, batch in enumerate(batches):
                arrays = pending.result()
                if k + 1 < len(batches):
                    pending = reader.submit(load, batches[k + 1])
                yield batch, arrays

    @contextlib.contextmanager
    def encoded(self, clips):
        """The clips as frames for several passes; waveforms are encoded now, once.

        Encoding a waveform twice costs more than keeping its frames for a while.
        """
        if clips.are_frames:
            yield clips
            return
        part = self._any_part
        width = part.model.qformer.encoder_width
        rate = self.encoder_identity["frames_per_second"]
        with FrameStore(len(clips), width, rate) as store:
            with self._lock, torch.inference_mode():
                for batch, arrays in self._batches(clips):
                    store.put(batch, *self._frames(part, clips, arrays))
            yield store

    def clips(self, audio, sample_rate=None):
        """A list of files or arrays as clips."""
        return Speech(audio, sample_rate, self.sample_rate)

    def _need(self, name):
        part = getattr(self, name)
        if part is None:
            stages = {
                "representation": "stage-1",
                "generator": "stage-2 or instruction",
            }
            raise InferenceError(
                f"this system has no {name} part. Link a {stages[name]} experiment to"
                " it (slit_pack --link true)."
            )
        return part

    # ------------------------------------------------------------------ writing

    def caption(self, audio, *, instruction=None, sample_rate=None, options=None):
        """Describe clips.

        Args:
            audio: path, array, tensor or (array, rate); or a list of them.
            instruction: other wording than the default.
            sample_rate: Hz of arrays.
            options: GenerationOptions, or a dict of its fields. `rerank` lets the
                representation part choose among the beams.

        Returns:
            A text; a list of them for a list.
        """
        instruction = instruction or templates.instruction("caption")
        return self._write(audio, instruction, sample_rate, options)

    def answer(
        self, audio, question, *, candidates=None, sample_rate=None, options=None
    ):
        """Answer questions about clips.

        Args:
            audio: as for `caption`.
            question: one for all clips, or a list, one for each.
            candidates: possible answers; the most likely one is returned. None: free.
            sample_rate: Hz of arrays.
            options: as for `caption`, without `rerank`; for free answers.

        Returns:
            A text; a list of them for a list of clips.
        """
        if isinstance(question, str):
            question = not_empty("question", question)
            prompt = templates.instruction("question_answering", question)
        else:
            prompt = [
                templates.instruction("question_answering", not_empty("question", one))
                for one in question
            ]
        if candidates is not None:
            candidates = word_list("candidates", candidates)
        options = answer_options(options)
        return self._write(audio, prompt, sample_rate, options, candidates)

    def _write(self, audio, prompt, sample_rate, options, candidates=None):
        items, one = clip_list(audio)
        clips = self.clips(items, sample_rate)
        prompts = [prompt] * len(clips) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(clips):
            raise InferenceError(
                f"expected one question for each of {len(clips)} clips, found"
                f" {len(prompts)}."
            )
        requests = list(enumerate(prompts))
        if candidates is None:
            texts, _ = self.respond(clips, requests, options=options)
        else:
            _, ranked = self.respond(clips, requests, False, candidates=candidates)
            texts = [candidates[i] for i in ranked.argmax(axis=1)]
        return texts[0] if one else texts

    @computes
    def respond(self, clips, requests, generate=True, options=None, candidates=None):
        """Texts, likelihoods of candidates, or both, for pairs of clip and instruction.

        Args:
            clips: Speech or Features.
            requests: list of (index of a clip, instruction).
            generate: write texts.
            options: GenerationOptions or a dict; with `rerank`, the text is taken that
                `most_fitting` chooses.
            candidates: texts to score; None scores nothing.

        Returns:
            (texts, scores): list of N texts or None; (N, C) float32 log-likelihood sums
            over the candidates' tokens or None.
        """
        part = self._need("generator")
        options = generation_options(options)
        if generate and options.rerank:
            self._need("representation")
        ids = lengths = None
        if candidates is not None:
            ids, lengths = self.candidate_ids(candidates)
        written = [[]] * len(requests)
        scores = np.zeros((len(requests), 0 if ids is None else len(ids)), np.float32)
        language_model = part.model.language_model
        twice = generate and options.rerank
        with self.encoded(clips) if twice else contextlib.nullcontext(clips) as clips:
            for batch, inputs in self._prefixes(part, clips, requests):
                if generate:
                    found = language_model.generate_several(**inputs, options=options)
                    for i, texts in zip(batch, found, strict=True):
                        written[i] = texts
                if ids is not None:
                    found = language_model.score_candidates(
                        **inputs, candidates=ids, candidate_lengths=lengths
                    )
                    scores[batch] = found.cpu().numpy()
            if twice:
                owners = [clip for clip, _ in requests]
                texts = self.most_fitting(clips, owners, written)
            else:
                texts = [row[0] for row in written] if generate else None
        return texts, scores if ids is not None else None

    @computes
    def most_fitting(self, clips, owners, candidates):
        """Of some texts for a clip the one that retrieval would rank first.

        Args:
            clips: Speech, Features or FrameStore.
            owners: N indices of clips.
            candidates: N lists of texts.

        Returns:
            N texts, those of the highest `rerank_scale` x cosine + matching logit; of
            equal ones the first.

        Source: BLIP's filter (arXiv 2201.12086 section 3.3) judges captions by its
            matching head; ours judges those of one clip against each other.
        """
        part = self._need("representation")
        texts = list(dict.fromkeys(text for row in candidates for text in row))
        row_of = {text: row for row, text in enumerate(texts)}
        embedded = self.embed_texts(texts)
        wanted = {}  # clip -> {text: its fit}
        for clip, row in zip(owners, candidates, strict=True):
            wanted.setdefault(clip, {}).update(dict.fromkeys(row))
        for batch, arrays in self._batches(clips, list(wanted)):
            frames, lengths = self._frames(part, clips, arrays)
            embedded_audio, memory = part.model.embed_audio(frames, lengths)
            audio = embedded_audio.float().cpu().numpy()
            rows = [[row_of[text] for text in wanted[clip]] for clip in batch]
            logits = self._match(part, memory, rows, texts)
            for k, clip in enumerate(batch):
                cosines = similarity(audio[k : k + 1], embedded[rows[k]])[:, 0]
                fit = self.rerank_scale * cosines + logits[k]
                wanted[clip] = dict(zip(wanted[clip], fit.tolist(), strict=True))
        return [
            max(row, key=wanted[clip].get)
            for clip, row in zip(owners, candidates, strict=True)
        ]

    def candidate_ids(self, candidates):
        """Candidate texts -> ids (C, L) and lengths (C,), EOS included."""
        part = self._need("generator")
        if not candidates:
            raise InferenceError("expected candidates to rank, found an empty list.")
        encode = part.model.language_model.encode_target
        ids, lengths = _pad([encode(text) for text in candidates])
        return ids.to(self.device), lengths.to(self.device)

    def _prefixes(self, part, clips, requests):
        """(indices of requests, what the language model reads by name) in batches.

        Requests for one clip stand together, so that its frames are made once. A batch
        has prompts of one kind: a caption may have none where a question has one.
        """
        of_clip = {}
        for i, (clip, _) in enumerate(requests):
            of_clip.setdefault(clip, []).append(i)
        for chosen, arrays in self._batches(clips, list(of_clip)):
            frames, frame_lengths = self._frames(part, clips, arrays)
            kinds = {}  # names of the fields of a prompt -> [(row, request)]
            for row, clip in enumerate(chosen):
                for i in of_clip[clip]:
                    names = tuple(part.prompt(requests[i][1]))
                    kinds.setdefault(names, []).append((row, i))
            for names, rows in kinds.items():
                for start in range(0, len(rows), self.batch_size):
                    some = rows[start : start + self.batch_size]
                    index = torch.tensor([row for row, _ in some], device=self.device)
                    batch = [i for _, i in some]
                    prompts = [part.prompt(requests[i][1]) for i in batch]
                    fields = {}
                    for name in names:
                        fields[name] = tuple(
                            tensor.to(self.device)
                            for tensor in _pad([p[name] for p in prompts])
                        )
                    prefix, prefix_lengths = part.model.prefix(
                        frames[index],
                        frame_lengths[index],
                        *fields.get("qformer_instruction", (None, None)),
                    )
                    prompt, prompt_lengths = fields.get("llm_prompt", (None, None))
                    yield batch, {
                        "prefix": prefix,
                        "prefix_lengths": prefix_lengths,
                        "prompt": prompt,
                        "prompt_lengths": prompt_lengths,
                    }

    # --------------------------------------------------------------- classifying

    def classify(
        self,
        audio,
        labels,
        *,
        route="similarity",
        label_templates=LABEL_TEMPLATES,
        instruction=None,
        normalize="mean",
        sample_rate=None,
    ):
        """Choose among labels that need not have been trained on.

        Args:
            audio: as for `caption`.
            labels: candidate labels.
            route: "similarity" (contrastive side), "matching" (matching head) or
                "language_model" (likelihood of the label as an answer).
            label_templates: texts with "{}" for the label; their ensemble is taken.
                For the first two routes.
            instruction: wording for the language model.
            normalize: "sum" or "mean" over a label's tokens; for the language model.
            sample_rate: Hz of arrays.

        Returns:
            Classification; a list of them for a list of clips.
        """
        if route not in ROUTES:
            raise InferenceError(f"route: expected one of {ROUTES}, found {route!r}.")
        if normalize not in ("sum", "mean"):
            raise InferenceError(
                f"normalize: expected 'sum' or 'mean', found {normalize!r}."
            )
        labels = word_list("labels", labels)
        label_templates = word_list("label_templates", label_templates)
        if len(set(labels)) != len(labels):
            raise InferenceError("labels: expected different labels, found equal ones.")
        items, one = clip_list(audio)
        clips = self.clips(items, sample_rate)
        if route == "language_model":
            sums, lengths = self.label_likelihoods(clips, labels, instruction)
            scores = sums / lengths if normalize == "mean" else sums
        elif route == "matching":
            scores = self.label_matches(clips, labels, label_templates)
        else:
            scores = self.label_similarities(clips, labels, label_templates)
        results = []
        for row in scores:
            order = np.argsort(-row, kind="stable")
            ranked = {labels[i]: float(row[i]) for i in order}
            results.append(Classification(labels[order[0]], ranked))
        return results[0] if one else results

    def label_likelihoods(self, clips, labels, instruction=None):
        """((N, C) log-likelihood sums, (C,) token counts), by the language model.

        Args:
            clips: Speech or Features.
            labels: C labels.
            instruction: one for all clips, or one for each.
        """
        instruction = instruction or templates.instruction("classification")
        if isinstance(instruction, str):
            instruction = [instruction] * len(clips)
        words = [label_words(label) for label in labels]
        requests = list(enumerate(instruction))
        _, sums = self.respond(clips, requests, False, candidates=words)
        return sums, self.candidate_ids(words)[1].cpu().numpy()

    def label_similarities(self, clips, labels, label_templates=LABEL_TEMPLATES):
        """(N, C) cosines; a label is the mean direction of its texts."""
        texts = label_texts(labels, label_templates)  # C x P
        text = self.embed_texts([t for group in texts for t in group])
        text = text.reshape(len(labels), -1, text.shape[-1]).mean(axis=1)  # (C,E)
        text /= np.linalg.norm(text, axis=-1, keepdims=True)
        return similarity(self.embed_clips(clips), text).T

    def label_matches(self, clips, labels, label_templates=LABEL_TEMPLATES):
        """(N, C) matching logits, mean over a label's texts."""
        texts = label_texts(labels, label_templates)
        flat = [t for group in texts for t in group]
        every = np.arange(len(flat))
        logits = self.match_pairs(clips, flat, [every] * len(clips))
        return np.stack(logits).reshape(len(clips), len(labels), -1).mean(axis=2)

    # ----------------------------------------------------------------- embedding

    def embed_audio(self, audio, *, sample_rate=None):
        """Clips in the space they share with texts.

        Args:
            audio: as for `caption`.
            sample_rate: Hz of arrays.

        Returns:
            (Q, E) float32, unit length rows, the clip speaking through the row nearest
            to a text; (N, Q, E) for a list.
        """
        items, one = clip_list(audio)
        embedded = self.embed_clips(self.clips(items, sample_rate))
        return embedded[0] if one else embedded

    def embed_text(self, text):
        """Texts in that space: (E,) float32; (M, E) for a list."""
        if isinstance(text, str):
            return self.embed_texts([not_empty("text", text)])[0]
        return self.embed_texts(word_list("texts", text))

    @computes
    def extract_features(self, raw_speech, sampling_rate=None, return_tensors="np"):
        """What the queries found in clips, asked for as of transformers' extractors.

        Args:
            raw_speech: as `audio` of `caption`; one clip is a batch of one.
            sampling_rate: Hz of arrays.
            return_tensors: "np" or "pt".

        Returns:
            {"last_hidden_state": (N, Q, D_q) float32, the Q-Former's output of the
            representation part, else of the generator without an instruction}; with
            queries for each window, those of a clip follow each other, then zeros.

        Raises:
            InferenceError: another kind of tensors.
        """
        if return_tensors not in ("np", "pt"):
            raise InferenceError(
                f"return_tensors: expected 'np' or 'pt', found {return_tensors!r}."
            )
        clips, part = (
            self.clips(clip_list(raw_speech)[0], sampling_rate),
            self._any_part,
        )
        hidden = [None] * len(clips)
        for batch, arrays in self._batches(clips):
            frames = self._frames(part, clips, arrays)
            found = query_windows(part.model.qformer, *frames)
            rows, lengths = found.join(found.hidden.float().cpu())
            for k, clip in enumerate(batch):
                hidden[clip] = rows[k] if lengths is None else rows[k, : lengths[k]]
        stacked = torch.nn.utils.rnn.pad_sequence(hidden, batch_first=True)
        return {
            "last_hidden_state": stacked if return_tensors == "pt" else stacked.numpy()
        }

    @computes
    def embed_clips(self, clips):
        """(N, Q, E) float32 of clips, Speech or Features."""
        part = self._need("representation")
        embedded = None
        for batch, arrays in self._batches(clips):
            frames, lengths = self._frames(part, clips, arrays)
            audio, _ = part.model.embed_audio(frames, lengths)  # (B,Q,E)
            if embedded is None:
                embedded = np.empty((len(clips), *audio.shape[1:]), np.float32)
            embedded[batch] = audio.float().cpu().numpy()
        if embedded is None:
            raise InferenceError("expected clips to embed, found an empty list.")
        return embedded

    @computes
    def embed_texts(self, texts, batch_size=128):
        """(M, E) float32 of texts; equal texts are encoded once."""
        part = self._need("representation")
        if not texts:
            raise InferenceError("expected texts to embed, found an empty list.")
        unique = list(dict.fromkeys(texts))
        ids = [part.text_ids(text) for text in unique]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        embedded = None
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            padded, lengths = _pad([ids[i] for i in batch])
            text = part.model.embed_text(
                padded.to(self.device), lengths.to(self.device)
            )
            if embedded is None:
                embedded = np.empty((len(unique), text.shape[-1]), np.float32)
            embedded[batch] = text.float().cpu().numpy()
        row = {text: i for i, text in enumerate(unique)}
        return embedded[[row[text] for text in texts]]

    # ---------------------------------------------------------------- retrieving

    def search(
        self,
        texts,
        audio,
        *,
        direction="text_to_audio",
        top_k=10,
        rerank=RERANK,
        sample_rate=None,
    ):
        """Search clips by text, or texts by clip.

        Args:
            texts: one text or a list.
            audio: one clip or a list, as for `caption`.
            direction: "text_to_audio" or "audio_to_text".
            top_k: results for each query.
            rerank: best candidates that the matching head looks at again; 0 for none.
            sample_rate: Hz of arrays.

        Returns:
            List of Hit, best first; a list of such lists for a list of queries.
        """
        if direction not in ("text_to_audio", "audio_to_text"):
            raise InferenceError(
                "direction: expected 'text_to_audio' or 'audio_to_text', found"
                f" {direction!r}."
            )
        one_text = isinstance(texts, str)
        texts = word_list("texts", [texts] if one_text else texts)
        items, one_clip = clip_list(audio)
        found = self.retrieve(
            self.clips(items, sample_rate), texts, rerank, (direction,)
        )
        scores = found.get(f"reranked_{direction}", found["contrastive"])
        names = [
            os.fspath(item) if isinstance(item, (str, os.PathLike)) else None
            for item in items
        ]
        one = one_text
        if direction == "audio_to_text":
            scores, names, one = scores.T, texts, one_clip
        results = []
        for row in scores:
            order = np.argsort(-row, kind="stable")[:top_k]
            results.append([Hit(int(i), float(row[i]), names[i]) for i in order])
        return results[0] if one else results

    def retrieve(
        self,
        clips,
        texts,
        rerank=RERANK,
        directions=("text_to_audio", "audio_to_text"),
        audio_embeddings=None,
        match=None,
        rerank_scale=None,
    ):
        """Scores of every text with every clip.

        Args:
            clips: N clips, Speech or Features.
            texts: M texts.
            rerank: candidates of each query that the matching head looks at; 0: none.
            directions: which re-ranked scores are wanted.
            audio_embeddings: (N, Q, E) if they are known.
            match: stands in for `match_pairs`: takes texts, and the wanted ones of each
                clip; None as its result leaves the re-ranked scores out.
            rerank_scale: of the cosine in a re-ranked score; None: 1 / temperature.

        Returns:
            {"contrastive": (M, N) cosines, "reranked_text_to_audio": (M, N),
            "reranked_audio_to_text": (M, N)}, float32. A re-ranked score is the scaled
            cosine plus the matching logit; what was not looked at stands below what
            was, in its contrastive order. Equal texts have equal scores: they are
            compared once.
        """
        self._need("representation")
        unique = list(dict.fromkeys(texts))
        if len(unique) < len(texts):
            row = {text: i for i, text in enumerate(unique)}
            found = self.retrieve(
                clips, unique, rerank, directions, audio_embeddings, match, rerank_scale
            )
            index = [row[text] for text in texts]
            return {name: array[index] for name, array in found.items()}
        twice = rerank and audio_embeddings is None
        with self.encoded(clips) if twice else contextlib.nullcontext(clips) as clips:
            if audio_embeddings is None:
                audio_embeddings = self.embed_clips(clips)
            scores = similarity(audio_embeddings, self.embed_texts(texts))  # (M,N)
            found = {"contrastive": scores}
            if not rerank:
                return found
            best = {}
            if "text_to_audio" in directions:
                best["text_to_audio"] = top_indices(scores, rerank)  # (M,k) clips
            if "audio_to_text" in directions:
                best["audio_to_text"] = top_indices(scores.T, rerank)  # (N,k) texts
            wanted = wanted_pairs(best, len(clips))
            if match is not None:
                logits = match(texts, wanted)
            else:
                logits = self.match_pairs(clips, texts, wanted)
        if logits is None:
            return found
        scale = self.rerank_scale if rerank_scale is None else rerank_scale
        table = np.full(scores.shape, np.nan, np.float32)
        for clip, (rows, values) in enumerate(zip(wanted, logits, strict=True)):
            table[rows, clip] = values
        if "text_to_audio" in best:
            found["reranked_text_to_audio"] = rerank_rows(
                scores, table, best["text_to_audio"], scale
            )
        if "audio_to_text" in best:
            found["reranked_audio_to_text"] = rerank_rows(
                scores.T, table.T, best["audio_to_text"], scale
            ).T
        return found

    @property
    def rerank_scale(self):
        """1 / temperature: a cosine times this is the contrastive side's logit.

        Matching is trained on negatives that are drawn by just this logit, so that its
        own says what the contrastive side does not know yet: the two add up. LAVIS adds
        the bare cosine, which hardly counts beside a logit.
        """
        return 1 / self._need("representation").model.temperature

    @computes
    def match_pairs(self, clips, texts, wanted):
        """Matching logits of chosen pairs.

        A clip's keys and values are made once for all its texts, and a text's tokens
        once for all clips.

        Args:
            clips: N clips; Speech, Features or FrameStore.
            texts: M texts.
            wanted: for each clip, the indices of its texts.

        Returns:
            For each clip an array of logits in the order of its indices.
        """
        part = self._need("representation")
        logits = [np.empty(len(rows), np.float32) for rows in wanted]
        chosen = [i for i, rows in enumerate(wanted) if len(rows)]
        for batch, arrays in self._batches(clips, chosen):
            frames, lengths = self._frames(part, clips, arrays)
            memory = part.model.qformer.read_frames(frames, lengths)
            found = self._match(part, memory, [wanted[clip] for clip in batch], texts)
            for clip, values in zip(batch, found, strict=True):
                logits[clip] = values
        return logits

    def _match(self, part, memory, wanted, texts):
        """Matching logits of the clips of a memory with the wanted rows of `texts`."""
        logits = [np.empty(len(rows), np.float32) for rows in wanted]
        for pairs in pair_batches(wanted):
            rows, places, texts_of = pairs.T
            used, columns = np.unique(texts_of, return_inverse=True)
            padded, text_lengths = _pad([part.text_ids(texts[t]) for t in used])
            found = part.model.match(
                memory,
                padded.to(self.device),
                text_lengths.to(self.device),
                torch.from_numpy(rows).to(self.device),
                torch.from_numpy(columns).to(self.device),
            )
            values = found.float().cpu().numpy()
            for row, place, value in zip(rows, places, values, strict=True):
                logits[row][place] = value
        return logits

    # ----------------------------------------------------------------- attention

    @computes
    def attention(self, clips, instruction=None):
        """Where the queries look, for pictures.

        Args:
            clips: Speech or Features.
            instruction: None looks through the representation part (if there is one),
                else the generator reads this instruction.

        Returns:
            For each clip (layers, Q, T) float32: weights of the cross-attention layers
            over the frames, mean over the heads; each row sums to 1, with queries for
            each window to 1 in each.
        """
        part = self.generator if instruction else self._any_part
        if part is None:
            part = self._need("generator")
        maps = [None] * len(clips)
        for batch, arrays in self._batches(clips):
            frames, lengths = self._frames(part, clips, arrays)
            reads = ()
            if instruction:
                ids = part.prompt(instruction).get("qformer_instruction")
                if ids is not None:
                    reads = tuple(t.to(self.device) for t in _pad([ids] * len(batch)))
            weights = attention_weights(part.model.qformer, frames, lengths, reads)
            for row, clip in enumerate(batch):
                maps[clip] = weights[row, :, :, : int(lengths[row])]
        return maps

    def describe(self):
        """What this system is: plain values for decode.json and `info`."""
        content = {"encoder": self.encoder_identity}
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


# ------------------------------------------------------------------------ frames


class FrameStore:
    """Frames of waveform clips between two passes, in a temporary file.

    Args:
        count: N clips.
        width: D_a.
        frames_per_second: of the encoder.
    """

    are_frames = True

    def __init__(self, count, width, frames_per_second):
        self.width, self.frames_per_second = width, frames_per_second
        self.places = [None] * count
        self.durations_s = [0.0] * count
        self.file = tempfile.TemporaryFile()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __len__(self):
        return len(self.places)

    def put(self, batch, frames, lengths):
        """Keep a batch: (B, T, D_a) and (B,)."""
        self.file.seek(0, os.SEEK_END)
        frames = frames.float().cpu().numpy()
        for clip, row, length in zip(batch, frames, lengths.tolist(), strict=True):
            self.places[clip] = (self.file.tell(), length)
            self.durations_s[clip] = length / self.frames_per_second
            self.file.write(np.ascontiguousarray(row[:length]).tobytes())

    def load(self, i):
        """(T, D_a) float32."""
        offset, length = self.places[i]
        self.file.seek(offset)
        data = self.file.read(length * self.width * 4)
        return np.frombuffer(data, np.float32).reshape(length, self.width)


# ------------------------------------------------------------- scores, small things


def attention_weights(qformer, frames, lengths, reads=()):
    """Weights of the cross-attention, which its fused kernel never holds.

    Args:
        qformer: QFormer.
        frames: (B, T, D_a).
        lengths: (B,).
        reads: (instruction (B, L), lengths (B,)) or nothing.

    Returns:
        (B, layers, Q, T) float32 array, mean over the heads.
    """
    if qformer.query_window:
        windows, real, counts = split_windows(frames, lengths, qformer.query_window)
        reads = tuple(tensor.repeat_interleave(counts, 0) for tensor in reads)
        maps = torch.from_numpy(_attention_weights(qformer, windows, real, reads))
        clips = [torch.cat(tuple(some), dim=-1) for some in maps.split(counts.tolist())]
        places = (clip.movedim(-1, 0) for clip in clips)  # (T, layers, Q)
        joined = torch.nn.utils.rnn.pad_sequence(list(places), batch_first=True)
        return joined.movedim(1, -1)[..., : frames.shape[1]].numpy()
    return _attention_weights(qformer, frames, lengths, reads)


def _attention_weights(qformer, frames, lengths, reads):
    """`attention_weights` of queries that read the whole of what is given."""
    layers = [layer.cross_attention for layer in qformer.layers]
    layers = [cross for cross in layers if cross is not None]
    projected = []
    handles = [
        cross.query.register_forward_hook(lambda *call: projected.append(call[2]))
        for cross in layers
    ]
    try:
        memory = qformer.read_frames(frames, lengths)
        qformer.forward_queries(memory, *reads)
    finally:
        for handle in handles:
            handle.remove()
    weights = []
    for cross, query, keys in zip(layers, projected, memory.keys, strict=True):
        query = query.unflatten(-1, (cross.heads, -1)).transpose(1, 2)  # (B,H,Q,d)
        scores = query @ keys.transpose(-1, -2) / keys.shape[-1] ** 0.5  # (B,H,Q,T)
        if memory.mask is not None:
            scores = scores.masked_fill(~memory.mask, float("-inf"))
        weights.append(scores.softmax(dim=-1).mean(dim=1))
    return torch.stack(weights, dim=1).float().cpu().numpy()


def generation_options(options):
    """GenerationOptions from None, a dict of its fields, or itself.

    Raises:
        InferenceError: a field that it does not have.
    """
    from espnet2_slit.model.language_model import GenerationOptions

    if isinstance(options, GenerationOptions):
        return options
    try:
        return GenerationOptions(**(options or {}))
    except TypeError as error:
        known = ", ".join(GenerationOptions.__dataclass_fields__)
        raise InferenceError(f"decoding options: {error}. Known: {known}.") from error
    except ValueError as error:
        raise InferenceError(f"decoding options: {error}") from error


def answer_options(options):
    """`generation_options` for answers, which are not re-ranked.

    Raises:
        InferenceError: also where `rerank` is set.
    """
    options = generation_options(options)
    if options.rerank:
        raise InferenceError(
            "question_answering: rerank is for captions, found"
            f" {options.rerank}: an answer does not describe its clip. Leave it out, or"
            " give the possible answers to rank."
        )
    return options


def label_words(label):
    """A label as words: "dog_bark" -> "dog bark"."""
    return " ".join(label.replace("_", " ").split())


def label_texts(labels, label_templates):
    """For each label its texts: C lists of P."""
    for template in label_templates:
        if "{}" not in template:
            raise InferenceError(
                f"label template: expected '{{}}' for the label, found {template!r}."
            )
    return [
        [t.replace("{}", label_words(label)) for t in label_templates]
        for label in labels
    ]


def similarity(audio, text, block=256):
    """Cosine of each text with the nearest query of each clip.

    Args:
        audio: (N, Q, E), unit length.
        text: (M, E), unit length.
        block: clips at once, which bounds memory to M x block x Q values.

    Returns:
        (M, N) float32.
    """
    count, queries, width = audio.shape
    scores = np.empty((len(text), count), np.float32)
    for start in range(0, count, block):
        some = audio[start : start + block]
        product = text @ some.reshape(-1, width).T  # one GEMM: (M, block * Q)
        scores[:, start : start + block] = product.reshape(
            len(text), len(some), queries
        ).max(axis=2)
    return scores


def top_indices(scores, k):
    """(rows, k) columns of the k best of each row, best first."""
    k = min(k, scores.shape[1])
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)


def wanted_pairs(best, clips):
    """For each clip, the texts that either direction wants it compared with."""
    found = [np.empty((0, 2), np.int64)]
    for direction, table in best.items():
        rows = np.repeat(np.arange(len(table)), table.shape[1])
        pair = (
            [table.ravel(), rows]
            if direction == "text_to_audio"
            else [rows, table.ravel()]
        )
        found.append(np.stack(pair, axis=1))  # (clip, text)
    pairs = np.unique(np.concatenate(found), axis=0)
    return np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, clips)))


def pair_batches(wanted, size=PAIRS_PER_BATCH):
    """Pairs in batches that the Q-Former serves without copying keys and values.

    That is, one clip with many texts, or several clips with equally many.

    Args:
        wanted: for each clip of a batch the indices of its texts.
        size: pairs in a batch.

    Yields:
        (n, 3) int64: clip, place in its list, text.
    """
    lists = [
        np.stack([np.full(len(t), row), np.arange(len(t)), t], axis=1)
        for row, t in enumerate(np.asarray(t, dtype=np.int64) for t in wanted)
    ]
    while lists:
        first = lists.pop(0)
        if len(first) > size:
            yield first[:size]
            lists.insert(0, first[size:])
            continue
        group = [first]
        while (
            lists
            and len(lists[0]) == len(first)
            and (len(group) + 1) * len(first) <= size
        ):
            group.append(lists.pop(0))
        yield np.concatenate(group)


def rerank_rows(scores, match, best, scale=1.0):
    """Contrastive scores, re-ranked at the top of each row.

    Args:
        scores: (rows, columns) cosines.
        match: matching logits where known.
        best: (rows, k) columns that were looked at.
        scale: of the cosines.

    Returns:
        (rows, columns): scaled cosine + logit at `best`; elsewhere the scaled cosine,
        moved below.
    """
    scores = scores * scale
    top = np.take_along_axis(scores, best, 1) + np.take_along_axis(match, best, 1)
    lowest, highest = top.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    ranked = scores - (highest - lowest) - 1.0
    np.put_along_axis(ranked, best, top, axis=1)
    return ranked.astype(np.float32)


def read_decode_config(path: str | os.PathLike | None, known: Sequence[str]):
    """A decoding YAML as a dict; keys that are not known are errors.

    Args:
        path: file; None gives {}.
        known: keys it may have.

    Raises:
        InferenceError: an unknown key, or not a mapping.
    """
    if not path:
        return {}
    content = packing.read_config(path)
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise InferenceError(
            f"{path}: unknown {', '.join(unknown)}. Known: {', '.join(known)}."
        )
    return content
