"""Scores of answers to questions with options of their own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from espnet2_slit.data.choices import rotated, rotated_files
from espnet2_slit.data.kaldi_dir import asks_questions, clip_of, read_map
from espnet2_slit.scoring.metrics import multiple_choice
from espnet2_slit.scoring.metrics.bootstrap import NotComputed
from espnet2_slit.scoring.read import (
    ScoringError,
    TaskOfSet,
    check_ids,
    read_references,
)

CHANCE = "one of a question's options at random"
ANSWERING = {
    "generated": "the option that the answer names",
    "ranked": "language model, log-likelihood of the option",
    "ranked_mean": "language model, log-likelihood per token of the option",
}


@dataclass(frozen=True)
class Questions:
    """The questions of a set.

    Attributes:
        ids: of the samples, sorted.
        truth: id -> right answer.
        question: id -> text.
        clip: id -> clip that it is about.
        kind: id -> category; None: the set has none.
        accepted: id -> all right answers; None: the set has one each.
    """

    ids: list[str]
    truth: dict[str, str]
    question: dict[str, str]
    clip: dict[str, str]
    kind: dict[str, str] | None
    accepted: dict[str, list[str]] | None

    def without(self, ids: Collection[str]) -> Questions:
        """These questions but some."""
        return replace(self, ids=[i for i in self.ids if i not in ids])

    def kinds(self, ids: Sequence[str]) -> list[str] | None:
        """The categories of some questions."""
        return None if self.kind is None else [self.kind.get(i, "") for i in ids]


def read_questions(data_dir: Path) -> Questions:
    """`text`, `references`, `instruction`, `utt2audio` and categories of a set."""
    truth = read_map(data_dir / "text")
    clips = clip_of(data_dir)
    return Questions(
        ids=sorted(truth),
        truth=truth,
        question=read_map(data_dir / "instruction"),
        clip={i: clips.get(i, i) for i in truth},
        kind=_categories(data_dir),
        accepted=(
            read_references(data_dir)
            if asks_questions(data_dir) and (data_dir / "references").is_file()
            else None
        ),
    )


def _categories(data_dir: Path) -> dict[str, str] | None:
    """`utt2kind`, else `utt2category` where that is not the same for all."""
    kinds, categories = data_dir / "utt2kind", data_dir / "utt2category"
    if kinds.is_file():
        return read_map(kinds)
    found = read_map(categories) if categories.is_file() else {}
    return found if len(set(found.values())) > 1 else None


def score(
    task: TaskOfSet,
    questions: Questions,
    options_of: dict[str, list[str]],
    answers: dict[str, str],
) -> None:
    """Add accuracy of the option that an answer names, and of the likeliest option.

    Args:
        task: on its way into the table.
        questions: of the set.
        options_of: id -> options, of the questions that have them.
        answers: id -> answer to the options in the order of the data.

    Raises:
        ScoringError: ids differ from the data's, or a right answer is no choice.
    """
    ids = sorted(options_of)
    options = [options_of[i] for i in ids]
    shown, texts = [options], [answers]
    if not task.external:
        for path in rotated_files(task.path):
            turned = int(path.suffix.removeprefix(".rotated"))
            shown.append([rotated(o, turned) for o in options])
            texts.append(read_map(path))
            check_ids(ids, texts[-1], task.data_dir / "choices", path)
    generated = [
        [
            multiple_choice.parse_choice(text[i], o)
            for i, o in zip(ids, one, strict=True)
        ]
        for text, one in zip(texts, shown, strict=True)
    ]
    _add_choices(task, "generated", questions, ids, generated, shown)
    if not task.external:
        for name in ("ranked", "ranked_mean"):
            _score_ranked(task, name, questions, ids, options)


def _score_ranked(
    task: TaskOfSet,
    name: str,
    questions: Questions,
    ids: list[str],
    options: list[list[str]],
) -> None:
    path = task.path / name
    if not path.is_file():
        needs = f"{name} answers in {task.path} (decode again)"
        where = ("choices", name, "all_rows")
        task.add(where, {"accuracy": NotComputed(needs)}, {}, 0, [])
        return
    found = read_map(path)
    check_ids(ids, set(found) & set(ids), task.data_dir / "choices", path)
    ranked = [
        multiple_choice.parse_choice(found[i], one)
        for i, one in zip(ids, options, strict=True)
    ]
    _add_choices(task, name, questions, ids, [ranked], [options])


def _add_choices(
    task: TaskOfSet,
    by: str,
    questions: Questions,
    ids: list[str],
    chosen: list[list[multiple_choice.Choice]],
    shown: list[list[list[str]]],
) -> None:
    try:
        result = multiple_choice.score_choices(
            chosen,
            shown,
            [questions.truth[i] for i in ids],
            [questions.clip[i] for i in ids],
            questions.kinds(ids),
        )
    except ValueError as error:
        raise ScoringError(f"{task.data_dir / 'choices'}: {error}") from error
    for name, found in result.items():
        protocol: dict[str, Any] = {
            "answering": ANSWERING[by],
            "rows": name,
            "orders_of_the_options": len(shown),
            "resampled": "clips",
            "chance": CHANCE,
        }
        if by == "generated":
            counts = [f"{k} {found.parsed[k]}" for k in ("text", "letter", "unparsed")]
            protocol["parsing"] = multiple_choice.PARSING
            protocol["parsed"] = ", ".join(counts)
        task.add(
            ("choices", by, name.replace("/", "_")),
            found.scores,
            protocol,
            found.n,
            found.clips,
            found.chance,
        )
