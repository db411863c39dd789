"""UrbanSound8K: 8,732 clips of at most 4 s, ten classes, ten official folds.

metadata/UrbanSound8K.csv; audio in audio/fold1..fold10, rates and channels mixed:

    slice_file_name,fsID,start,end,salience,fold,classID,class
    100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark

Slices of one recording are in one fold, so folds are never reshuffled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from espnet2_slit.data.corpora.base import CLASS, Corpus, Sample, SetPlan
from espnet2_slit.data.corpora.tables import CorpusError, number, read_table, spell


class UrbanSound8K(Corpus):
    """Reads UrbanSound8K.

    Args:
        root: holds metadata/UrbanSound8K.csv and audio/.
        test_fold: fold of the test split, 1-10.
        valid_fold: fold of the valid split; 0: the one after the test fold.
    """

    name = "urbansound8k"
    splits = ("train", "valid", "test", "all")
    default_splits = ("train", "valid", "test")
    evaluation_splits = ("test", "all")
    audio_folders = ("audio",)
    columns = ("slice_file_name", "fsID", "fold", "class")

    def __init__(self, root: Path, test_fold: int = 1, valid_fold: int = 0):
        super().__init__(root)
        self._table = self.find(*self.below("UrbanSound8K.csv"))
        valid_fold = valid_fold or test_fold % 10 + 1
        for name, fold in (("test_fold", test_fold), ("valid_fold", valid_fold)):
            if not 1 <= fold <= 10:
                raise CorpusError(f"{name}: expected 1 to 10, found {fold}.")
        if test_fold == valid_fold:
            raise CorpusError(f"test_fold and valid_fold are both {test_fold}.")
        self._test, self._valid = test_fold, valid_fold

    def plan(self, split: str, evaluation: bool) -> SetPlan:
        tally: Counter[str] = Counter()
        rows = read_table(self._table, self.columns)
        return SetPlan(
            name=split,
            corpus=self.name,
            split=split,
            variant="all folds" if split == "all" else f"test fold {self._test}",
            samples=self._samples(split, tally),
            labels=tuple(sorted({spell(row["class"]) for row in rows})),
            zero_shot=split == "all",
            tally=tally,
        )

    def _samples(self, split: str, tally: Counter[str]) -> Iterator[Sample]:
        for row in read_table(self._table, self.columns):
            file = row["slice_file_name"]
            fold = int(number(row["fold"], f"{self._table}: fold of {file}"))
            here = {self._test: "test", self._valid: "valid"}.get(fold, "train")
            if split not in ("all", here):
                continue
            tally["rows"] += 1
            yield Sample(
                clip=file,
                audio=(f"fold{fold}/{file}", file),
                text=spell(row["class"]),
                task=CLASS,
                source=f"freesound:{row['fsID']}",
                fold=str(fold),
            )
