"""What a caller may ask for, checked where it comes in: texts, labels, options.

Owns the errors and the forms of requests. It leaves audio to `clips` and whatever is
computed to the other modules.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from espnet2_slit.inference.system import read_config
from espnet2_slit.model.language_model import GenerationOptions

# How a label becomes a text that the contrastive and matching sides compare with audio.
LABEL_TEMPLATES = ("{}", "the sound of {}")
# How texts are to be written: the class, or a mapping of its fields.
Options = GenerationOptions | Mapping[str, Any] | None


class InferenceError(ValueError):
    """A request that cannot be served; the message says what is missing."""


def not_empty(name: str, text: Any) -> str:
    """The text itself.

    Args:
        name: of the request's field, for the error.
        text: a string that is not blank.

    Raises:
        InferenceError: blanks alone, or no string.
    """
    if not isinstance(text, str):
        raise InferenceError(f"{name}: expected a text, found {text!r}.")
    if not text.strip():
        raise InferenceError(f"{name}: the text is empty. Write some words.")
    return text


def word_list(name: str, words: Iterable[str]) -> list[str]:
    """Several texts as a list.

    Args:
        name: of the request's field, for the error.
        words: one or more texts.

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
    return [not_empty(name, word) for word in words]


def generation_options(options: Options) -> GenerationOptions:
    """GenerationOptions from None, a mapping of its fields, or itself.

    Args:
        options: None for the defaults.

    Raises:
        InferenceError: a field that it does not have, or an impossible value.
    """
    if isinstance(options, GenerationOptions):
        return options
    try:
        return GenerationOptions(**(options or {}))
    except TypeError as error:
        known = ", ".join(GenerationOptions.__dataclass_fields__)
        raise InferenceError(f"decoding options: {error}. Known: {known}.") from error
    except ValueError as error:
        raise InferenceError(f"decoding options: {error}") from error


def answer_options(options: Options) -> GenerationOptions:
    """`generation_options` for answers, which are not re-ranked.

    Args:
        options: None for the defaults.

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


def label_words(label: str) -> str:
    """A label as words: "dog_bark" -> "dog bark"."""
    return " ".join(label.replace("_", " ").split())


def label_texts(
    labels: Sequence[str], label_templates: Sequence[str]
) -> list[list[str]]:
    """For each label its texts.

    Args:
        labels: C labels.
        label_templates: P texts with "{}" for the label.

    Returns:
        C lists of P texts.

    Raises:
        InferenceError: a template without "{}".
    """
    for template in label_templates:
        if "{}" not in template:
            raise InferenceError(
                f"label template: expected '{{}}' for the label, found {template!r}."
            )
    return [
        [t.replace("{}", label_words(label)) for t in label_templates]
        for label in labels
    ]


def read_decode_config(
    path: str | os.PathLike | None, known: Sequence[str]
) -> dict[str, Any]:
    """A decoding YAML as a dict; keys that are not known are errors.

    Args:
        path: file; None gives {}.
        known: keys it may have.

    Raises:
        InferenceError: an unknown key, or not a mapping.
    """
    if not path:
        return {}
    content = read_config(path)
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise InferenceError(
            f"{path}: unknown {', '.join(unknown)}. Known: {', '.join(known)}."
        )
    return content
