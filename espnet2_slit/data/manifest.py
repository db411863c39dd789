"""From a table of your own (CSV or JSONL) to data directories.

Owns the columns `audio,text[,instruction,task,split,start,end,category,source]` and
which data directory a row goes to. Rows are read as a stream; what stays in memory is a
number per clip.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from espnet2_slit.data.kaldi_dir import (
    SAMPLE_TASKS,
    DataDirError,
)
from espnet2_slit.data.report import Report
from espnet2_slit.data.writer import SetWriter, put_in_place, remove_sets

COLUMNS = (
    "audio",
    "text",
    "instruction",
    "task",
    "split",
    "start",
    "end",
    "category",
    "source",
)
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


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, columns) of every row of a manifest.

    Args:
        path: .csv, .tsv or .jsonl file, UTF-8, with or without a byte order mark.

    Yields:
        Rows with all COLUMNS, "" where there is none.

    Raises:
        DataDirError: not such a file; the message gives file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataDirError(
            f"{path}: no such manifest. Expected a CSV or JSONL file with"
            f" {','.join(COLUMNS[:2])}[,{','.join(COLUMNS[2:])}]"
        )
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl", ".json"):
        raise DataDirError(f"{path}: expected .csv, .tsv or .jsonl, found {suffix!r}")
    reader = _json_rows if suffix.startswith(".json") else _table_rows
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            yield from reader(path, stream)
    except UnicodeDecodeError as error:
        raise DataDirError(
            f"{path}: is not UTF-8 ({error.reason} at byte {error.start}). Convert it:"
            f" iconv -f ISO-8859-1 -t UTF-8 {path.name}"
        ) from error


def _check_columns(path: Path, found: list[str], line: int) -> None:
    missing = [name for name in ("audio", "text") if name not in found]
    unknown = [name for name in found if name not in COLUMNS]
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing)}"] if missing else []
        wrong += [f"does not know {', '.join(map(repr, unknown))}"] if unknown else []
        raise DataDirError(
            f"{path} line {line}: {' and '.join(wrong)}. Expected columns audio,text"
            f" and any of {','.join(COLUMNS[2:])}; found {','.join(found) or 'none'}"
        )


def _table_rows(path: Path, stream) -> Iterator[tuple[int, dict[str, str]]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = csv.reader(stream, delimiter=delimiter, strict=True)
    try:
        names = [name.strip().lower() for name in next(rows, [])]
        _check_columns(path, names, 1)
        for row in rows:
            if not row:
                continue
            if len(row) != len(names):
                raise DataDirError(
                    f"{path} line {rows.line_num}: expected {len(names)} columns"
                    f" ({','.join(names)}), found {len(row)}. Put quotes around text"
                    " that holds a comma."
                )
            yield rows.line_num, {
                **dict.fromkeys(COLUMNS, ""),
                **dict(zip(names, row, strict=True)),
            }
    except csv.Error as error:
        raise DataDirError(f"{path} line {rows.line_num}: {error}") from error


def _json_rows(path: Path, stream) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataDirError(
                f"{path} line {number}: is not JSON ({error.msg}). Expected one object"
                ' a line, as {"audio": "a.wav", "text": "a dog barks"}'
            ) from error
        if not isinstance(row, dict):
            raise DataDirError(
                f"{path} line {number}: expected an object, found {type(row).__name__}"
            )
        _check_columns(path, list(row), number)
        values = {k: "" if v is None else str(v) for k, v in row.items()}
        yield number, {**dict.fromkeys(COLUMNS, ""), **values}


def clean(text: str) -> str:
    """One line: every run of blanks and control characters is one blank."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


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
    with _Sets(target, instruct) as sets:
        split_of: dict[str, str] = {}
        for line, row in read_rows(path):
            report.rows += 1
            found = _row(path, line, row, folder, report)
            if found is None:
                continue
            audio, text, task, start, end = found
            clip = clip_id(row["audio"], start, end)
            split = _split(path, line, row["split"], clip, fractions, seed, split_of)
            if split is None:
                report.drop("clip is in another split", f"line {line}: {row['audio']}")
                continue
            segment = None if (start, end) == (0, -1) else (clip, start, end)
            sets.take(row, clip, audio, segment, text, task, split)
            report.kept += 1
        if not report.kept:
            raise DataDirError(
                "\n  ".join([f"{path}: no row is usable.", *report.lines()])
            )
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

    def __init__(self, target: Path, instruct: Callable[[str, str], str]):
        self.target, self.instruct = target, instruct
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

    def take(
        self,
        row: dict[str, str],
        clip: str,
        audio: str,
        segment: tuple[str, float, float] | None,
        text: str,
        task: str,
        split: str,
    ) -> None:
        """Write one row to the sets that it belongs to."""
        self._count[clip] += 1
        question = clean(row["instruction"])
        if task == "classification":
            self._labels[text] = None
        elif task == "question_answering":
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
            instruction = question if task != "question_answering" else ""
            if not instruction and (question or name.endswith("_instruction")):
                instruction = self.instruct(task, question)
            one.add(
                sample,
                clip,
                audio,
                text,
                task,
                clean(row["category"]).replace(" ", "_") or task,
                source=clean(row["source"]).replace(" ", "_"),
                instruction=instruction,
                segment=segment,
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


def _row(path: Path, line: int, row: dict[str, str], folder: Path, report: Report):
    """(audio, text, task, start, end) of a row; None if it is dropped, counted."""
    where = f"{path} line {line}"
    audio = row["audio"].strip()
    if not audio:
        report.drop("no audio named", f"line {line}")
        return None
    # a line of wav.scp ends at any of these for the tools that will read it
    if audio.endswith("|") or set("\n\r\0") & set(audio):
        raise DataDirError(
            f"{where}: audio is {audio!r}, expected the path of a file (commands are"
            " only read from the wav.scp of a data directory)."
        )
    task = row["task"].strip() or (
        "question_answering" if row["instruction"].strip() else "caption"
    )
    if task not in SAMPLE_TASKS:
        raise DataDirError(
            f"{where}: task is {task!r}, expected one of {', '.join(SAMPLE_TASKS)}."
        )
    if task == "question_answering" and not row["instruction"].strip():
        raise DataDirError(
            f"{where}: the task is question_answering, without a question in the column"
            " instruction."
        )
    text = clean(row["text"])
    if not text:
        report.drop("empty text", f"line {line}: {audio}")
        return None
    try:
        start = float(row["start"] or 0)
        end = float(row["end"] or -1)
    except ValueError:
        start, end = 1.0, 0.0
    if not (start >= 0 and (end > start or end == -1)):
        raise DataDirError(
            f"{where}: start is {row['start']!r} and end is {row['end']!r}, expected"
            " seconds with 0 <= start < end."
        )
    return str(folder / audio), text, task, start, end


def _split(path, line, name, clip, fractions, seed, known) -> str | None:
    """The row's split; None if its clip has been given to another one."""
    name = name.strip().lower()
    if name and name not in SPLIT_NAMES:
        raise DataDirError(
            f"{path} line {line}: split is {name!r}, expected train, valid or test."
        )
    split = SPLIT_NAMES[name] if name else drawn_split(clip, seed, fractions)
    return split if known.setdefault(clip, split) == split else None
