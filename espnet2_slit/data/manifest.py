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
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from espnet2_slit.common.files import write_atomically
from espnet2_slit.data.kaldi_dir import (
    PLAIN_FILES,
    SAMPLE_FILES,
    SAMPLE_TASKS,
    DataDirError,
)
from espnet2_slit.data.report import Report
from espnet2_slit.data.writer import (
    SortedWriter,
    write_categories,
    write_set,
    write_speakers,
)

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
MAX_CANDIDATES = 1000  # more answers than this are not written as candidates
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass
class _Set:
    """One data directory under way."""

    files: dict[str, SortedWriter]
    tasks: set[str] = field(default_factory=set)
    clips: set[str] = field(default_factory=set)
    rows: int = 0


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
    counts: dict[str, int] = {}
    split_of: dict[str, str] = {}
    references: dict[str, set[str]] = {}
    labels: dict[str, None] = {}
    answers: dict[str, dict[str, None]] = {split: {} for split in SPLITS}
    sets: dict[str, _Set] = {}
    with ExitStack() as stack:

        def place(name: str) -> _Set:
            if name not in sets:
                names = ["wav.scp", "segments", "text", "utt2spk", "utt2audio"]
                names += ["utt2task", "instruction", "utt2category", "utt2source"]
                sets[name] = _Set(
                    {
                        n: stack.enter_context(
                            SortedWriter(target / name / n, unique=n == "wav.scp")
                        )
                        for n in names
                    }
                )
            return sets[name]

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
            number = counts[clip] = counts.get(clip, 0) + 1
            question = clean(row["instruction"])
            if task == "classification":
                labels[text] = None
            elif task == "question_answering":
                answers[split][text] = None
            if split != "test":
                names = [f"{split}_instruction"]
                if task == "caption":
                    names.insert(0, f"{split}_caption")
                elif task == "classification":
                    names.insert(0, f"{split}_labels")
            else:
                names = [TEST_SETS[task]]
            sample = f"{clip}-{number:03d}"
            if names == ["test_caption"]:
                references.setdefault(clip, set()).add(text)
                sample = clip
            elif names == ["test_class"]:
                sample = clip
            for name in names:
                one = place(name)
                one.tasks.add(task)
                if sample == clip and clip in one.clips:
                    continue  # one line per clip; its other captions are references
                one.clips.add(clip)
                one.rows += 1
                values = {
                    "segments": f"{clip} {start:g} {end:g}",
                    "text": text,
                    "utt2spk": sample,
                    "utt2audio": clip,
                    "utt2task": task,
                    "utt2category": clean(row["category"]).replace(" ", "_") or task,
                    "utt2source": clean(row["source"]).replace(" ", "_") or clip,
                }
                if name.endswith("_instruction") or question:
                    values["instruction"] = (
                        question
                        if task != "question_answering" and question
                        else instruct(task, question)
                    )
                for file, value in values.items():
                    one.files[file].add(f"{sample} {value}")
                one.files["wav.scp"].add(f"{clip} {audio}")
            report.kept += 1
        if not report.kept:
            raise DataDirError(
                "\n  ".join([f"{path}: no row is usable.", *report.lines()])
            )
        # Every row was good: only now an earlier manifest's files may go.
        for name in sets:
            _remove(target / name, known_only=True)
    _finish(target, sets, references, labels, answers, corpus or path.stem, report)
    return report


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


def _finish(target, sets, references, labels, answers, corpus, report) -> None:
    """What needs all rows: references, candidates, set.json, files nobody needs."""
    for split in ("train", "valid"):
        caption, label = target / f"{split}_caption", target / f"{split}_labels"
        if label.name in sets:
            made = sets.pop(label.name)
            if caption.name in sets:
                _remove(label)
            else:  # a corpus of labels alone: these are what stage 1 learns from
                _remove(caption)
                label.rename(caption)
                sets[caption.name] = made
    # Candidates come from training; a manifest of test rows alone has only its own.
    known = list(answers["train"]) or list(answers["test"])
    for name, one in sets.items():
        folder = target / name
        write_speakers(folder)
        write_categories(folder)
        empty = [n for n, file in one.files.items() if file.count < one.rows]
        if all(v.endswith(" 0 -1") for v in _lines(folder / "segments")):
            _whole_files(folder)
        for file in {*empty} - {"wav.scp", "segments"}:
            (folder / file).unlink()
        tasks = sorted(one.tasks)
        split = name.partition("_")[0]
        if name == "test_caption":
            tasks = ["caption", "retrieval"]
            with SortedWriter(folder / "references") as out:
                for clip, texts in references.items():
                    for text in texts:
                        out.add(f"{clip} {text}")
        elif name == "test_class":
            write_atomically(folder / "labels", sorted(labels))
        elif name == "test_qa" and len(known) <= MAX_CANDIDATES:
            write_atomically(folder / "answers", sorted(known))
        if split != "test":
            tasks = []
        write_set(folder, corpus=corpus, split=split, tasks=tasks)
        report.notes[f"samples in {name}"] = one.rows


def _lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            yield line.rstrip("\n")


def _whole_files(folder: Path) -> None:
    """No row names a stretch: wav.scp by sample, as most tools expect, no segments."""
    recordings = dict(line.split(" ", 1) for line in _lines(folder / "wav.scp"))
    with SortedWriter(folder / "wav.scp") as out:
        for line in _lines(folder / "segments"):
            sample, clip, *_ = line.split(" ")
            out.add(f"{sample} {recordings[clip]}")
    (folder / "segments").unlink()


def _remove(folder: Path, known_only: bool = False) -> None:
    """Remove a data directory, or only the files that an earlier run may have left."""
    if not folder.is_dir():
        return
    known = {*SAMPLE_FILES, *PLAIN_FILES, "wav.scp", "spk2utt", "references"}
    for path in folder.iterdir():
        if not known_only or path.name in known:
            path.unlink()
    if not known_only:
        folder.rmdir()
