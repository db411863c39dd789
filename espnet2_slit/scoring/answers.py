"""Scores of answers to the questions of a set."""

from __future__ import annotations

import logging
from typing import Any

from espnet2_slit.common.files import read_lines
from espnet2_slit.common.templates import lettered
from espnet2_slit.data.choices import read_choices
from espnet2_slit.data.kaldi_dir import read_map
from espnet2_slit.scoring import choices
from espnet2_slit.scoring.choices import Questions, read_questions
from espnet2_slit.scoring.metrics import multiple_choice, question_answering
from espnet2_slit.scoring.metrics.bootstrap import NotComputed
from espnet2_slit.scoring.read import EXAMPLES, TaskOfSet, check_ids, spread

# Where `references` hold several right answers of a question.
RIGHT = {"any_answer": "any of the answers that annotators gave"}
CHANCE = "the most frequent answer of these rows"


def score(task: TaskOfSet) -> None:
    """Add exact match of open questions, and accuracy of those with `choices`.

    Raises:
        ScoringError: ids differ from the data's.
        DataDirError: `choices` has lines that are none.
    """
    questions = read_questions(task.data_dir)
    options = read_choices(task.data_dir, questions.ids)
    path = task.file("text")
    answers = read_map(path)
    check_ids(questions.ids, answers, task.data_dir, path)
    some = questions.without(options)
    if some.ids:
        _add(task, "free", some, answers, {})
        if not task.external and (task.data_dir / "answers").is_file():
            _score_ranked(task, some)
    if options:
        choices.score(task, questions, options, answers)
    task.keep(_examples(questions, answers, options))


def _score_ranked(task: TaskOfSet, questions: Questions) -> None:
    path = task.path / "ranked"
    if not path.is_file():
        needs = f"{path.name} answers in {task.path} (decode again)"
        task.add(("ranked",), {"exact_match": NotComputed(needs)}, {}, 0, [])
        return
    answers = read_map(path)
    check_ids(questions.ids, answers, task.data_dir, path)
    candidates = len(read_lines(task.data_dir / "answers"))
    _add(task, "ranked", questions, answers, {"candidates": candidates})


def _add(
    task: TaskOfSet,
    answering: str,
    questions: Questions,
    answers: dict[str, str],
    extra: dict[str, Any],
) -> None:
    """The rows of one way of answering, one group for each variant."""
    ids = questions.ids
    hypotheses = [answers[i] for i in ids]
    empty = sum(not h.strip() for h in hypotheses)
    if empty:
        logging.warning(
            "%s: %d of %d answers are empty: they count as wrong",
            task.path,
            empty,
            len(ids),
        )
    result = question_answering.exact_match(
        hypotheses,
        [questions.truth[i] for i in ids],
        [questions.question.get(i, "") for i in ids],
        [questions.clip[i] for i in ids],
        questions.kinds(ids),
    )
    if questions.accepted is not None:
        accepted = [questions.accepted.get(i, [questions.truth[i]]) for i in ids]
        of_clip = [questions.clip[i] for i in ids]
        found = question_answering.any_answer(hypotheses, accepted, of_clip)
        result["any_answer"] = found
    for name, variant in result.items():
        protocol = {
            "answering": answering,
            "rows": name,
            "right": RIGHT.get(name, "the answer of `text`"),
            "normalisation": question_answering.NORMALISATION,
            "empty_answers": empty,
            "resampled": "clips",
            "chance": CHANCE,
        }
        if variant.question_prior is not None:
            prior = f"{100 * variant.question_prior:.1f} %"
            protocol["most_frequent_answer_of_each_question"] = prior
        task.add(
            (answering, name.replace("/", "_")),
            {"exact_match": variant.items},
            protocol | extra,
            variant.n,
            variant.clips,
            {"exact_match": variant.majority},
        )


def _examples(
    questions: Questions, answers: dict[str, str], options_of: dict[str, list[str]]
) -> list[dict[str, Any]]:
    normalise = question_answering.normalise
    found = []
    for i in (questions.ids[k] for k in spread(len(questions.ids), 2 * EXAMPLES)):
        said, options = answers[i], options_of.get(i, [])
        named = multiple_choice.parse_choice(said, options).option if options else None
        meant = said if named is None else options[named]
        question = " ".join([questions.question.get(i, ""), *lettered(options)])
        found.append(
            {
                "id": i,
                "audio": questions.clip[i],
                "question": question,
                "hypothesis": said,
                "answer": questions.truth[i],
                "correct": normalise(meant) == normalise(questions.truth[i]),
            }
        )
    return found
