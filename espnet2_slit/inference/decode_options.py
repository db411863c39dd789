"""How evaluation sets are decoded: everything that decides the result."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from espnet2_slit.common.names import ROUTES
from espnet2_slit.inference.engine import Engine
from espnet2_slit.inference.requests import (
    LABEL_TEMPLATES,
    InferenceError,
    answer_options,
    generation_options,
    read_decode_config,
)
from espnet2_slit.inference.retrieval import RERANK
from espnet2_slit.inference.windows import MOMENT_WINDOWS_S
from espnet2_slit.model.language_model import GenerationOptions


@dataclass(frozen=True)
class DecodeOptions:
    """Everything that decides the result of decoding; conf/decode*.yaml has these keys.

    Args:
        caption: fields of GenerationOptions for captions.
        question_answering: fields of GenerationOptions for free answers.
        caption_instruction: wording for sets without `instruction`; "": the default.
        classification_instruction: likewise.
        routes: how labels are scored, of similarity, matching and language_model.
        label_templates: texts with "{}" for the label.
        rerank: candidates of each query that the matching head looks at; 0 for none.
        rerank_scale: of the cosine that is added to the matching logit in retrieval;
            None: 1 / temperature, the scale of logits; 1: the bare cosine, as LAVIS.
        choice_orders: orders in which the options of a question with `choices` are
            shown, each a rotation of the first; 1: as the data has them.
        moment_windows_s: lengths of the windows among which moments are looked for.
        attention_clips: clips whose attention maps are kept for the report.
        seed: for sampling.
    """

    caption: dict = field(default_factory=dict)
    question_answering: dict = field(default_factory=dict)
    caption_instruction: str = ""
    classification_instruction: str = ""
    routes: tuple = ROUTES
    label_templates: tuple = LABEL_TEMPLATES
    rerank: int = RERANK
    rerank_scale: float | None = None
    choice_orders: int = 1
    moment_windows_s: tuple = MOMENT_WINDOWS_S
    attention_clips: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("routes", "label_templates", "moment_windows_s"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        unknown = sorted(set(self.routes) - set(ROUTES))
        if unknown:
            raise InferenceError(f"routes: expected some of {ROUTES}, found {unknown}.")
        generation_options(self.caption)
        answer_options(self.question_answering)

    @classmethod
    def from_config(
        cls, path: str | os.PathLike | None = None, **overrides: Any
    ) -> DecodeOptions:
        """Options of a YAML file; `overrides` that are not None come first.

        Args:
            path: conf/decode*.yaml; None for the defaults.
            **overrides: fields of this class.

        Raises:
            InferenceError: an unknown key.
        """
        known = list(cls.__dataclass_fields__)
        content = read_decode_config(path, known)
        for name, value in overrides.items():
            if value is not None:
                both = isinstance(value, dict) and isinstance(content.get(name), dict)
                content[name] = {**content[name], **value} if both else value
        return cls(**content)

    def generation(self, task: str) -> GenerationOptions:
        """GenerationOptions of a task, seeded."""
        return generation_options({"seed": self.seed, **getattr(self, task)})

    def of_system(self, slit: Engine) -> DecodeOptions:
        """These options for a system, by whose defaults they are completed.

        Without what it has no part for, which is said.
        """
        if slit.generator is not None:
            caption = slit.defaults["caption"].merged(self.caption)
            answer = slit.defaults["question_answering"].merged(self.question_answering)
            complete = replace(self, caption=caption, question_answering=answer)
            return complete._without_absent_parts(slit)
        return self._without_absent_parts(slit)

    def _without_absent_parts(self, slit: Engine) -> DecodeOptions:
        if not self.caption.get("rerank") or slit.representation is not None:
            return self
        logging.warning(
            "captions are not re-ranked (rerank %s): the system has no representation"
            " part",
            self.caption["rerank"],
        )
        return replace(self, caption={**self.caption, "rerank": 0})


def decoding_facts(options: DecodeOptions, tasks: list[str]) -> dict[str, Any]:
    """What a score's protocol says of decoding: only what the tasks use."""
    facts: dict[str, Any] = {}
    for task in ("caption", "question_answering"):
        if task in tasks:
            generation = asdict(options.generation(task))
            if not generation["do_sample"]:
                for name in ("temperature", "top_p", "top_k", "seed"):
                    del generation[name]
            if not generation["rerank"]:
                del generation["rerank"]
            facts[task] = generation
    if "retrieval" in tasks:
        facts["rerank"] = options.rerank
        if options.rerank:
            scale = options.rerank_scale
            facts["rerank_scale"] = "1 / temperature" if scale is None else scale
    if "moments" in tasks:
        facts["moment_windows_s"] = list(options.moment_windows_s)
    if "classification" in tasks:
        facts["label_templates"] = list(options.label_templates)
    return facts
