"""VGGSound: ten-second YouTube clips, one of 309 labels each.

vggsound.csv, without a header; labels hold commas:

    ---g-f_I2yQ,1,"male singing, choir",test

Many videos are gone; published results are on as few as 12,722 of 15,446 test clips.
The corpus is video: extract the sound first (ffmpeg -i x.mp4 -ac 1 -ar 16000 x.wav).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from espnet2_slit.data.corpora.audiocaps import youtube_names
from espnet2_slit.data.corpora.base import CLASS, Corpus, Sample, SetPlan
from espnet2_slit.data.corpora.tables import clean, number, read_table


class VGGSound(Corpus):
    """Reads VGGSound.

    Args:
        root: holds vggsound.csv and, below it, the extracted audio.
    """

    name = "vggsound"
    splits = ("train", "test")
    columns = ("youtube_id", "start", "label", "split")

    def plan(self, split: str, evaluation: bool) -> SetPlan:
        table = self.find(*self.below("vggsound.csv"))
        tally: Counter[str] = Counter()
        rows = read_table(table, self.columns, header=False)
        return SetPlan(
            name=split,
            corpus=self.name,
            split=split,
            samples=self._samples(table, split, tally),
            labels=tuple(sorted({clean(row["label"]) for row in rows})),
            tally=tally,
        )

    def _samples(
        self, table: Path, split: str, tally: Counter[str]
    ) -> Iterator[Sample]:
        for row in read_table(table, self.columns, header=False):
            if row["split"].strip() != split:
                continue
            tally["rows"] += 1
            video = row["youtube_id"]
            start = number(row["start"], f"{table}: start of {video}")
            yield Sample(
                clip=f"{video}_{int(start):06d}",
                audio=youtube_names(video, start, 10),
                text=row["label"],
                task=CLASS,
                source=f"youtube:{video}",
            )
