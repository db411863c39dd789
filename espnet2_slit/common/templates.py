"""Instruction wording per task: data, not logic.

Used where a data directory has no `instruction` file of its own (readers of public
corpora, a bare ESPnet recipe) and as the wording of a system's commands. The first
entry of a list is the default, used outside training.
"""

from __future__ import annotations

from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_OPTIONS = len(LETTERS)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "caption": (
        "Describe the audio.",
        "What can be heard?",
        "Write a caption for this sound.",
        "Say in one sentence what happens in the recording.",
        "Give a short description of the audio clip.",
        "Summarise what you hear.",
    ),
    "question_answering": (
        "{question}",
        "Question: {question} Answer:",
        "Listen to the audio and answer: {question}",
        "{question} Answer with a word or a short phrase.",
    ),
    "classification": (
        "Which sound is this?",
        "Name the sound.",
        "What kind of sound is in the clip?",
        "Give the label of this audio.",
    ),
}

# Does a statement follow from the audio? Label of a corpus -> answer.
ENTAILMENT_ANSWERS = {"entailment": "yes", "neutral": "neutral", "contradiction": "no"}


def instruction(task: str, question: str = "", variant: int = 0) -> str:
    """Wording of an instruction.

    Args:
        task: a key of TEMPLATES.
        question: the question; for question_answering only.
        variant: which wording, any integer >= 0 (taken modulo their number);
            0 is the default wording.

    Returns:
        The instruction, ready for the language model and the Q-Former.

    Raises:
        ValueError: unknown task; a question missing or not asked for.
    """
    if task not in TEMPLATES:
        raise ValueError(
            f"task must be one of {', '.join(TEMPLATES)}; found {task!r}. "
            "Correct utt2task, or add the task to espnet2_slit/common/templates.py."
        )
    wording = TEMPLATES[task][variant % len(TEMPLATES[task])]
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


def choice_question(question: str, options: Sequence[str]) -> str:
    """A question with its options, as a multiple-choice set asks it.

    Args:
        question: without options.
        options: up to `MAX_OPTIONS`, in the order in which they are shown.

    Returns:
        The instruction.
    """
    return f"{question} Choose one: {' '.join(lettered(options))}"


def entailment_question(statement: str) -> str:
    """The question whether a statement follows from the audio; `ENTAILMENT_ANSWERS`."""
    return f"Does this follow from the audio: yes, no or neutral? {statement}"
