"""OpenAQA and CompA-R: instructions on audio, answered in sentences.

A JSON list (of millions, so that it is read as a stream), the same form for both:

    [{"instruction": "What can be inferred from the sound?", "input": "",
      "audio_id": "/data/audioset/-0SdAVK79lg.flac", "dataset": "as_20k",
      "task": "open-ended question", "output": "A guitar is being tuned ..."}, ...]

`audio_id` is a path of the publisher's machine: the file is looked for by its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from espnet2_slit.data.corpora.base import QUESTION, Corpus, Sample, SetPlan
from espnet2_slit.data.corpora.tables import read_json_array


class OpenAQA(Corpus):
    """Reads OpenAQA.

    Args:
        root: holds the JSON file.
        file: its name, where there are several.
    """

    name = "open_aqa"
    splits: tuple[str, ...] = ("train",)
    evaluation_splits: tuple[str, ...] = ()
    patterns = ("openaqa*.json", "open_aqa*.json", "OpenAQA*.json")

    def __init__(self, root: Path, file: str = ""):
        super().__init__(root)
        self._file = file

    def plan(self, split: str, evaluation: bool) -> SetPlan:
        tally: Counter[str] = Counter()
        return SetPlan(
            name=split,
            corpus=self.name,
            split=split,
            samples=self._samples(self._table(split), tally),
            tasks=(QUESTION,) if evaluation else (),
            tally=tally,
        )

    def _table(self, split: str) -> Path:
        names = (self._file,) if self._file else self.patterns
        return self.find(*(place for name in names for place in self.below(name)))

    def _samples(self, path: Path, tally: Counter[str]) -> Iterator[Sample]:
        fields = ("audio_id", "instruction", "output")
        for row in read_json_array(path, fields):
            tally["rows"] += 1
            question = f"{row['instruction']} {row.get('input') or ''}"
            file = PurePosixPath(str(row["audio_id"]))
            yield Sample(
                clip=file.name,
                audio=("/".join(file.parts[-2:]).lstrip("/"), file.name),
                text=str(row["output"]),
                task=QUESTION,
                instruction=question,
                category=str(row.get("task") or ""),
            )


class CompAR(OpenAQA):
    """Reads CompA-R.

    Args:
        root: holds the JSON files of training and test.
        file: the name of one, where it is another.
    """

    name = "compa_r"
    splits = ("train", "test")
    default_splits = ("train",)
    evaluation_splits = ("test",)

    def _table(self, split: str) -> Path:
        names = [f"compa*{split}*.json", f"CompA*{split}*.json", f"{split}.json"]
        names = [self._file] if self._file else names
        return self.find(*(place for name in names for place in self.below(name)))
