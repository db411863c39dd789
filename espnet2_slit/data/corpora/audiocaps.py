"""AudioCaps 1.0 and 2.0: captions of ten-second AudioSet clips.

dataset/{train,val,test}.csv (2.0: dataset2.0/), captions with commas in quotes:

    audiocap_id,youtube_id,start_time,caption
    11542,3eJ9RynJzP8,80,"The wind is blowing, insects are singing, and rustling occurs"

The files of 2.0 that were published until October 2025 break captions over lines and
leave quotes out: their pieces are joined, and counted.

Training clips of 1.0 have one caption, val and test clips five. YouTube ids may begin
with "-". Copies name the audio in several ways; all are tried. Clips vanish from
YouTube: published results are on 883 to 975 test clips, so N is written to set.json.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from espnet2_slit.data.corpora.base import Corpus, Sample, SetPlan
from espnet2_slit.data.corpora.tables import encoding_of, number, read_table


class AudioCaps(Corpus):
    """Reads AudioCaps.

    Args:
        root: holds train.csv, val.csv, test.csv, or dataset/ or dataset2.0/ with them.
        version: 1.0 or 2.0.
    """

    name = "audiocaps"
    splits = ("train", "val", "test")
    columns = ("audiocap_id", "youtube_id", "start_time", "caption")

    def __init__(self, root: Path, version: str = "1.0"):
        super().__init__(root)
        if version not in ("1.0", "2.0"):
            raise ValueError(f"version: expected 1.0 or 2.0, found {version}")
        self._version = version
        self._folder = "dataset" if version == "1.0" else "dataset2.0"

    def plan(self, split: str, evaluation: bool) -> SetPlan:
        table = self.find(f"{self._folder}/{split}.csv", f"{split}.csv")
        tally: Counter[str] = Counter()
        return SetPlan(
            name=split,
            corpus=self.name,
            split=split,
            variant=f"version {self._version}",
            samples=self._samples(table, tally),
            tasks=("caption", "retrieval") if evaluation else (),
            tally=tally,
        )

    def _samples(self, table: Path, tally: Counter[str]) -> Iterator[Sample]:
        # files may be named after any one of a clip's captions
        captions_of: dict[tuple[str, str], list[str]] = {}
        for row in _records(table, self.columns, Counter()):
            clip = (row["youtube_id"], row["start_time"])
            captions_of.setdefault(clip, []).append(row["audiocap_id"])
        for row in _records(table, self.columns, tally):
            video, start = row["youtube_id"], row["start_time"]
            number(start, f"{table}: start_time of {video}")
            yield Sample(
                clip=f"{video}_{start}",
                audio=(
                    *youtube_names(video, start, 10),
                    *captions_of[video, start],
                ),
                text=row["caption"],
                source=f"youtube:{video}",
            )


def _records(
    path: Path, columns: tuple[str, ...], tally: Counter[str]
) -> Iterator[dict[str, str]]:
    """Rows of a table in which a caption may go on in the next line, without quotes.

    A row begins where a line does with the numbers and the name that come before a
    caption; all up to the next such line is its caption.
    """
    with open(path, encoding=encoding_of(path), newline="") as source:
        header = [name.strip() for name in source.readline().split(",")]
    if tuple(header) != columns:  # another order: rows are then whole
        yield from read_table(path, columns, tally=tally)
        return
    row: dict[str, str] | None = None
    pieces: list[str] = []
    with open(path, encoding=encoding_of(path)) as source:
        source.readline()
        for line in source:
            begin = _BEGIN.match(line)
            if begin is None:
                pieces.append(line)
                continue
            if row is not None:
                yield _joined(row, pieces, tally)
            elif "".join(pieces).strip():
                tally["lines before the first clip"] += 1
            row = dict(zip(columns, begin.groups(), strict=False))
            pieces = [line[begin.end() :]]
    if row is not None:
        yield _joined(row, pieces, tally)


# audiocap_id, youtube_id, start_time: a number, one word, and what must be seconds
_BEGIN = re.compile(r'"?(\d+)"?,"?([^",\s]+)"?,"?([^",\s]*)"?,')


def _joined(
    row: dict[str, str], pieces: list[str], tally: Counter[str]
) -> dict[str, str]:
    tally["rows"] += 1
    lines = [piece.strip() for piece in pieces if piece.strip()]
    if len(lines) > 1:
        tally["captions over several lines (joined)"] += 1
    caption = " ".join(lines)
    if caption.startswith('"'):
        caption = caption.removeprefix('"').removesuffix('"').replace('""', '"')
    return {**row, "caption": caption}


def youtube_names(video: str, start: str | float, length: float) -> tuple[str, ...]:
    """Names that copies of YouTube-based corpora give to a clip, exact ones first.

    Args:
        video: the YouTube id.
        start: start of the clip in the video, seconds.
        length: of the clip, seconds.
    """
    begin = float(start)
    end = begin + length
    whole = int(begin)
    return (
        f"{video}_{whole}",
        f"Y{video}_{whole}",
        f"{video}_{whole}_{int(end)}",
        f"{video}_{whole:06d}",
        f"{video}_{int(begin * 1000)}_{int(end * 1000)}",
        f"{video}_{begin:.3f}_{end:.3f}",
        f"Y{video}",
        video,
    )
