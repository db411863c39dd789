"""WavCaps: 403,050 machine-written captions of AudioSet, BBC, Freesound, SoundBible.

json_files/<part>/{as,bbc,fsd,sb}_final.json; fields differ by part, these are in all:

    {"num_captions_per_audio": 1, "data": [{"id": "2219", "duration": 14.1424375,
      "caption": "An airplane is landing.", "audio": "wav_path", ...}, ...]}

`audio` is a placeholder: files are named after `id`, which for AudioSet reads
"Y<YouTube id>.wav". Clips last 1 s to 18 h: crop them (--max_duration 30 --long crop).
Freesound, AudioSet and the test corpora overlap; the publisher's blacklists say where.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from espnet2_slit.data.corpora.audio_index import strip_suffix
from espnet2_slit.data.corpora.base import Corpus, Sample, SetPlan
from espnet2_slit.data.corpora.tables import (
    CorpusError,
    number,
    read_json,
    read_json_items,
)

# part -> (JSON file, words in the path of its audio, key in the blacklists)
PARTS = {
    "audioset_sl": ("as_final.json", ("audioset",), "AudioSet"),
    "bbc": ("bbc_final.json", ("bbc",), ""),
    "freesound": ("fsd_final.json", ("freesound",), "FreeSound"),
    "soundbible": ("sb_final.json", ("soundbible", "sound_bible"), ""),
}
BLACKLISTS = ("test_ac", "all_ac", "ub8k_esc50_vggsound")


class WavCaps(Corpus):
    """Reads WavCaps; its splits are its four parts.

    Args:
        root: holds the JSON files, the blacklists and the unpacked audio.
        blacklist: comma-separated, of test_ac (AudioCaps and Clotho test clips), all_ac
            (all their clips), ub8k_esc50_vggsound; or none. The default allows
            zero-shot claims on all of those test sets.
    """

    name = "wavcaps"
    splits = tuple(PARTS)
    evaluation_splits = ()
    train_splits = splits
    strict_hint = True  # Freesound's 17 is not SoundBible's

    def __init__(self, root: Path, blacklist: str = "test_ac,ub8k_esc50_vggsound"):
        super().__init__(root)
        names = [] if blacklist == "none" else blacklist.split(",")
        unknown = [n for n in names if n not in BLACKLISTS]
        if unknown:
            raise ValueError(
                f"blacklist: expected none or some of {', '.join(BLACKLISTS)}; "
                f"found {', '.join(unknown)}"
            )
        self._blacklists = tuple(names)
        self._banned: dict[str, set[str]] = {}
        for name in names:
            self._read_blacklist(name)
        if not names:
            logging.warning("WavCaps without blacklists: make no zero-shot claim.")

    def _read_blacklist(self, name: str) -> None:
        file = f"blacklist_exclude_{name}.json"
        if not self.has(*self.below(file)):
            raise CorpusError(
                f"wavcaps: expected {file} below {self.root}, found none. It is in "
                "data/json_files/blacklist of the publisher's repository; or choose "
                "others with --blacklist (none: no zero-shot claim is possible)."
            )
        path = self.find(*self.below(file))
        for part, ids in read_json(path, dict).items():
            if not isinstance(ids, list):
                raise CorpusError(f"{path}: expected a list of ids as {part}")
            banned = self._banned.setdefault(part, set())
            banned.update(strip_suffix(str(i)) for i in ids)

    def audio_hint(self, split: str) -> tuple[str, ...]:
        return PARTS[split][1]  # ids of two parts may be equal

    def plan(self, split: str, evaluation: bool) -> SetPlan:
        file, _, _ = PARTS[split]
        table = self.find(*self.below(file))
        tally: Counter[str] = Counter()
        lists = ", ".join(self._blacklists) or "none"
        return SetPlan(
            name=split,
            corpus=self.name,
            split=split,
            variant=f"blacklists: {lists}",
            samples=self._samples(table, split, tally),
            category=f"{self.name}_{split}",
            notes=f"blacklists applied: {lists}",
            tally=tally,
        )

    def _samples(
        self, table: Path, split: str, tally: Counter[str]
    ) -> Iterator[Sample]:
        banned = self._banned.get(PARTS[split][2], set())
        for _, row in read_json_items(table, ("id",), "data"):
            tally["rows"] += 1
            name = strip_suffix(str(row["id"]))
            if name in banned:
                tally["blacklisted"] += 1
                continue
            source = {
                "audioset_sl": f"youtube:{name.removeprefix('Y')}",
                "freesound": f"freesound:{name}",
                "bbc": f"bbc:{name}",
                "soundbible": f"soundbible:{name}",
            }[split]
            length = row.get("duration")
            yield Sample(
                clip=f"{split}-{name}",
                audio=(name,),
                text=str(row.get("caption") or ""),  # counted as empty
                source=source,
                duration=number(length, f"{table}: {name}") if length else None,
            )
