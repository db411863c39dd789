"""FSD50K: 51,197 Freesound clips, several of 200 labels each.

FSD50K.ground_truth/dev.csv (eval.csv has no split column) and vocabulary.csv:

    fname,labels,mids,split
    64760,"Electric_guitar,Guitar,Plucked_string_instrument","/m/02sgy,...",train

`fname` is the Freesound id. Several labels are joined by "; " in `text`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from espnet2_slit.data.corpora.base import CLASS, Corpus, Sample, SetPlan
from espnet2_slit.data.corpora.tables import read_table, spell


class FSD50K(Corpus):
    """Reads FSD50K.

    Args:
        root: holds FSD50K.ground_truth/, FSD50K.dev_audio/ and FSD50K.eval_audio/.
    """

    name = "fsd50k"
    splits = ("train", "val", "eval")
    evaluation_splits = ("eval",)
    audio_folders = ("FSD50K.*_audio", "*_audio")

    def plan(self, split: str, evaluation: bool) -> SetPlan:
        tally: Counter[str] = Counter()
        vocabulary = read_table(
            self._file("vocabulary.csv"), ("index", "label", "mid"), header=False
        )
        return SetPlan(
            name=split,
            corpus=self.name,
            split=split,
            variant="multi-label",
            samples=self._samples(split, tally),
            tasks=("classification",),
            labels=tuple(sorted(spell(row["label"]) for row in vocabulary)),
            notes='multi-label: one a line in `references`, joined by "; " in `text`',
            tally=tally,
        )

    def _file(self, name: str) -> Path:
        return self.find(f"FSD50K.ground_truth/{name}", f"*/FSD50K.ground_truth/{name}")

    def _samples(self, split: str, tally: Counter[str]) -> Iterator[Sample]:
        part, column = ("eval", ()) if split == "eval" else ("dev", ("split",))
        columns = ("fname", "labels", "mids", *column)
        for row in read_table(self._file(f"{part}.csv"), columns):
            if column and row["split"].strip() != split:
                continue
            tally["rows"] += 1
            labels = tuple(spell(label) for label in row["labels"].split(","))
            yield Sample(
                clip=row["fname"],
                audio=(f"FSD50K.{part}_audio/{row['fname']}", row["fname"]),
                text="; ".join(labels),
                task=CLASS,
                source=f"freesound:{row['fname']}",
                labels=labels,
            )
