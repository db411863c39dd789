"""AudioSet: ten-second YouTube clips with labels of an ontology of 527 classes.

{balanced_train,unbalanced_train,eval}_segments.csv; the third comment is the header:

    # Segments csv created Sun Mar  5 10:54:31 2017
    # num_ytids=22160, num_segs=22160, num_unique_labels=527, num_positive_labels=52882
    # YTID, start_seconds, end_seconds, positive_labels
    --4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_,/m/0bt9lr,/m/0jbk"

Names of the labels ("/m/068hy") are in class_labels_indices.csv or ontology.json. Names
hold commas ("Male speech, man speaking"), so several labels are joined by "; ".
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from espnet2_slit.data.corpora.audiocaps import youtube_names
from espnet2_slit.data.corpora.base import CLASS, Corpus, Sample, SetPlan
from espnet2_slit.data.corpora.tables import (
    CorpusError,
    check_fields,
    encoding_of,
    number,
    read_json,
    read_table,
)

FILES = {
    "balanced_train": "balanced_train_segments.csv",
    "unbalanced_train": "unbalanced_train_segments.csv",
    "eval": "eval_segments.csv",
}


class AudioSet(Corpus):
    """Reads AudioSet.

    Args:
        root: holds the segment files, the label names and the audio.
        unbalanced: recipes train on the unbalanced part, too.
    """

    name = "audioset"
    splits = tuple(FILES)
    default_splits = ("balanced_train", "eval")
    evaluation_splits = ("eval",)
    train_splits: tuple[str, ...] = ("balanced_train",)

    def __init__(self, root: Path, unbalanced: bool = False):
        super().__init__(root)
        if unbalanced:
            self.train_splits = ("balanced_train", "unbalanced_train")

    def plan(self, split: str, evaluation: bool) -> SetPlan:
        table = self.find(*self.below(FILES[split]))
        names = self._label_names()
        tally: Counter[str] = Counter()
        return SetPlan(
            name=split,
            corpus=self.name,
            split=split,
            variant="multi-label",
            samples=self._samples(table, names, tally),
            tasks=("classification",),
            labels=tuple(sorted(set(names.values()))),
            notes='multi-label: one a line in `references`, joined by "; " in `text`',
            tally=tally,
        )

    def _label_names(self) -> dict[str, str]:
        """mid -> display name; of the 527 classes, or of the whole ontology."""
        indices = self.below("class_labels_indices.csv")
        if self.has(*indices):
            table = self.find(*indices)
            rows = read_table(table, ("index", "mid", "display_name"))
            return {row["mid"]: row["display_name"] for row in rows}
        ontology = self.find(*self.below("ontology.json"))
        names = {}
        for entry in read_json(ontology, list):
            check_fields(entry, ("id", "name"), str(ontology))
            if not {"abstract", "blacklist"} & set(entry.get("restrictions", ())):
                names[entry["id"]] = entry["name"]
        return names

    def _samples(
        self, table: Path, names: dict[str, str], tally: Counter[str]
    ) -> Iterator[Sample]:
        with open(table, encoding=encoding_of(table), newline="") as source:
            for row in csv.reader(source, skipinitialspace=True):
                if not row or row[0].startswith("#"):
                    continue
                if len(row) != 4:
                    raise CorpusError(
                        f"{table}: expected YTID, start, end, labels; found {row}"
                    )
                tally["rows"] += 1
                video, start, end, mids = row
                begin = number(start, f"{table}: start of {video}")
                length = number(end, f"{table}: end of {video}") - begin
                unknown = [m for m in mids.split(",") if m not in names]
                if unknown:
                    tally["labels without a name (label left out)"] += len(unknown)
                labels = tuple(names[m] for m in mids.split(",") if m in names)
                yield Sample(
                    clip=f"{video}_{begin:g}",
                    audio=youtube_names(video, begin, length),
                    text="; ".join(labels),
                    task=CLASS,
                    source=f"youtube:{video}",
                    labels=labels,
                )
