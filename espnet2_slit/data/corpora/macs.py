"""MACS: captions and tags of 3,930 ten-second clips of TAU Urban Acoustic Scenes 2019.

MACS.yaml:

    files:
    - filename: airport-barcelona-0-0-a.wav
      annotations:
      - {sentence: People are talking., tags: [adults_talking], annotator_id: 12}

2-5 captions a clip, 48 kHz stereo, no published split. Several clips come from one
place (`airport-barcelona-0`), so a test part is split off by place, not by clip.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from espnet2_slit.data.corpora.base import Corpus, Sample, SetPlan
from espnet2_slit.data.corpora.tables import CorpusError, check_fields

# The C parser is 10 times faster: 2 s instead of 20 s. Both are safe loaders.
SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class MACS(Corpus):
    """Reads MACS.

    Args:
        root: holds MACS.yaml and, below it, the audio of TAU 2019 (development).
        test_percent: share of places that form the test split, 0-100.
    """

    name = "macs"
    splits = ("train", "test", "all")
    default_splits = ("all",)
    train_splits = ("all",)

    def __init__(self, root: Path, test_percent: int = 10):
        super().__init__(root)
        self._test_percent = test_percent

    def plan(self, split: str, evaluation: bool) -> SetPlan:
        table = self.find(*self.below("MACS.yaml"))
        tally: Counter[str] = Counter()
        share = f"our split by place, {self._test_percent} % test"
        return SetPlan(
            name=split,
            corpus=self.name,
            split=split,
            variant="all clips" if split == "all" else share,
            samples=self._samples(table, split, tally),
            tasks=("caption", "retrieval") if evaluation else (),
            tally=tally,
        )

    def _listed(self, table: Path) -> list[dict]:
        """The entries of MACS.yaml, each with a file name."""
        try:
            with open(table, encoding="utf-8") as source:
                listed = yaml.load(source, Loader=SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as problem:
            raise CorpusError(f"{table}: expected YAML ({problem})") from None
        entries = listed.get("files") if isinstance(listed, dict) else None
        if not isinstance(entries, list):
            raise CorpusError(f"{table}: expected `files:` and a list of clips")
        for entry in entries:
            check_fields(entry, ("filename",), str(table))
        return entries

    def _samples(
        self, table: Path, split: str, tally: Counter[str]
    ) -> Iterator[Sample]:
        for entry in self._listed(table):
            file = entry["filename"]
            place = "-".join(file.split("-")[:3])  # scene-city-location
            digest = hashlib.blake2b(place.encode(), digest_size=4).digest()
            is_test = int.from_bytes(digest) % 100 < self._test_percent
            if split not in ("all", "test" if is_test else "train"):
                continue
            for annotation in entry.get("annotations") or ():
                check_fields(annotation, ("sentence",), f"{table}: {file}")
                tally["rows"] += 1
                yield Sample(
                    clip=file,
                    audio=(file,),
                    text=str(annotation["sentence"]),
                    source=f"tau2019:{place}",
                )
