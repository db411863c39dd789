"""MMAU, MMAU-Pro, MMAR and DCASE's audio questions: each brings its own options.

A JSON list or JSON lines; names of fields differ by publisher:

    mmau-test-mini.json   {"id", "audio_id": "./test-mini-audios/x.wav", "question",
                           "choices": [...], "answer": "Man", "task", "sub-category"}
    MMAR-meta.json        {"id", "audio_path": "./audio/x.wav", "question", "choices",
                           "answer", "modality", "category", "sub-category"}
    MMAU-Pro              {"id", "audio_path": ["data/x.wav"], "question", "choices",
                           "answer", "category"}
    DCASE 2025, 2026      one file a question, or a list; options also as {"A": ...}

An answer is one of the options, or its letter. Rows without an answer (MMAU's test
split), without options or with several recordings are counted and left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from espnet2_slit.common.templates import LETTERS, MAX_OPTIONS
from espnet2_slit.data.corpora.base import QUESTION, Corpus, Sample, SetPlan
from espnet2_slit.data.corpora.tables import CorpusError, clean

AUDIO = ("audio_id", "audio_path", "audio_paths", "audio", "audio_url", "file_name")
OPTIONS = ("choices", "multi_choice", "options", "choice")
ANSWERS = ("answer", "correct_answer", "answer_text")
_LETTER = re.compile(r"\(?([A-Z])[).:]?(?:\s|$)")


class _MultipleChoice(Corpus):
    """What the four have in common."""

    splits: tuple[str, ...] = ("test",)
    evaluation_splits: tuple[str, ...] = ("test",)
    train_splits: tuple[str, ...] = ()
    files: dict[str, tuple[str, ...]] = {}
    categories: tuple[str, ...] = ("category",)  # fields that name a row's category

    def plan(self, split: str, evaluation: bool) -> SetPlan:
        tally: Counter[str] = Counter()
        return SetPlan(
            name=split,
            corpus=self.name,
            split=split,
            samples=self._samples(split, tally),
            tasks=(QUESTION,) if evaluation else (),
            tally=tally,
        )

    def _samples(self, split: str, tally: Counter[str]) -> Iterator[Sample]:
        names = [place for name in self.files[split] for place in self.below(name)]
        first = self.find(*names)
        paths = [first]
        if any("*" in name for name in self.files[split]):  # one file a question
            paths = sorted({p for name in names for p in self.root.glob(name)})
        for path in paths:
            for number, row in enumerate(_rows(path), start=1):
                tally["rows"] += 1
                sample = self._sample(row, f"{path} row {number}", tally)
                if sample is not None:
                    yield sample

    def _sample(
        self, row: dict[str, Any], where: str, tally: Counter[str]
    ) -> Sample | None:
        audio = _first(row, AUDIO, where)
        if isinstance(audio, list):
            if len(audio) != 1:
                tally["several recordings"] += 1
                return None
            audio = audio[0]
        options = options_of(row)
        answer = next((row[name] for name in ANSWERS if row.get(name)), None)
        if answer is None or not 2 <= len(options) <= MAX_OPTIONS:
            reason = "no answer published" if answer is None else "no options"
            tally[reason] += 1
            return None
        text = right_option(clean(str(answer)), options)
        if text is None:
            tally["answer is none of the options"] += 1
            return None
        file = PurePosixPath(str(audio))
        found = [clean(str(row[n])) for n in self.categories if row.get(n)]
        return Sample(
            clip=file.name,
            audio=("/".join(file.parts[-2:]).lstrip("/"), file.name),
            text=text,
            task=QUESTION,
            instruction=str(_first(row, ("question", "instruction"), where)),
            category=found[0] if found else "",
            choices=tuple(options),
        )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON list, of JSON lines, or the one of a file."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            found = json.loads(text)
            rows = found if isinstance(found, list) else [found]
    except json.JSONDecodeError as error:
        raise CorpusError(f"{path}: expected JSON ({error})") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise CorpusError(
                f"{path} row {number}: expected an object, found {row!r:.60}"
            )
        yield row


def _first(row: dict[str, Any], names: tuple[str, ...], where: str) -> Any:
    for name in names:
        if row.get(name):
            return row[name]
    raise CorpusError(
        f"{where}: expected one of {', '.join(names)}; found {', '.join(row)}"
    )


def options_of(row: dict[str, Any]) -> list[str]:
    """The options of a row: a list, {"A": ...}, JSON or a text of lettered lines."""
    found: Any = next((row[name] for name in OPTIONS if row.get(name)), [])
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except json.JSONDecodeError:
            found = [line for line in found.splitlines() if line.strip()]
    if isinstance(found, dict):
        found = [found[key] for key in sorted(found)]
    options = [clean(str(option)) for option in found]
    letters = [match[1] for o in options if (match := _LETTER.match(o))]
    if options and letters == list(LETTERS[: len(options)]):
        options = [_LETTER.sub("", option, count=1).strip() for option in options]
    return list(dict.fromkeys(option for option in options if option))


def right_option(answer: str, options: list[str]) -> str | None:
    """The option that an answer names, by its text or its letter; None: it is none."""
    folded = {option.casefold(): option for option in options}
    if answer.casefold() in folded:
        return folded[answer.casefold()]
    letter = _LETTER.match(answer)
    if letter and letter[1] in LETTERS[: len(options)]:
        option = options[LETTERS.index(letter[1])]
        rest = answer[letter.end() :].strip().casefold()
        if rest in ("", option.casefold()):
            return option
    return None


class MMAU(_MultipleChoice):
    """Reads MMAU; its test split is published without answers.

    Args:
        root: holds mmau-test-mini.json and test-mini-audios/.
    """

    name = "mmau"
    splits = ("test-mini", "test")
    default_splits = ("test-mini",)
    evaluation_splits = ("test-mini", "test")
    files = {"test-mini": ("mmau-test-mini.json",), "test": ("mmau-test.json",)}
    categories = ("task",)


class MMAUPro(_MultipleChoice):
    """Reads MMAU-Pro, saved as JSON or JSON lines.

    Args:
        root: holds the questions and, below it, the audio.
    """

    name = "mmau_pro"
    files = {"test": ("mmau-pro.jsonl", "mmau_pro.jsonl", "mmau-pro.json", "test.json")}


class MMAR(_MultipleChoice):
    """Reads MMAR.

    Args:
        root: holds MMAR-meta.json and audio/.
    """

    name = "mmar"
    files = {"test": ("MMAR-meta.json",)}
    categories = ("modality", "category")


class DCASEQuestions(_MultipleChoice):
    """Reads the audio questions of DCASE 2025 and 2026 (task 5), tested on development.

    Args:
        root: holds dev.jsonl and train.jsonl, or folders dev and train of JSON files.
    """

    name = "dcase_aqa"
    splits = ("train", "development")
    default_splits = ("development",)
    evaluation_splits = ("development",)
    train_splits = ("train",)
    files = {
        "train": ("train.jsonl", "train.json", "train/*.json", "*/train/*.json"),
        "development": ("dev.jsonl", "dev.json", "dev/*.json", "*/dev/*.json"),
    }
    categories = ("category", "task", "type", "source")
