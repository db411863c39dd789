"""Scores of answers to the questions of a set."""

from __future__ import annotations

import logging
from typing import Any

from espnet2_slit.common.files import read_lines
from espnet2_slit.data.kaldi_dir import clip_of, read_map
from espnet2_slit.scoring.metrics import question_answering
from espnet2_slit.scoring.metrics.bootstrap import NotComputed
from espnet2_slit.scoring.read import EXAMPLES, TaskOfSet, check_ids, spread

CHANCE = "the most frequent answer of these rows"


def score(task: TaskOfSet) -> None:
    """Add exact match of free answers and, with `answers`, of ranked ones.

    Raises:
        ScoringError: ids differ from the data's.
    """
    data_dir = task.data_dir
    truth = read_map(data_dir / "text")
    questions, clips = read_map(data_dir / "instruction"), clip_of(data_dir)
    kinds = None
    if (data_dir / "utt2kind").is_file():
        kinds = read_map(data_dir / "utt2kind")
    ids = sorted(truth)
    files = {"free": task.file("text")}
    extra: dict[str, dict[str, Any]] = {"free": {}}
    if not task.external and (data_dir / "answers").is_file():
        ranked = task.path / "ranked"
        if ranked.is_file():
            files["ranked"] = ranked
            extra["ranked"] = {"candidates": len(read_lines(data_dir / "answers"))}
        else:
            needs = f"{ranked.name} answers in {task.path} (decode again)"
            task.add(("ranked",), {"exact_match": NotComputed(needs)}, {}, 0, [])
    for answering, path in files.items():
        found = read_map(path)
        check_ids(truth, found, data_dir, path)
        hypotheses = [found[i] for i in ids]
        empty = sum(not h.strip() for h in hypotheses)
        if empty:
            logging.warning(
                "%s: %d of %d answers are empty: they count as wrong",
                path,
                empty,
                len(ids),
            )
        result = question_answering.exact_match(
            hypotheses,
            [truth[i] for i in ids],
            [questions.get(i, "") for i in ids],
            [clips.get(i, i) for i in ids],
            None if kinds is None else [kinds.get(i, "") for i in ids],
        )
        _add(task, answering, result, {"empty_answers": empty} | extra[answering])
        if answering == "free":
            task.keep(_examples(ids, hypotheses, truth, questions, clips))


def _add(
    task: TaskOfSet,
    answering: str,
    result: dict[str, question_answering.VariantScore],
    extra: dict[str, Any],
) -> None:
    """The rows of one way of answering, one group for each variant."""
    for name, variant in result.items():
        protocol = {
            "answering": answering,
            "rows": name,
            "normalisation": question_answering.NORMALISATION,
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
    ids: list[str],
    hypotheses: list[str],
    truth: dict[str, str],
    questions: dict[str, str],
    clips: dict[str, str],
) -> list[dict[str, Any]]:
    normalise = question_answering.normalise
    return [
        {
            "id": ids[i],
            "audio": clips.get(ids[i], ids[i]),
            "question": questions.get(ids[i], ""),
            "hypothesis": hypotheses[i],
            "answer": truth[ids[i]],
            "correct": normalise(hypotheses[i]) == normalise(truth[ids[i]]),
        }
        for i in spread(len(ids), 2 * EXAMPLES)
    ]
