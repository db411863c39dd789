"""SLIT: caption, answer, classify, embed and search with a trained system.

The class that people use: each method reads what it is given, asks one of the modules
beside this one, and gives back plain values.

    slit = SLIT.from_pretrained("exp/mini_instruction")
    slit.caption("x.wav")
    slit.answer("x.wav", "How many dogs are there?")
    slit.classify("x.wav", ["dog", "rain"]).label
    slit.search("a dog barks", ["x.wav", "y.wav"])[0].index
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from espnet2_slit.common.names import ROUTES
from espnet2_slit.data.audio import MIN_DURATION_S
from espnet2_slit.inference.classification import (
    label_likelihoods,
    label_matches,
    label_similarities,
)
from espnet2_slit.inference.clips import AudioClips, clip_list
from espnet2_slit.inference.engine import BATCH_SECONDS, Engine
from espnet2_slit.inference.generation import generate, score_candidates
from espnet2_slit.inference.requests import (
    LABEL_TEMPLATES,
    InferenceError,
    Options,
    answer_options,
    not_empty,
    word_list,
)
from espnet2_slit.inference.retrieval import (
    DIRECTIONS,
    RERANK,
    embed_clips,
    embed_texts,
    read_queries,
    retrieve,
)
from espnet2_slit.inference.system import open_system
from espnet2_slit.inference.windows import MOMENT_WINDOWS_S, find_moments

__all__ = ["SLIT", "Classification", "Hit", "InferenceError", "WindowCaption"]


@dataclass(frozen=True)
class Classification:
    """Scores of one clip over the labels.

    Attributes:
        label: the best one.
        scores: {label: score}, best first; of one clip, comparable with each other.
    """

    label: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Hit:
    """One result of a search.

    Attributes:
        index: of the clip (or text) in what was given.
        score: higher is better; comparable within one search.
        item: the path or text itself; None for arrays.
        start_s: where in the clip what was looked for begins, seconds; None for texts.
        end_s: where it ends; None for texts.
    """

    index: int
    score: float
    item: str | None
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class WindowCaption:
    """What is heard in one window of a clip.

    Attributes:
        start_s: seconds.
        end_s: seconds.
        text: of this window alone.
    """

    start_s: float
    end_s: float
    text: str


class SLIT(Engine):
    """A trained system: one representation part, one generator part, or both.

    The representation part embeds, searches and matches; the generator part (of
    generative training or instruction tuning) writes and ranks. Both read the same
    frozen audio encoder, which is loaded when the first waveform comes. Results do not
    depend on the batch size, except for sampled text.

    Threads may share a system: what they ask is computed one after the other, since
    parts of a computation hang on the modules for its time.

    Args:
        representation_train_config: config.yaml of a representation experiment.
        representation_model_file: its weights.
        generator_train_config: config.yaml of a generative or instruction experiment.
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
        representation_train_config: str | os.PathLike | None = None,
        representation_model_file: str | os.PathLike | None = None,
        generator_train_config: str | os.PathLike | None = None,
        generator_model_file: str | os.PathLike | None = None,
        device: str = "cpu",
        batch_size: int = 16,
        batch_seconds: float = BATCH_SECONDS,
        audio_encoder: str | None = None,
        language_model: str | None = None,
        qformer_tokenizer: str | None = None,
    ):
        representation = (representation_train_config, representation_model_file)
        generator = (generator_train_config, generator_model_file)
        super().__init__(
            representation if representation_train_config else None,
            generator if generator_train_config else None,
            device,
            batch_size,
            batch_seconds,
            {
                "audio_encoder": audio_encoder,
                "language_model": language_model,
                "qformer_tokenizer": qformer_tokenizer,
            },
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        cache_dir: str | os.PathLike | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> SLIT:
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
            PackingError: nothing usable at `source`.
        """
        system = open_system(source, cache_dir, revision)
        files = {}
        for part, (config_file, model_file) in system.parts.items():
            files[f"{part}_train_config"] = config_file
            files[f"{part}_model_file"] = model_file
        return cls(**files, **options)

    def caption(
        self,
        audio: Any,
        *,
        instruction: str | None = None,
        window_s: float | None = None,
        sample_rate: float | None = None,
        options: Options = None,
    ) -> Any:
        """Describe clips.

        Args:
            audio: path, array, tensor, (array, rate) or {"array", "sampling_rate"}; or
                a list of them.
            instruction: other wording than the default.
            window_s: describe each window of so many seconds, in audio of any length;
                None: the whole clip.
            sample_rate: Hz of arrays.
            options: GenerationOptions, or a dict of its fields. `rerank` lets the
                representation part choose among the beams.

        Returns:
            A text; with `window_s` a list of WindowCaption; a list of either for a list
            of clips.
        """
        instruction = instruction or self.wording("caption")
        options = self.writing("caption", options)
        items, one = clip_list(audio)
        if window_s is None:
            clips = self.clips(items, sample_rate)
            requests = [(i, instruction) for i in range(len(clips))]
            texts = generate(self, clips, requests, options)
            return texts[0] if one else texts
        captions = _window_captions(
            self, self.clips(items, sample_rate, any_length=True),
            window_s, instruction, options,
        )  # fmt: skip
        return captions[0] if one else captions

    def answer(
        self,
        audio: Any,
        question: str | Sequence[str],
        *,
        candidates: Iterable[str] | None = None,
        sample_rate: float | None = None,
        options: Options = None,
    ) -> Any:
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
        options = answer_options(self.writing("question_answering", options))
        if candidates is not None:
            candidates = word_list("candidates", candidates)
        items, one = clip_list(audio)
        questions = [question] * len(items) if isinstance(question, str) else question
        if len(questions) != len(items):
            raise InferenceError(
                f"expected one question for each of {len(items)} clips, found"
                f" {len(questions)}."
            )
        requests = [
            (i, self.wording("question_answering", not_empty("question", q)))
            for i, q in enumerate(questions)
        ]
        clips = self.clips(items, sample_rate)
        if candidates is None:
            texts = generate(self, clips, requests, options)
        else:
            scores = score_candidates(self, clips, requests, candidates)
            texts = [candidates[i] for i in scores.argmax(axis=1)]
        return texts[0] if one else texts

    def classify(
        self,
        audio: Any,
        labels: Iterable[str],
        *,
        route: str = "similarity",
        label_templates: Iterable[str] = LABEL_TEMPLATES,
        instruction: str | None = None,
        normalize: str | None = None,
        sample_rate: float | None = None,
    ) -> Any:
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
                None: the mean, if the system does not say otherwise.
            sample_rate: Hz of arrays.

        Returns:
            Classification; a list of them for a list of clips.
        """
        if route not in ROUTES:
            raise InferenceError(f"route: expected one of {ROUTES}, found {route!r}.")
        if normalize not in (None, "sum", "mean"):
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
            sums, lengths = label_likelihoods(self, clips, labels, instruction)
            normalize = normalize or self.defaults["classification"].normalize
            scores = sums / lengths if normalize == "mean" else sums
        elif route == "matching":
            scores = label_matches(self, clips, labels, label_templates)
        else:
            scores = label_similarities(self, clips, labels, label_templates)
        results = []
        for row in scores:
            order = np.argsort(-row, kind="stable")
            ranked = {labels[i]: float(row[i]) for i in order}
            results.append(Classification(labels[order[0]], ranked))
        return results[0] if one else results

    def embed_audio(
        self, audio: Any, *, sample_rate: float | None = None
    ) -> np.ndarray:
        """Clips in the space they share with texts.

        Args:
            audio: as for `caption`.
            sample_rate: Hz of arrays.

        Returns:
            (Q, E) float32, unit length rows, the clip speaking through the row nearest
            to a text; (N, Q, E) for a list.
        """
        items, one = clip_list(audio)
        embedded = embed_clips(self, self.clips(items, sample_rate))
        return embedded[0] if one else embedded

    def embed_text(self, text: str | Iterable[str]) -> np.ndarray:
        """Texts in that space: (E,) float32; (M, E) for a list."""
        if isinstance(text, str):
            return embed_texts(self, [not_empty("text", text)])[0]
        return embed_texts(self, word_list("texts", text))

    def extract_features(
        self,
        raw_speech: Any,
        sampling_rate: float | None = None,
        return_tensors: str = "np",
    ) -> dict[str, Any]:
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
        clips = self.clips(clip_list(raw_speech)[0], sampling_rate)
        stacked = read_queries(self, clips)
        return {
            "last_hidden_state": stacked if return_tensors == "pt" else stacked.numpy()
        }

    def search(
        self,
        texts: str | Iterable[str],
        audio: Any,
        *,
        direction: str = "text_to_audio",
        top_k: int = 10,
        rerank: int = RERANK,
        sample_rate: float | None = None,
    ) -> Any:
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
        if direction not in DIRECTIONS:
            raise InferenceError(
                "direction: expected 'text_to_audio' or 'audio_to_text', found"
                f" {direction!r}."
            )
        one_text = isinstance(texts, str)
        texts = word_list("texts", [texts] if isinstance(texts, str) else texts)
        items, one_clip = clip_list(audio)
        clips = self.clips(items, sample_rate)
        found = retrieve(self, clips, texts, rerank, (direction,))
        scores = found.get(f"reranked_{direction}", found["contrastive"])
        names, one = _names(items), one_text
        if direction == "audio_to_text":
            scores, names, one = scores.T, list(texts), one_clip
        results = []
        for row in scores:
            order = np.argsort(-row, kind="stable")[:top_k]
            results.append([Hit(int(i), float(row[i]), names[i]) for i in order])
        if direction == "text_to_audio":  # the whole clip
            ends = clips.durations_s
            results = [
                [replace(hit, start_s=0.0, end_s=ends[hit.index]) for hit in hits]
                for hits in results
            ]
        return results[0] if one else results

    def moments(
        self,
        texts: str | Iterable[str],
        audio: Any,
        *,
        top_k: int = 10,
        window_s: float | Iterable[float] = MOMENT_WINDOWS_S,
        sample_rate: float | None = None,
    ) -> Any:
        """Find when in audio, of any length, something is heard.

        Args:
            texts: one text or a list.
            audio: one clip or a list, as for `caption`; read in parts.
            top_k: results for each text, over all clips.
            window_s: seconds of the windows among which moments are chosen.
            sample_rate: Hz of arrays.

        Returns:
            List of Hit, best first, with `start_s` and `end_s`; a list of such lists
            for a list of texts.
        """
        one = isinstance(texts, str)
        texts = word_list("texts", [texts] if isinstance(texts, str) else texts)
        lengths = [window_s] if isinstance(window_s, (int, float)) else list(window_s)
        items, _ = clip_list(audio)
        clips, names = self.clips(items, sample_rate, any_length=True), _names(items)
        hits: list[list[Hit]] = [[] for _ in texts]
        for clip in range(len(clips)):
            found = find_moments(self, clips, clip, texts, top_k, lengths)
            for row, moments in zip(hits, found, strict=True):
                row += [
                    Hit(clip, m.score, names[clip], m.start_s, m.end_s) for m in moments
                ]
        ranked = [sorted(row, key=lambda hit: -hit.score)[:top_k] for row in hits]
        return ranked[0] if one else ranked


def _names(items: Sequence[Any]) -> list[str | None]:
    """Paths of clips; None for arrays."""
    return [
        os.fspath(item) if isinstance(item, (str, os.PathLike)) else None
        for item in items
    ]


def _window_captions(
    slit: SLIT, clips: AudioClips, window_s: float, instruction: str, options: Options
) -> list[list[WindowCaption]]:
    """Captions of the windows of each clip.

    Raises:
        InferenceError: an impossible length.
    """
    if not MIN_DURATION_S <= window_s <= slit.longest_s:
        raise InferenceError(
            f"window_s: expected {MIN_DURATION_S} to {slit.longest_s:.4g} s, found"
            f" {window_s}."
        )
    parts, places = clips.cut(window_s)
    requests = [(i, instruction) for i in range(len(parts))]
    captions: list[list[WindowCaption]] = [[] for _ in range(len(clips))]
    texts = generate(slit, parts, requests, options)
    for (clip, start_s, end_s), text in zip(places, texts, strict=True):
        captions[clip].append(WindowCaption(start_s, end_s, text))
    return captions
