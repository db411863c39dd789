"""ESC-50 and its subset ESC-10: 5 s clips, one label each, five official folds.

meta/esc50.csv:

    filename,fold,target,category,esc10,src_file,take
    1-100032-A-0.wav,1,0,dog,True,100032,A

`src_file` is the Freesound id; clips cut from one recording are in one fold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from espnet2_slit.data.corpora.base import CLASS, Corpus, Sample, SetPlan
from espnet2_slit.data.corpora.tables import CorpusError, number, read_table, spell


class ESC50(Corpus):
    """Reads ESC-50.

    Args:
        root: holds meta/esc50.csv and audio/.
        test_fold: fold of the test split, 1-5.
        valid_fold: fold of the valid split; 0: the one after the test fold.
        esc10: only the ten classes of ESC-10.
    """

    name = "esc50"
    splits = ("train", "valid", "test", "all")
    default_splits = ("train", "valid", "test")
    evaluation_splits = ("test", "all")
    audio_folders = ("audio",)
    columns = ("filename", "fold", "category", "esc10", "src_file")

    def __init__(
        self, root: Path, test_fold: int = 1, valid_fold: int = 0, esc10: bool = False
    ):
        super().__init__(root)
        self._table = self.find(*self.below("esc50.csv"))
        rows = [
            r for r in read_table(self._table, self.columns) if self._is_in(r, esc10)
        ]
        self._labels = tuple(sorted({spell(row["category"]) for row in rows}))
        folds = sorted({self._fold(row) for row in rows})
        after = (
            folds[(folds.index(test_fold) + 1) % len(folds)]
            if (test_fold in folds)
            else 0
        )
        self._test, self._valid = test_fold, valid_fold or after
        for name, fold in (("test_fold", test_fold), ("valid_fold", self._valid)):
            if fold not in folds:
                raise CorpusError(
                    f"{name}: expected one of the folds {folds} of {self._table}; "
                    f"found {fold}."
                )
        if self._test == self._valid:
            raise CorpusError(f"test_fold and valid_fold are both {self._test}.")
        self._esc10 = esc10

    @staticmethod
    def _is_in(row: dict[str, str], esc10: bool) -> bool:
        return not esc10 or row["esc10"].strip().lower() in ("true", "1")

    def _fold(self, row: dict[str, str]) -> int:
        return int(number(row["fold"], f"{self._table}: fold of {row['filename']}"))

    def plan(self, split: str, evaluation: bool) -> SetPlan:
        tally: Counter[str] = Counter()
        variant = "all folds" if split == "all" else f"test fold {self._test}"
        return SetPlan(
            name=split,
            corpus=self.name,
            split=split,
            variant=("ESC-10, " if self._esc10 else "") + variant,
            samples=self._samples(split, tally),
            labels=self._labels,
            zero_shot=split == "all",
            tally=tally,
        )

    def _samples(self, split: str, tally: Counter[str]) -> Iterator[Sample]:
        for row in read_table(self._table, self.columns):
            fold = self._fold(row)
            here = {self._test: "test", self._valid: "valid"}.get(fold, "train")
            if split not in ("all", here) or not self._is_in(row, self._esc10):
                continue
            tally["rows"] += 1
            yield Sample(
                clip=row["filename"],
                audio=(row["filename"],),
                text=spell(row["category"]),
                task=CLASS,
                source=f"freesound:{row['src_file']}",
                fold=str(fold),
            )
