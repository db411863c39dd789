"""AudioSetCaps and Auto-ACD: generated captions of clips from YouTube.

Tables of an id and a caption over audio that one has already, of AudioSet, VGGSound or
YouTube-8M; with or without a line of names:

    Dataset/AudioSetCaps_caption.csv    id,caption
                                        _7Xe9vD3Hpg_4_10,A solemn piece unfolds
    train.csv of Auto-ACD               -0SdAVK79lg_30,"A guitar plays, then ..."

An id is the video's, with or without the first (and last) second of the clip.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from espnet2_slit.data.corpora.audiocaps import youtube_names
from espnet2_slit.data.corpora.base import Corpus, Sample, SetPlan
from espnet2_slit.data.corpora.tables import CorpusError, encoding_of

# eleven signs of the video, then first and last second
_ID = re.compile(r"Y?(?P<video>[\w-]{11})(?:_(?P<start>\d+)(?:_(?P<end>\d+))?)?")
LENGTH_S = 10.0


class _Captions(Corpus):
    """What the two have in common."""

    def table(self, split: str) -> Path:
        """Where a split's captions are."""
        raise NotImplementedError

    def plan(self, split: str, evaluation: bool) -> SetPlan:
        tally: Counter[str] = Counter()
        return SetPlan(
            name=split,
            corpus=self.name,
            split=split,
            samples=self._samples(self.table(split), tally),
            tasks=("caption", "retrieval") if evaluation else (),
            notes="captions written by models",
            tally=tally,
        )

    def _samples(self, path: Path, tally: Counter[str]) -> Iterator[Sample]:
        for name, caption in _pairs(path):
            tally["rows"] += 1
            found = _ID.fullmatch(name.removesuffix(".wav"))
            if found is None:
                tally["ids that are not of YouTube"] += 1
                continue
            video, start, end = found["video"], found["start"], found["end"]
            names: tuple[str, ...] = (name,)
            if start:
                length = float(end) - float(start) if end else LENGTH_S
                names += youtube_names(video, start, length)
            else:
                names += (video, f"Y{video}")
            clip = f"{video}_{start}" if start else video
            yield Sample(
                clip=clip, audio=names, text=caption, source=f"youtube:{video}"
            )


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    """(id, caption) of every row."""
    with open(path, encoding=encoding_of(path), newline="") as source:
        rows = csv.reader(source)
        columns = (0, 1)
        for row in rows:
            if not row:
                continue
            names = [name.strip().lower() for name in row]
            if rows.line_num == 1 and {"caption", "captions"} & {*names}:
                at = names.index("caption" if "caption" in names else "captions")
                columns = (next(i for i in range(len(names)) if i != at), at)
                continue
            if len(row) <= max(columns):
                raise CorpusError(
                    f"{path} line {rows.line_num}: expected an id and a caption, found"
                    f" {row!r:.80}"
                )
            yield row[columns[0]].strip(), row[columns[1]]


class AudioSetCaps(_Captions):
    """Reads AudioSetCaps.

    Args:
        root: holds the tables of its Dataset folder.
    """

    name = "audiosetcaps"
    splits = ("audioset", "vggsound", "youtube8m")
    default_splits = ("audioset",)
    evaluation_splits = ()
    train_splits = ("audioset",)
    files = {
        "audioset": "AudioSetCaps_caption.csv",
        "vggsound": "VGGSound_AudioSetCaps_caption.csv",
        "youtube8m": "YouTube-8M_AudioSetCaps_caption.csv",
    }

    def table(self, split: str) -> Path:
        return self.find(*self.below(self.files[split]))


class AutoACD(_Captions):
    """Reads Auto-ACD.

    Args:
        root: holds train.csv and test.csv.
    """

    name = "auto_acd"
    splits = ("train", "test")

    def table(self, split: str) -> Path:
        return self.find(*self.below(f"{split}.csv"))
