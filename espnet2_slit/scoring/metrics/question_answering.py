"""Question answering: exact match after a stated normalisation, by named variant."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from espnet2_slit.common.texts import bare
from espnet2_slit.scoring.metrics.bootstrap import Items, grouped_mean_items

NORMALISATION = (
    "NFC, lower case, apostrophes dropped, punctuation and symbols to blank, a number's"
    " minus and letters' marks kept, blanks collapsed"
)
YES_NO = frozenset({"yes", "no"})


def normalise(answer: str) -> str:
    """The form in which two answers are compared.

    >>> normalise(" Yes. ")
    'yes'
    """
    return bare(answer.replace("'", "").replace("’", ""))


@dataclass(frozen=True)
class VariantScore:
    """Exact match over one selection of rows.

    Attributes:
        items: Items; resampled by clip.
        clips: (U,) ids of the clips, in the order of the items.
        n: rows counted.
        majority: share of the selection's most frequent answer: what a system gets
            that knows the selection and hears nothing.
        question_prior: the same, choosing by question text; None where questions
            hardly repeat and it would be about 1 for any system.
    """

    items: Items
    clips: list[str]
    n: int
    majority: float
    question_prior: float | None


# Rows a distinct question needs on average for its most frequent answer to be a prior.
MIN_ROWS_PER_QUESTION = 5


def exact_match(
    hypotheses: Sequence[str],
    answers: Sequence[str],
    questions: Sequence[str],
    clips: Sequence[str],
    kinds: Sequence[str] | None = None,
) -> dict[str, VariantScore]:
    """Exact match of each variant and each question kind.

    Args:
        hypotheses: N answers of the system.
        answers: N true answers.
        questions: N question texts.
        clips: N clip ids; rows of one clip are resampled together.
        kinds: N question kinds, or None.

    Returns:
        {name: VariantScore}. `all_rows`: every row, so that an annotator each counts;
        `binary`: rows whose answer is yes or no; `single_word`: rows whose answer is
        one word other than those; `unanimous`: questions asked more than once of a
        clip whose answers all agree, each counted once, and its yes/no part
        `unanimous_binary`; `kind:<name>`. Variants without rows are left out.

    Raises:
        ValueError: the numbers of rows differ, or a true answer is empty.
    """
    sizes = {len(hypotheses), len(answers), len(questions), len(clips)}
    if len(sizes) != 1 or (kinds is not None and len(kinds) != len(answers)):
        raise ValueError(
            f"expected one hypothesis, answer, question and clip a row, found "
            f"{len(hypotheses)}, {len(answers)}, {len(questions)}, {len(clips)}"
            + ("" if kinds is None else f" and {len(kinds)} kinds")
        )
    truth = [normalise(a) for a in answers]
    empty = [i for i, a in enumerate(truth) if not a]
    if empty:
        raise ValueError(
            f"expected an answer in each row, found {len(empty)} empty after "
            f"normalising, first {answers[empty[0]]!r} to {questions[empty[0]]!r}"
        )
    correct = np.array(
        [normalise(h) == t for h, t in zip(hypotheses, truth, strict=True)], dtype=float
    )
    rows = {"all_rows": list(range(len(truth)))}
    rows["binary"] = [i for i, a in enumerate(truth) if a in YES_NO]
    rows["single_word"] = [
        i for i, a in enumerate(truth) if a not in YES_NO and " " not in a
    ]
    asked: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, (clip, question) in enumerate(zip(clips, questions, strict=True)):
        asked[clip, normalise(question)].append(i)
    if any(len(same) > 1 for same in asked.values()):
        rows["unanimous"] = [
            same[0]
            for same in asked.values()
            if len(same) > 1 and len({truth[i] for i in same}) == 1
        ]
        rows["unanimous_binary"] = [i for i in rows["unanimous"] if truth[i] in YES_NO]
    for i, kind in sorted(enumerate(kinds or []), key=lambda pair: pair[1]):
        rows.setdefault(f"kind:{kind}", []).append(i)

    return {
        name: _variant(chosen, correct, truth, questions, clips)
        for name, chosen in rows.items()
        if len(chosen)
    }


def any_answer(
    hypotheses: Sequence[str], accepted: Sequence[Sequence[str]], clips: Sequence[str]
) -> VariantScore:
    """Exact match with any of several right answers.

    Args:
        hypotheses: N answers of the system.
        accepted: N lists of right answers, at least one each.
        clips: N clip ids; rows of one clip are resampled together.

    Returns:
        VariantScore; `majority` is the share of rows that accept the answer which most
        rows accept.

    Raises:
        ValueError: the numbers of rows differ.
    """
    right = [{normalise(answer) for answer in answers} for answers in accepted]
    correct = [
        float(normalise(h) in some) for h, some in zip(hypotheses, right, strict=True)
    ]
    counts = Counter(answer for some in right for answer in some)
    names, groups = np.unique(list(clips), return_inverse=True)
    return VariantScore(
        items=grouped_mean_items(np.array(correct), groups, len(names)),
        clips=names.tolist(),
        n=len(right),
        majority=counts.most_common(1)[0][1] / len(right),
        question_prior=None,
    )


def _variant(
    chosen: list[int],
    correct: np.ndarray,
    truth: Sequence[str],
    questions: Sequence[str],
    clips: Sequence[str],
) -> VariantScore:
    answers = Counter(truth[i] for i in chosen)
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for i in chosen:
        by_question[normalise(questions[i])][truth[i]] += 1
    prior = sum(c.most_common(1)[0][1] for c in by_question.values()) / len(chosen)
    repeats = len(chosen) / len(by_question)
    names, groups = np.unique([clips[i] for i in chosen], return_inverse=True)
    return VariantScore(
        items=grouped_mean_items(correct[chosen], groups, len(names)),
        clips=names.tolist(),
        n=len(chosen),
        majority=answers.most_common(1)[0][1] / len(chosen),
        question_prior=prior if repeats >= MIN_ROWS_PER_QUESTION else None,
    )
