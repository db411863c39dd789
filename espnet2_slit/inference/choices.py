"""Questions with options of their own: asked with them, and the options ranked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from espnet2_slit.common import templates
from espnet2_slit.data.choices import rotated
from espnet2_slit.inference.clips import Clips
from espnet2_slit.inference.engine import Engine
from espnet2_slit.inference.generation import (
    Request,
    candidate_ids,
    generate,
    score_candidates,
)
from espnet2_slit.model.language_model import GenerationOptions


@dataclass(frozen=True)
class Asked:
    """One question about a clip.

    Attributes:
        clip: its index.
        question: without options.
        options: [] for an open question.
    """

    clip: int
    question: str
    options: list[str]

    def request(self, order: int, language: str) -> Request:
        """The question with its options, those from number `order` on first."""
        if not self.options:
            return self.clip, self.question
        shown = rotated(self.options, order)
        return self.clip, templates.choice_question(self.question, shown, language)


def worded(engine: Engine, asked: Sequence[Asked], order: int = 0) -> list[Request]:
    """The questions as the system knows them best.

    Args:
        engine: with a generator part.
        asked: N questions.
        order: number of the option that is shown first.
    """
    language = engine.defaults["question_answering"].language
    requests = (one.request(order, language) for one in asked)
    return [(i, engine.wording("question_answering", text)) for i, text in requests]


def choose(
    engine: Engine,
    clips: Clips,
    asked: Sequence[Asked],
    writing: GenerationOptions,
    orders: int = 1,
) -> dict[str, np.ndarray]:
    """What a system answers to questions with options.

    Args:
        engine: with a generator part.
        clips: what the questions are about.
        asked: N questions; those without options are left out of the results.
        writing: options of the written answers.
        orders: 1, or how many orders of the options are shown in all.

    Returns:
        {"option": (N,) int, the likeliest option as the answer to the question alone,
        by its log-likelihood, "option_mean": (N,) likewise by token, "rotated<r>": (N,)
        answers to the options in order r = 1, 2, ...}; -1 and "" for open questions.
    """
    rows = [i for i, one in enumerate(asked) if one.options]
    found = {
        "option": np.full(len(asked), -1),
        "option_mean": np.full(len(asked), -1),
    }
    groups: dict[tuple[str, ...], list[int]] = {}
    for i in rows:
        groups.setdefault(tuple(asked[i].options), []).append(i)
    for options, members in groups.items():
        alone = [replace(asked[i], options=[]) for i in members]
        requests = worded(engine, alone)
        sums = score_candidates(engine, clips, requests, options)
        tokens = candidate_ids(engine, options).mask().sum(dim=1).cpu().numpy()
        found["option"][members] = sums.argmax(axis=1)
        found["option_mean"][members] = (sums / tokens).argmax(axis=1)
    for order in range(1, orders):
        written = [""] * len(asked)
        requests = worded(engine, [asked[i] for i in rows], order)
        texts = generate(engine, clips, requests, writing)
        for i, text in zip(rows, texts, strict=True):
            written[i] = text
        found[f"rotated{order}"] = np.array(written)
    return found
