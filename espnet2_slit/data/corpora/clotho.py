"""Clotho v2.1: 15-30 s Freesound clips, five captions each.

clotho_captions_{development,validation,evaluation}.csv:

    file_name,caption_1,caption_2,caption_3,caption_4,caption_5
    Distorted AM Radio noise.wav,A muddled noise of broken channel of the TV,...

File names hold blanks, commas and dots; a few captions end in a blank. The metadata
files (ISO-8859-1, the test one with ";" between columns) give Freesound ids, needed
only for the leakage check. `evaluation` is the test set that papers report.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from espnet2_slit.data.corpora.base import Corpus, Sample, SetPlan
from espnet2_slit.data.corpora.fetch import Mirror
from espnet2_slit.data.corpora.tables import encoding_of, read_table

# Version 2.1; checksums as published there. The other metadata files are not needed.
MIRROR = Mirror(
    base_url="https://zenodo.org/records/4783391/files/{name}?download=1",
    md5={
        "clotho_captions_development.csv": "d4090b39ce9f2491908eebf4d5b09bae",
        "clotho_captions_validation.csv": "5879e023032b22a2c930aaa0528bead4",
        "clotho_captions_evaluation.csv": "1b16b9e57cf7bdb7f13a13802aeb57e2",
        "clotho_metadata_development.csv": "170d20935ecfdf161ce1bb154118cda5",
        "clotho_audio_development.7z": "c8b05bc7acdb13895bb3c6a29608667e",
        "clotho_audio_validation.7z": "7dba730be08bada48bd15dc4e668df59",
        "clotho_audio_evaluation.7z": "4569624ccadf96223f19cb59fe4f849f",
    },
)
CAPTIONS = tuple(f"caption_{n}" for n in range(1, 6))


class Clotho(Corpus):
    """Reads Clotho.

    Args:
        root: holds the caption files and, below it, the unpacked audio.
    """

    name = "clotho"
    splits = ("development", "validation", "evaluation")
    evaluation_splits = ("evaluation",)
    train_splits = ("development",)
    loose_names = True
    mirror = MIRROR

    def audio_hint(self, split: str) -> tuple[str, ...]:
        return (split,)

    def plan(self, split: str, evaluation: bool) -> SetPlan:
        file = f"clotho_captions_{split}.csv"
        table = self.find(*self.below(file))
        digest = md5_as_published(table)
        published = MIRROR.md5[file]
        is_2_1 = digest == published
        if not is_2_1:
            logging.warning(
                "%s is not the file of Clotho 2.1: expected md5 %s, found %s. "
                "Scores will say so.",
                *(table, published, digest),
            )
        tally: Counter[str] = Counter()
        return SetPlan(
            name=split,
            corpus=self.name,
            split=split,
            variant="2.1" if is_2_1 else "caption file differs from 2.1",
            samples=self._samples(table, self._sources(split), tally),
            tasks=("caption", "retrieval") if evaluation else (),
            tally=tally,
        )

    def _sources(self, split: str) -> dict[str, str]:
        """File name -> "freesound:<id>" from the metadata, empty without the file."""
        file = f"clotho_metadata_{split}.csv"
        if not self.has(*self.below(file)):
            logging.warning(
                "%s is not there: the leakage check can't compare Freesound ids.", file
            )
            return {}
        return freesound_ids(self.find(*self.below(file)))

    def _samples(
        self, table: Path, sources: dict[str, str], tally: Counter[str]
    ) -> Iterator[Sample]:
        for row in read_table(table, ("file_name", *CAPTIONS), tally=tally):
            name = row["file_name"].strip()
            for caption in CAPTIONS:
                yield Sample(
                    clip=name,
                    audio=(row["file_name"], name),  # one begins with a blank
                    text=row[caption],
                    source=sources.get(name, ""),
                )


def md5_as_published(table: Path) -> str:
    """MD5 with the line ends of the archive; Git and editors change them."""
    lines = table.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return hashlib.md5(lines, usedforsecurity=False).hexdigest()


def freesound_ids(table: Path) -> dict[str, str]:
    """File name -> "freesound:<id>" of a Clotho or ClothoAQA metadata file."""
    with open(table, encoding=encoding_of(table), newline="") as source:
        delimiter = ";" if ";" in source.readline() else ","
    columns = ("file_name", "sound_id")
    return {
        row["file_name"].strip(): f"freesound:{row['sound_id'].strip()}"
        for row in read_table(table, columns, delimiter=delimiter)
        if row["sound_id"].strip().isdigit()  # a few say "Not found"
    }
