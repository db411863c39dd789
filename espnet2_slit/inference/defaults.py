"""How a system is asked where a call does not say: wording, decoding, labels.

Most systems are asked in the words of `templates` and decoded with the defaults of
`GenerationOptions`. One that was trained to be asked otherwise says so in its
config.yaml under `inference_conf`, which this module reads:

    inference_conf:
        caption: {instruction: a short description, options: {max_new_tokens: 79}}
        question_answering: {instruction: "Question: {question} Answer:"}
        language: de
        classification: {label: "an audio of {}", normalize: sum}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from espnet2_slit.common import templates
from espnet2_slit.common.names import SAMPLE_TASKS

# What a plain question has not, and its longest length, as LAVIS prepares questions.
_MARKS, _WORDS = re.compile(r"[.!\"()*#:;~]"), 50


class DefaultsError(ValueError):
    """An `inference_conf` that cannot be read; the message says where."""


@dataclass(frozen=True)
class TaskDefaults:
    """How one task is asked.

    Args:
        instruction: wording, "{question}" in it for the question; "": that of
            `templates`.
        options: fields of GenerationOptions that differ from their defaults.
        plain_question: questions are lower-cased, lose punctuation but for question
            marks, commas and dashes, and end after 50 words.
        label: text that stands for a label where the language model ranks labels.
        normalize: "mean" or "sum" over a label's tokens.
        end: the end of the text counts as a token of it, for labels.
        language: of the wordings of `templates`.
    """

    instruction: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    plain_question: bool = False
    label: str = "{}"
    normalize: str = "mean"
    end: bool = True
    language: str = "en"

    def __post_init__(self):
        if self.normalize not in ("mean", "sum"):
            raise DefaultsError(
                f"normalize: expected 'mean' or 'sum', found {self.normalize!r}"
            )
        if self.language not in templates.languages():
            templates.wordings(self.language)  # raises, naming the languages
        if "{}" not in self.label:
            raise DefaultsError(
                f"label: expected '{{}}' for the label, found {self.label!r}"
            )

    def merged(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of GenerationOptions: those given, over these."""
        found = {**self.options, **given}
        if "min_new_tokens" in found and "min_new_tokens" not in given:
            # meant for the longest text of these defaults
            longest = found.get("max_new_tokens", found["min_new_tokens"])
            found["min_new_tokens"] = min(found["min_new_tokens"], longest)
        return found


def read_defaults(inference_conf: dict | None) -> dict[str, TaskDefaults]:
    """Defaults of every task.

    Args:
        inference_conf: {task: fields of `TaskDefaults`}, from a config.yaml; `language`
            is that of all tasks.

    Returns:
        One for each of `SAMPLE_TASKS`.

    Raises:
        DefaultsError: an unknown task or field, or a value that cannot be.
    """
    conf = dict(inference_conf or {})
    language = conf.pop("language", "en")
    found = {}
    for task in SAMPLE_TASKS:
        try:
            found[task] = TaskDefaults(
                **{"language": language, **(conf.pop(task, None) or {})}
            )
            if found[task].instruction:
                wording(found[task], task, "?" * (task == "question_answering"))
        except (ValueError, TypeError) as error:
            known = ", ".join(TaskDefaults.__dataclass_fields__)
            raise DefaultsError(
                f"inference_conf.{task}: {error}. Known: {known}."
            ) from error
    if conf:
        raise DefaultsError(
            f"inference_conf: expected {', '.join(SAMPLE_TASKS)}, found"
            f" {', '.join(conf)}."
        )
    return found


def wording(defaults: TaskDefaults, task: str, question: str = "") -> str:
    """The instruction of a task.

    Args:
        defaults: of the task.
        task: one of `SAMPLE_TASKS`.
        question: for question_answering only.

    Returns:
        Text for the language model and the Q-Former.

    Raises:
        DefaultsError: a wording of a question without "{question}", or the reverse.
    """
    if defaults.plain_question:
        question = " ".join(_MARKS.sub("", question.lower()).split()[:_WORDS])
    if not defaults.instruction:
        return templates.instruction(task, question, language=defaults.language)
    if ("{question}" in defaults.instruction) != (task == "question_answering"):
        raise DefaultsError(
            "instruction: '{question}' stands in the wording of question_answering and "
            f"in no other, found {defaults.instruction!r} for {task}"
        )
    return defaults.instruction.replace("{question}", question)
