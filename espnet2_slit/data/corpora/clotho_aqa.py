"""ClothoAQA: six questions on each of 1,991 Clotho clips, answered by three people.

clotho_aqa_{train,val,test}.csv, three rows a question, one an annotator:

    file_name,QuestionText,answer
    Rain on window.wav,Is it raining?,yes
    Rain on window.wav,Is it raining?,yes
    Rain on window.wav,Is it raining?,no

Scores depend on how the three are merged; the variant says how, beside each score.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from espnet2_slit.data.corpora.base import QUESTION, Corpus, Sample, SetPlan
from espnet2_slit.data.corpora.clotho import freesound_ids
from espnet2_slit.data.corpora.tables import clean, read_table

VOTES = ("majority", "unanimous", "all")
ANSWERS = ("all", "yes_no", "single_word")
DISAGREEMENT = ("drop", "first", "all")


class ClothoAQA(Corpus):
    """Reads ClothoAQA.

    Args:
        root: holds the three csv files and, below it, audio_files/.
        votes: majority (two of three agree), unanimous (all three), or all (every
            annotator's row is a sample of its own).
        answers: all, yes_no (the merged answer is yes or no) or single_word (it is
            neither).
        disagreement: with majority votes and three different answers: drop the
            question, keep the first answer, or keep all as samples.
    """

    name = "clotho_aqa"
    splits = ("train", "val", "test")
    audio_folders = ("audio_files",)
    loose_names = True
    columns = ("file_name", "QuestionText", "answer")

    def __init__(
        self,
        root: Path,
        votes: str = "majority",
        answers: str = "all",
        disagreement: str = "drop",
    ):
        super().__init__(root)
        for name, value, known in (
            ("votes", votes, VOTES),
            ("answers", answers, ANSWERS),
            ("disagreement", disagreement, DISAGREEMENT),
        ):
            if value not in known:
                raise ValueError(f"{name}: expected {', '.join(known)}; found {value}")
        self._votes, self._answers, self._disagreement = votes, answers, disagreement

    def plan(self, split: str, evaluation: bool) -> SetPlan:
        tally: Counter[str] = Counter()
        candidates, origin = self._candidates(split)
        variant = f"{self._votes} votes, {self._answers} answers"
        if self._votes == "majority":
            variant += f", three-way disagreement: {self._disagreement}"
        return SetPlan(
            name=split,
            corpus=self.name,
            split=split,
            variant=variant,
            samples=self._samples(split, tally),
            tasks=("question_answering",),
            namespace="clotho",  # the audio is Clotho's: one clip, one id
            answers=candidates,
            notes=f"candidate answers: {origin}",
            tally=tally,
        )

    def _table(self, split: str) -> Path:
        return self.find(*self.below(f"clotho_aqa_{split}.csv"))

    def _candidates(self, split: str) -> tuple[tuple[str, ...], str]:
        """Answers to choose from: the training split's, so that tests stay unseen."""
        if self._answers == "yes_no":
            return ("no", "yes"), "yes and no"
        train = self.has(*self.below("clotho_aqa_train.csv"))
        source = "train" if train else split
        found = {answer for *_, answer in self._merged(source, Counter())}
        return tuple(sorted(found)), f"all merged answers of the {source} split"

    def _merged(self, split: str, tally: Counter[str]):
        """(file, question, answer) after the vote; tallies why others are left out."""
        votes: dict[tuple[str, str], list[str]] = {}
        for row in read_table(self._table(split), self.columns, tally=tally):
            key = (row["file_name"].strip(), clean(row["QuestionText"]))
            votes.setdefault(key, []).append(normalise_answer(row["answer"]))
        for (file, question), given in votes.items():
            if len(given) != 3:
                tally["questions without three answers (kept)"] += 1
            for answer in self._vote([a for a in given if a], tally):
                binary = answer in ("yes", "no")
                if self._answers != "all" and binary != (self._answers == "yes_no"):
                    tally[f"not {self._answers}"] += 1
                    continue
                yield file, question, answer

    def _vote(self, given: list[str], tally: Counter[str]) -> list[str]:
        if not given:
            tally["no answer"] += 1
            return []
        if self._votes == "all":
            return given
        (best, count), *_ = Counter(given).most_common(1)
        if self._votes == "unanimous":
            if count == len(given):
                return [best]
            tally["not unanimous"] += 1
            return []
        if 2 * count > len(given):
            return [best]
        if self._disagreement == "drop":
            tally["three-way disagreement"] += 1
            return []
        return given[:1] if self._disagreement == "first" else given

    def _samples(self, split: str, tally: Counter[str]) -> Iterator[Sample]:
        sources: dict[str, str] = {}
        metadata = self.below("clotho_aqa_metadata.csv")
        if self.has(*metadata):
            sources = freesound_ids(self.find(*metadata))
        for file, question, answer in self._merged(split, tally):
            yield Sample(
                clip=file,
                audio=(file,),
                text=answer,
                task=QUESTION,
                instruction=question,
                source=sources.get(file, ""),
            )


def normalise_answer(answer: str) -> str:
    """Lower case, no punctuation around it, single blanks: `"Yes. "` -> `"yes"`."""
    return re.sub(r"^\W+|\W+$", "", clean(answer).lower())
