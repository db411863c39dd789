"""Multiple choice: which option an answer names, accuracy, chance, order bias."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from espnet2_slit.common.templates import LETTERS
from espnet2_slit.common.texts import bare
from espnet2_slit.scoring.metrics.bootstrap import Items, Score, grouped_mean_items

PARSING = (
    "an option's text; a letter by itself, in brackets or before . ) : (also after "
    "'the answer is'); else the one option whose text stands in the answer; else, or "
    "where letter and text name two options, unparsed and wrong"
)
# "B", "(B)", "B.", "b) rain", "The correct answer is: (B) rain"; not "A dog barks".
_LETTER = re.compile(
    r"^\W*(?:the\s+)?(?:correct\s+)?(?:(?:answer|option|choice)\s*(?:is)?\s*:?\s*)?"
    r"(?:option\s+)?(?:\(([a-z])\)|([a-z])\s*(?:[).:]|$))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Choice:
    """What an answer was taken for.

    Attributes:
        option: position among the options; None: unparsed.
        by: text, letter, or unparsed.
    """

    option: int | None
    by: str


UNPARSED = Choice(None, "unparsed")


def parse_choice(answer: str, options: Sequence[str]) -> Choice:
    """Which of the options an answer names, by the rule of `PARSING`.

    Args:
        answer: as the system wrote it.
        options: as they were shown, lettered A, B, ... in this order.

    Returns:
        Choice.
    """
    texts = [bare(option) for option in options]
    said = bare(answer)
    if said and said in texts:
        return Choice(texts.index(said), "text")
    inside = _named(said, texts)
    letter = _LETTER.match(answer)
    if letter:
        at = LETTERS.index((letter[1] or letter[2]).upper())
        if at >= len(options) or (inside and texts[at] not in inside):
            return UNPARSED
        return Choice(at, "letter")
    if len(inside) == 1:
        return Choice(texts.index(inside.pop()), "text")
    return UNPARSED


def _named(said: str, texts: Sequence[str]) -> set[str]:
    """Options that stand in an answer as whole words, without those inside others."""
    padded = f" {said} "
    found = {text for text in texts if text and f" {text} " in padded}
    return {
        text
        for text in found
        if not any(text != other and f" {text} " in f" {other} " for other in found)
    }


@dataclass(frozen=True)
class ChoiceScores:
    """Scores of one selection of questions.

    Attributes:
        scores: accuracy and, with several orders, `order_consistency` (the share of
            questions for which every order gives the same option's text) and
            `first_option_rate` (how often the option that was shown first is chosen).
        chance: metric -> its expectation under guessing.
        n: questions.
        clips: (U,) ids of the resampling units.
        parsed: how many answers were read as text, letter, unparsed, over all orders.
    """

    scores: dict[str, Score]
    chance: dict[str, float]
    n: int
    clips: list[str]
    parsed: Counter[str]


def score_choices(
    chosen: Sequence[Sequence[Choice]],
    shown: Sequence[Sequence[Sequence[str]]],
    answers: Sequence[str],
    clips: Sequence[str],
    kinds: Sequence[str] | None = None,
) -> dict[str, ChoiceScores]:
    """Accuracy of all questions and of each kind.

    Args:
        chosen: for each order of the options, the N choices.
        shown: for each order, the N lists of options as they were shown.
        answers: N true answers, each an option.
        clips: N clip ids; questions of one clip are resampled together.
        kinds: N categories, or None.

    Returns:
        {"all_rows": ..., "kind:<name>": ...}.

    Raises:
        ValueError: numbers differ, or a true answer is no option.
    """
    if any(len(one) != len(answers) for one in (*chosen, *shown, clips)):
        raise ValueError(
            f"expected a choice, options, an answer and a clip for each question, found"
            f" {[len(one) for one in chosen]}, {[len(one) for one in shown]},"
            f" {len(answers)}, {len(clips)}"
        )
    truth = [bare(answer) for answer in answers]
    for answer, options in zip(answers, shown[0], strict=True):
        if bare(answer) not in map(bare, options):
            raise ValueError(
                f"expected the right answer among the options, found {answer!r} and "
                f"{list(options)}"
            )
    rows = {"all_rows": list(range(len(truth)))}
    for i, kind in sorted(enumerate(kinds or []), key=lambda pair: pair[1]):
        rows.setdefault(f"kind:{kind}", []).append(i)
    texts = [
        [
            None if c.option is None else bare(o[c.option])
            for c, o in zip(*pair, strict=True)
        ]
        for pair in zip(chosen, shown, strict=True)
    ]
    return {
        name: _selection(part, chosen, texts, shown, truth, clips)
        for name, part in rows.items()
    }


def _selection(
    part: list[int],
    chosen: Sequence[Sequence[Choice]],
    texts: list[list[str | None]],
    shown: Sequence[Sequence[Sequence[str]]],
    truth: list[str],
    clips: Sequence[str],
) -> ChoiceScores:
    names, groups = np.unique([clips[i] for i in part], return_inverse=True)

    def mean(values: Sequence[float]) -> Items:
        return grouped_mean_items(np.array(values, dtype=float), groups, len(names))

    orders = range(len(chosen))
    right = [np.mean([texts[o][i] == truth[i] for o in orders]) for i in part]
    guess = [
        [bare(x) for x in shown[0][i]].count(truth[i]) / len(shown[0][i]) for i in part
    ]
    scores: dict[str, Score] = {"accuracy": mean([float(v) for v in right])}
    chance = {"accuracy": float(np.mean(guess))}
    if len(chosen) > 1:
        named = [{texts[o][i] for o in orders} for i in part]
        same = [len(one) == 1 and None not in one for one in named]
        scores["order_consistency"] = mean([float(s) for s in same])
        first = [np.mean([chosen[o][i].option == 0 for o in orders]) for i in part]
        scores["first_option_rate"] = mean([float(v) for v in first])
        chance["first_option_rate"] = float(
            np.mean([1 / len(shown[0][i]) for i in part])
        )
    parsed = Counter(chosen[o][i].by for o in orders for i in part)
    return ChoiceScores(scores, chance, len(part), names.tolist(), parsed)
