"""Instruction wording per task and language, read from `wordings/<language>.yaml`.

Used where a data directory has no `instruction` file of its own (readers of public
corpora, a bare ESPnet recipe) and as the wording of a system's commands. The first
entry of a list is the default, used outside training.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from espnet2_slit.common.files import read_yaml
from espnet2_slit.common.names import SAMPLE_TASKS

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_OPTIONS = len(LETTERS)
# What each wording leaves open.
OPEN = {
    "caption": (),
    "question_answering": ("{question}",),
    "classification": (),
    "choices": ("{question}", "{options}"),
    "entailment": ("{statement}",),
}
# Does a statement follow from the audio? Label of a corpus -> answer.
ENTAILMENT_ANSWERS = {"entailment": "yes", "neutral": "neutral", "contradiction": "no"}
_FOLDER = Path(__file__).parent / "wordings"


def languages() -> list[str]:
    """Languages that have wordings, as ISO 639 codes."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


@functools.cache
def wordings(language: str = "en") -> dict[str, tuple[str, ...]]:
    """The wordings of a language.

    Args:
        language: one of `languages()`.

    Returns:
        A key of `OPEN` -> its wordings, the default first.

    Raises:
        ValueError: no such language, or a file that lacks a wording.
    """
    path = _FOLDER / f"{language}.yaml"
    if language not in languages():
        raise ValueError(
            f"language: expected one of {', '.join(languages())}, found {language!r}. "
            f"Add {path}, with the keys of en.yaml, or give the data instructions."
        )
    content = read_yaml(path, "Write it as en.yaml is.")
    for name, parts in OPEN.items():
        for text in content.get(name) or [""]:
            if not text or not all(part in text for part in parts):
                raise ValueError(
                    f"{path}: {name}: expected wordings with {parts or 'words'}, "
                    f"found {text!r}."
                )
    return {name: tuple(content[name]) for name in OPEN}


TEMPLATES = {task: wordings()[task] for task in SAMPLE_TASKS}


def instruction(
    task: str, question: str = "", variant: int = 0, language: str = "en"
) -> str:
    """Wording of an instruction.

    Args:
        task: one of SAMPLE_TASKS.
        question: the question; for question_answering only.
        variant: which wording, any integer >= 0 (taken modulo their number);
            0 is the default wording.
        language: of the wording.

    Returns:
        The instruction, ready for the language model and the Q-Former.

    Raises:
        ValueError: unknown task or language; a question missing or not asked for.
    """
    if task not in SAMPLE_TASKS:
        raise ValueError(
            f"task must be one of {', '.join(SAMPLE_TASKS)}; found {task!r}. "
            "Correct utt2task, or add the task to espnet2_slit/common/templates.py."
        )
    known = wordings(language)[task]
    wording = known[variant % len(known)]
    if ("{question}" in wording) != bool(question):
        raise ValueError(
            f"task {task}: expected {'a' if '{question}' in wording else 'no'} "
            f"question, found {question!r}."
        )
    # not str.format: a question may itself contain braces
    return wording.replace("{question}", question)


def lettered(options: Sequence[str]) -> list[str]:
    """Options as a question shows them: "(A) a dog.", "(B) rain."."""
    return [
        f"({letter}) {option.rstrip('.')}."
        for letter, option in zip(LETTERS[: len(options)], options, strict=True)
    ]


def choice_question(question: str, options: Sequence[str], language: str = "en") -> str:
    """A question with its options, as a multiple-choice set asks it.

    Args:
        question: without options.
        options: up to `MAX_OPTIONS`, in the order in which they are shown.
        language: of the wording.

    Returns:
        The instruction.
    """
    before, _, after = wordings(language)["choices"][0].partition("{options}")
    shown = " ".join(lettered(options))
    return before.replace("{question}", question) + shown + after


def entailment_question(statement: str, language: str = "en") -> str:
    """The question whether a statement follows from the audio; `ENTAILMENT_ANSWERS`."""
    return wordings(language)["entailment"][0].replace("{statement}", statement)
