"""NSynth: 305,979 four-second notes of musical instruments, 16 kHz.

nsynth-{train,valid,test}/examples.json, keyed by `note_str`, and audio/<note_str>.wav:

    {"bass_synthetic_033-022-050": {"pitch": 22, "note": 201034, "velocity": 50,
      "instrument_family_str": "bass", "instrument_source_str": "synthetic",
      "qualities_str": ["dark"], ...}, ...}

The pitch is `pitch` (MIDI); `note` is only a running number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from espnet2_slit.data.corpora.base import CLASS, Corpus, Sample, SetPlan
from espnet2_slit.data.corpora.tables import read_json_items, spell

FAMILIES = "bass brass flute guitar keyboard mallet organ reed string synth_lead vocal"
LABELS = {
    "instrument_family": tuple(spell(name) for name in FAMILIES.split()),
    "instrument_source": ("acoustic", "electronic", "synthetic"),
    "pitch": tuple(str(pitch) for pitch in range(128)),
}


class NSynth(Corpus):
    """Reads NSynth.

    Args:
        root: holds nsynth-train/, nsynth-valid/ and nsynth-test/.
        target: what to name: instrument_family, instrument_source or pitch (MIDI).
    """

    name = "nsynth"
    splits = ("train", "valid", "test")

    def __init__(self, root: Path, target: str = "instrument_family"):
        super().__init__(root)
        if target not in LABELS:
            raise ValueError(f"target: expected {', '.join(LABELS)}; found {target}")
        self._target = target

    def audio_hint(self, split: str) -> tuple[str, ...]:
        return (f"nsynth-{split}",)

    def plan(self, split: str, evaluation: bool) -> SetPlan:
        table = self.find(f"nsynth-{split}/examples.json", f"{split}/examples.json")
        tally: Counter[str] = Counter()
        return SetPlan(
            name=split,
            corpus=self.name,
            split=split,
            variant=self._target,
            samples=self._samples(table, tally),
            labels=LABELS[self._target],
            tally=tally,
        )

    def _samples(self, table: Path, tally: Counter[str]) -> Iterator[Sample]:
        field = self._target if self._target == "pitch" else f"{self._target}_str"
        for name, note in read_json_items(table, (field,)):
            tally["rows"] += 1
            yield Sample(
                clip=name,
                audio=(name,),
                text=spell(str(note[field])),
                task=CLASS,
                duration=4.0,
            )
