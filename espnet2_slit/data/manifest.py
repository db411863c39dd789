"""From a table of your own (CSV or JSONL) to data directories.

Owns which data directory a row goes to; how a table is read is the business of
`manifest_rows`. Rows are read as a stream; what stays in memory is a number per clip.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from espnet2_slit.common.names import SAMPLE_TASKS
from espnet2_slit.common.templates import choice_question
from espnet2_slit.data.kaldi_dir import DataDirError, one_line
from espnet2_slit.data.manifest_rows import Row, read_rows
from espnet2_slit.data.report import Report
from espnet2_slit.data.writer import SetWriter, put_in_place, remove_sets

SPLITS = ("train", "valid", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "dev": "valid",
    "development": "valid",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "test": "test",
    "eval": "test",
    "evaluation": "test",
}
TEST_SETS = {
    "caption": "test_caption",
    "question_answering": "test_qa",
    "classification": "test_class",
}
LABEL_SET = "_labels"  # becomes the caption set where there is no other
MAX_CANDIDATES = 1000  # more answers than this are not written as candidates
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def clip_id(audio: str, start: float, end: float) -> str:
    """Id of a clip: readable, safe anywhere, different for different clips."""
    stem = _UNSAFE.sub("_", Path(audio).stem).strip("_.-")[:60] or "clip"
    digest = hashlib.blake2b(f"{audio}\0{start}\0{end}".encode("utf-8"), digest_size=5)
    return f"{stem}-{digest.hexdigest()}"


def drawn_split(clip: str, seed: int, fractions: tuple[float, float]) -> str:
    """Split of a clip where the manifest names none: drawn by its id, so stable.

    Args:
        clip: clip id.
        seed: another seed, another draw.
        fractions: of valid and test.

    Returns:
        "train", "valid" or "test".
    """
    digest = hashlib.blake2b(f"{seed} {clip}".encode("utf-8"), digest_size=7).digest()
    place = int.from_bytes(digest, "big") / 2.0**56
    if place < fractions[0]:
        return "valid"
    return "test" if place < sum(fractions) else "train"


def from_manifest(
    path: Path,
    target: Path,
    instruct: Callable[[str, str], str],
    corpus: str = "",
    fractions: tuple[float, float] = (0.05, 0.1),
    seed: int = 0,
    language: str = "en",
) -> Report:
    """Make data directories of a manifest.

    `train` and `valid` rows become `<split>_caption` (captions; labels where there are
    no captions) and `<split>_instruction` (every row, with an instruction); `test` rows
    become `test_caption`, `test_qa` and `test_class`.

    Args:
        path: the manifest; audio paths are relative to its folder.
        target: folder of the data directories.
        instruct: (task, question) -> instruction for rows that need one.
        corpus: name for set.json; default: the manifest's name.
        fractions: of valid and test clips, where no split is named.
        seed: of that draw.
        language: of texts and questions, for set.json and the wording of choices.

    Returns:
        Report; its notes count the samples of each set.

    Raises:
        DataDirError: a row is wrong (file and line are named), or nothing is left.
    """
    path, target = Path(path), Path(target)
    if min(fractions) < 0 or sum(fractions) >= 1:
        raise DataDirError(
            f"fractions of valid and test: expected at least 0 and together below 1,"
            f" found {fractions[0]:g} and {fractions[1]:g}."
        )
    folder = path.resolve().parent
    report = Report(str(path))
    with _Sets(target, instruct, language) as sets:
        split_of: dict[str, str] = {}
        is_drawn = False
        for line, row in read_rows(path):
            report.rows += 1
            where = f"{path} line {line}"
            sample = _sample(where, row, folder, report)
            if sample is None:
                continue
            named = _named_split(where, row["split"])
            is_drawn |= not named
            split = named or drawn_split(sample.clip, seed, fractions)
            if split_of.setdefault(sample.clip, split) != split:
                report.drop("clip is in another split", f"line {line}: {row['audio']}")
                continue
            sets.take(sample, split)
            report.kept += 1
        if not report.kept:
            raise DataDirError(
                "\n  ".join([f"{path}: no row is usable.", *report.lines()])
            )
        if is_drawn:
            _refuse_a_lacking_split(path, split_of, fractions)
        sets.describe(corpus or path.stem)
    report.notes.update(sets.put_in_place())
    gone = remove_sets(
        target, sets.names(), made_by="manifest", corpus=corpus or path.stem
    )
    if gone:
        report.notes["sets of an earlier manifest removed"] = ", ".join(gone)
    return report


class _Sets:
    """The data directories of a manifest under way.

    As a context manager: all of them are there at the end, or none is.
    """

    def __init__(
        self, target: Path, instruct: Callable[[str, str], str], language: str
    ):
        self.target, self.instruct, self.language = target, instruct, language
        self._sets: dict[str, SetWriter] = {}
        self._count: Counter[str] = Counter()  # rows a clip
        self._references: dict[str, dict[str, None]] = {}
        self._labels: dict[str, None] = {}
        self._answers: dict[str, dict[str, None]] = {split: {} for split in SPLITS}

    def __enter__(self) -> _Sets:
        self._stack = ExitStack().__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._stack.__exit__(*failure)

    def names(self) -> list[str]:
        """Of the data directories."""
        labels = {name for name in self._sets if name.endswith(LABEL_SET)}
        captions = {name.replace(LABEL_SET, "_caption") for name in labels}
        return sorted(({*self._sets} - labels) | captions)

    def _set(self, name: str) -> SetWriter:
        if name not in self._sets:
            hidden = "." if name.endswith(LABEL_SET) else ""  # moved at the end
            writer = SetWriter(self.target / (hidden + name), always=True)
            self._sets[name] = self._stack.enter_context(writer)
        return self._sets[name]

    def take(self, row: _Sample, split: str) -> None:
        """Write one row to the sets that it belongs to."""
        clip, task, text = row.clip, row.task, row.text
        self._count[clip] += 1
        if task == "classification":
            self._labels[text] = None
        elif task == "question_answering" and not row.choices:
            self._answers[split][text] = None
        sample = f"{clip}-{self._count[clip]:03d}"
        names = [f"{split}_instruction"]
        if split == "test":
            names = [TEST_SETS[task]]
            if task == "caption":
                self._references.setdefault(clip, {})[text] = None
            if task != "question_answering":
                sample = clip
        elif task == "caption":
            names.insert(0, f"{split}_caption")
        elif task == "classification":
            names.insert(0, split + LABEL_SET)
        for name in names:
            one = self._set(name)
            if sample == clip and clip in one.clips:
                continue  # one line per clip; its other captions are references
            question, choices = row.question, row.choices
            if choices and split != "test":  # decoding shows them itself, in any order
                question, choices = (
                    choice_question(question, choices, self.language),
                    [],
                )
            instruction = question if task != "question_answering" else ""
            if not instruction and (question or name.endswith("_instruction")):
                instruction = self.instruct(task, question)
            one.add(
                sample,
                clip,
                row.audio,
                text,
                task,
                row.category or task,
                source=row.source,
                instruction=instruction,
                segment=row.segment,
                choices=choices,
                variants=[] if split == "test" else row.variants,
            )

    def describe(self, corpus: str) -> None:
        """What needs all rows: references, candidates, set.json."""
        # Candidates come from training; a manifest of test rows has only its own.
        known = sorted(self._answers["train"] or self._answers["test"])
        for name, one in self._sets.items():
            split = name.partition("_")[0]
            tasks = sorted(one.tasks) if split == "test" else []
            if name == "test_caption":
                tasks = ["caption", "retrieval"]
                for clip, texts in self._references.items():
                    for text in sorted(texts):
                        one.reference(clip, text)
            one.describe(
                labels=sorted(self._labels) if name == "test_class" else [],
                answers=(
                    known if name == "test_qa" and len(known) <= MAX_CANDIDATES else []
                ),
                name=name.replace(LABEL_SET, "_caption"),
                corpus=corpus,
                split=split,
                tasks=tasks,
                made_by="manifest",
                **({} if self.language == "en" else {"language": self.language}),
            )

    def put_in_place(self) -> dict[str, Any]:
        """Once all is written: captions are labels where nothing else has captions.

        Returns:
            Notes for the report: samples of each set, files left out.
        """
        notes: dict[str, Any] = {}
        for name, one in self._sets.items():
            caption = name.replace(LABEL_SET, "_caption")
            if name.endswith(LABEL_SET):
                if caption in self._sets:
                    shutil.rmtree(one.folder)
                    continue
                put_in_place(one.folder, self.target / caption)
            notes[f"samples in {caption}"] = one.samples
            for file, count in one.left_out.items():
                notes[f"{file} of {caption} left out"] = (
                    f"{count} of {one.samples} samples have one"
                )
        return notes


class _Sample(NamedTuple):
    """A row that can be used."""

    clip: str
    audio: str
    segment: tuple[str, float, float] | None
    text: str
    task: str
    question: str
    category: str
    source: str
    choices: list[str]
    variants: list[str]


def _sample(where: str, row: Row, folder: Path, report: Report) -> _Sample | None:
    """A row as it is meant; None if it is dropped, counted."""
    audio = _audio(where, row["audio"], folder)
    text, question = one_line(row["text"]), one_line(row["instruction"])
    if not audio or not text:
        example = f"{where.rpartition(' line ')[2]}: {row['audio']}"
        report.drop("empty text" if audio else "no audio named", f"line {example}")
        return None
    task = row["task"].strip() or ("question_answering" if question else "caption")
    if task not in SAMPLE_TASKS:
        raise DataDirError(
            f"{where}: task is {task!r}, expected one of {', '.join(SAMPLE_TASKS)}."
        )
    if task == "question_answering" and not question:
        raise DataDirError(
            f"{where}: the task is question_answering, without a question in the column"
            " instruction."
        )
    choices = [one_line(option) for option in json.loads(row["choices"] or "[]")]
    if choices and (task != "question_answering" or text not in choices):
        raise DataDirError(
            f"{where}: choices are {', '.join(map(repr, choices))}; expected a question"
            f" in the column instruction and one of them as text, found {text!r}."
        )
    start, end = _times(where, row)
    clip = clip_id(audio, start, end)
    return _Sample(
        clip,
        str(folder / audio),
        None if (start, end) == (0, -1) else (clip, start, end),
        text,
        task,
        question,
        one_line(row["category"]).replace(" ", "_"),
        one_line(row["source"]).replace(" ", "_"),
        choices,
        [one_line(text) for text in json.loads(row["text_variants"] or "[]")],
    )


def _audio(where: str, audio: str, folder: Path) -> str:
    """One spelling of a path: ` ./a.wav` and `a.wav` are one clip, "" is none."""
    audio = audio.strip()
    # a line of wav.scp ends at any of these for the tools that will read it
    if audio.endswith("|") or set("\n\r\0") & set(audio):
        raise DataDirError(
            f"{where}: audio is {audio!r}, expected the path of a file (commands are"
            " only read from the wav.scp of a data directory)."
        )
    if not audio:
        return ""
    audio = os.path.normpath(audio)
    if audio.startswith(f"{folder}{os.sep}"):
        return os.path.relpath(audio, folder)
    return audio


def _times(where: str, row: Row) -> tuple[float, float]:
    try:
        start = float(row["start"] or 0)
        end = float(row["end"] or -1)
    except ValueError:
        start, end = 1.0, 0.0
    is_order = start >= 0 and (end > start or end == -1)
    if not (is_order and math.isfinite(start) and math.isfinite(end)):
        raise DataDirError(
            f"{where}: start is {row['start']!r} and end is {row['end']!r}, expected"
            " seconds with 0 <= start < end."
        )
    return start, end


def _named_split(where: str, name: str) -> str:
    """train, valid or test; "" where the row leaves it to chance."""
    name = name.strip().lower()
    if name and name not in SPLIT_NAMES:
        raise DataDirError(
            f"{where}: split is {name!r}, expected train, valid or test."
        )
    return SPLIT_NAMES.get(name, "")


def _refuse_a_lacking_split(
    path: Path, split_of: dict[str, str], fractions: tuple[float, float]
) -> None:
    """Say at once that nothing was drawn for a split, not after hours of work."""
    wanted = {"valid": fractions[0], "test": fractions[1]}
    found = set(split_of.values())
    lacking = [name for name, part in wanted.items() if part and name not in found]
    lacking += ["train"] if "train" not in found else []
    if lacking:
        raise DataDirError(
            f"{path}: of {len(split_of)} clips none was drawn for {lacking[0]}"
            f" ({fractions[0]:.0%} valid, {fractions[1]:.0%} test). Write a column"
            " split with train, valid or test, or give a larger --valid-fraction"
            " and --test-fraction (0: no such set)."
        )
