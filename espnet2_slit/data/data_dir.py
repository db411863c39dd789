"""Kaldi-style data directories: validate, fix, combine, subset, split.

Owns the layout of a directory and keeps its files in agreement. What the audio holds is
`prepare`'s business, where rows come from is that of `manifest` and `corpora`.

A directory has one line per sample, `id value`, sorted bytewise, in UTF-8. Files with
other keys are `wav.scp` (recordings, where there are `segments`), `spk2utt` (speakers)
and `references` (clips, one line per reference). Large directories are handled one file
at a time: what stays in memory is the ids.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
TASKS = ("caption", "retrieval", "question_answering", "classification")
SAMPLE_TASKS = ("caption", "question_answering", "classification")
# Keyed by sample; a directory has those it needs. `segments` decide what wav.scp means.
SAMPLE_FILES = (
    "text",
    "utt2spk",
    "segments",
    "instruction",
    "utt2audio",
    "utt2task",
    "utt2category",
    "utt2source",
    "utt2fold",
    "utt2num_samples",
    "utt2dur",
    "feats.scp",
    "feats_shape",
    "speech_shape",
)
# Not keyed by anything.
PLAIN_FILES = ("labels", "answers", "set.json")
# What a sample without a line in an optional file is taken to have there.
DEFAULTS: dict[str, Callable[[str], str]] = {
    "utt2spk": lambda sample: sample,
    "utt2audio": lambda sample: sample,
    "utt2task": lambda sample: "caption",
}
LINES_IN_MEMORY = 250_000  # a longer file is sorted in runs on disk
EXAMPLES = 3  # ids named in a message
_SEPARATOR = re.compile(r"[ \t]+")


class DataDirError(ValueError):
    """A data directory is not as it must be; the message says what to do."""


@dataclass
class Report:
    """What a command read, kept and dropped, and why.

    Attributes:
        name: directory or file it is about.
        rows: samples read.
        kept: samples written.
        dropped: reason -> count.
        examples: reason -> a few ids or messages.
        notes: counts of what was changed but kept, e.g. "resampled".
    """

    name: str
    rows: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def drop(self, reason: str, example: str, count: int = 1) -> None:
        """Count a loss and remember the first few."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES:
            shown.append(example)

    def note(self, what: str, count: int | float = 1) -> None:
        """Count something worth telling that costs no sample."""
        self.notes[what] = self.notes.get(what, 0) + count

    def lines(self) -> Iterator[str]:
        """The report for people."""
        yield f"{self.name}: {self.rows:,} rows read, {self.kept:,} kept"
        for reason, count in sorted(self.dropped.items()):
            shown = "; ".join(self.examples.get(reason, []))
            yield f"  dropped {count:,}: {reason} (e.g. {shown})"
        for what, count in sorted(self.notes.items()):
            number = f"{count:,}" if isinstance(count, (int, float)) else count
            yield f"  {what}: {number}"

    def write(self, path: Path, **more) -> None:
        """Write it, and `more` values beside it, as JSON."""
        content = {"schema": SCHEMA, **vars(self), **more}
        write_atomically(path, [json.dumps(content, indent=1, ensure_ascii=False)])


# -------------------------------------------------------------------- reading, writing


def write_atomically(path: Path, lines: Iterable[str]) -> None:
    """Write lines to a temporary name beside `path`, then rename it.

    Args:
        path: file to make or replace; its folder is made.
        lines: without line ends.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(line + "\n" for line in lines)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say of which file
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class SortedWriter:
    """Collects lines in any order and writes them sorted bytewise, in bounded memory.

    Use as a context manager: the file appears, whole, when the block ends well.

    Args:
        path: file to make.
        unique: drop repeated lines.
    """

    def __init__(self, path: Path, unique: bool = False):
        self.path = Path(path)
        self.unique = unique
        self.count = 0
        self._lines: list[bytes] = []
        self._runs: list = []

    def add(self, line: str) -> None:
        """Take one line, without its end."""
        self._lines.append(line.encode("utf-8") + b"\n")
        self.count += 1
        if len(self._lines) >= LINES_IN_MEMORY:
            self._spill()

    def _spill(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        run = tempfile.TemporaryFile(dir=self.path.parent)
        run.writelines(sorted(self._lines))
        run.seek(0)
        self._runs.append(run)
        self._lines = []

    def __enter__(self) -> SortedWriter:
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:
                merged = heapq.merge(sorted(self._lines), *self._runs)
                write_atomically(self.path, self._decoded(merged))
        finally:
            for run in self._runs:
                run.close()

    def _decoded(self, lines: Iterable[bytes]) -> Iterator[str]:
        before = None
        for line in lines:
            if not (self.unique and line == before):
                yield line[:-1].decode("utf-8")
            before = line


def read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """(id, value) of every line; the value is "" where a line has only an id.

    Args:
        path: file of `id value` lines.

    Yields:
        Pairs in the file's order; empty lines are passed over.

    Raises:
        DataDirError: the file is missing or not UTF-8; names file and line.
    """
    path = Path(path)
    number = 0
    try:
        with open(path, encoding="utf-8", newline="\n") as stream:
            for line in stream:
                number += 1
                parts = _SEPARATOR.split(line.strip(" \t\r\n"), maxsplit=1)
                if parts[0]:
                    yield parts[0], parts[1] if len(parts) == 2 else ""
    except FileNotFoundError:
        raise DataDirError(
            f"{path}: no such file. Expected a data directory with wav.scp and text;"
            " found " + _listing(path.parent)
        ) from None
    except UnicodeDecodeError as error:
        raise DataDirError(
            f"{path}: a line after line {number} is not UTF-8 ({error.reason}). Convert"
            f" the file: iconv -f ISO-8859-1 -t UTF-8 {path.name}"
        ) from error


def read_map(path: Path) -> dict[str, str]:
    """All pairs of a file with unique ids.

    Args:
        path: file of `id value` lines.

    Returns:
        id -> value, in the file's order.

    Raises:
        DataDirError: an id comes twice.
    """
    found: dict[str, str] = {}
    for key, value in read_pairs(path):
        if key in found:
            raise DataDirError(
                f"{path}: the id {key!r} comes twice. Run `python -m"
                f" espnet2_slit.bin.slit_data fix {Path(path).parent}`"
            )
        found[key] = value
    return found


def read_lines(path: Path) -> list[str]:
    r"""Lines of a list without ids, such as `labels`, once each; empty ones left out.

    Only "\n" ends a line: a label may hold U+2028 or U+0085, at which str.splitlines
    would cut it.

    Args:
        path: file with one entry a line.

    Returns:
        Entries in the file's order, blanks around them removed.
    """
    with open(path, encoding="utf-8", newline="\n") as stream:
        stripped = (line.strip(" \t\r\n") for line in stream)
        return list(dict.fromkeys(line for line in stripped if line))


def _lines(path: Path) -> list[str]:
    """All lines as they are, without their ends."""
    text = path.read_bytes().decode("utf-8")
    return text.removesuffix("\n").split("\n") if text else []


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return f"no folder {folder}"
    names = sorted(path.name for path in folder.iterdir())
    return f"{folder} with {', '.join(names[:8]) or 'nothing in it'}"


def read_set(directory: Path) -> dict:
    """The directory's set.json, or what is assumed where there is none."""
    path = Path(directory) / "set.json"
    if not path.is_file():
        return {
            "schema": SCHEMA,
            "name": Path(directory).name,
            "corpus": "",
            "split": "",
            "variant": "",
            "tasks": [],
            "zero_shot": False,
            "notes": "",
        }
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataDirError(f"{path}: is not JSON ({error}). Write it again.") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        schema = (
            found.get("schema") if isinstance(found, dict) else type(found).__name__
        )
        raise DataDirError(f"{path}: expected schema {SCHEMA}, found {schema}.")
    unknown = [task for task in found.get("tasks", []) if task not in TASKS]
    if unknown:
        raise DataDirError(
            f"{path}: tasks may be {', '.join(TASKS)}; found {', '.join(unknown)}."
        )
    return found


def write_set(directory: Path, **values) -> None:
    """Write set.json, completing what `values` leaves out."""
    content = {**read_set(directory), "sample_rate": 16000, **values}
    content["name"] = values.get("name", Path(directory).name)
    write_atomically(
        Path(directory) / "set.json",
        [json.dumps(content, indent=1, ensure_ascii=False)],
    )


def sample_files(directory: Path) -> list[str]:
    """Names of the files in a directory that have one line per sample.

    Known names, wav.scp where there are no segments, and text_spk1, text_spk2, ... of
    ESPnet's captioning recipes.
    """
    directory = Path(directory)
    names = [name for name in SAMPLE_FILES if (directory / name).is_file()]
    if "segments" not in names and (directory / "wav.scp").is_file():
        names.insert(0, "wav.scp")
    names += sorted(path.name for path in directory.glob("text_spk[0-9]*"))
    return names


def sample_ids(directory: Path) -> list[str]:
    """Ids of a directory's samples, in order."""
    directory = Path(directory)
    for name in ("segments", "wav.scp", "feats.scp"):
        if (directory / name).is_file():
            return [key for key, _ in read_pairs(directory / name)]
    raise DataDirError(
        f"{directory}: expected wav.scp (or feats.scp); found {_listing(directory)}"
    )


def clip_of(directory: Path) -> dict[str, str]:
    """sample id -> clip id; empty where every sample is its own clip."""
    path = Path(directory) / "utt2audio"
    return read_map(path) if path.is_file() else {}


# ----------------------------------------------------------------------------- validate


class _Problems:
    """Collects what is wrong, so that one look shows all of it."""

    LIMIT = 20

    def __init__(self, directory: Path):
        self.directory = directory
        self.found: list[str] = []

    def add(self, name: str, message: str) -> None:
        self.found.append(f"{name}: {message}")

    def raise_any(self) -> None:
        if not self.found:
            return
        shown = self.found[: self.LIMIT]
        more = len(self.found) - len(shown)
        raise DataDirError(
            f"{self.directory} is not a valid data directory:\n  "
            + "\n  ".join(shown)
            + (f"\n  and {more} more" if more else "")
            + "\nOrder, repeated lines and ids that some files lack are mended by"
            f" `python -m espnet2_slit.bin.slit_data fix {self.directory}`."
        )


def _some(ids: Iterable[str]) -> str:
    ids = sorted(ids)
    more = f" and {len(ids) - EXAMPLES} more" if len(ids) > EXAMPLES else ""
    return ", ".join(map(repr, ids[:EXAMPLES])) + more


def check_id(key: str) -> str | None:
    """What is wrong with an id, None if nothing."""
    if not key.isprintable() or any(character.isspace() for character in key):
        return "holds characters that cannot be printed"
    return None


def _check_lines(path: Path, problems: _Problems, repeat: bool = False) -> list[str]:
    """Check one keyed file; returns its ids in order."""
    name = path.name
    ids: list[str] = []
    previous = b""
    counts: dict[str, list[str]] = {}

    def problem(what: str, where: str) -> None:
        counts.setdefault(what, []).append(where)

    try:
        stream = open(path, "rb")
    except OSError as error:
        problems.add(name, f"cannot be read ({error.strerror})")
        return ids
    number, complete = 0, True
    for number, line in enumerate(stream, start=1):
        where = f"line {number}"
        complete = line.endswith(b"\n")
        line = line.removesuffix(b"\n")
        if line.endswith(b"\r"):
            problem("ends with CR (a Windows line end)", where)
            line = line[:-1]
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            problem("is not UTF-8", where)
            continue
        parts = _SEPARATOR.split(text.strip(" \t"), maxsplit=1)
        key = parts[0]
        if not key:
            problem("is empty", where)
            continue
        if len(parts) == 1:
            problem("has an id and no value", f"{where} ({key!r})")
        wrong = check_id(key)
        if wrong:
            problem(f"has an id that {wrong}", f"{where} ({key!r})")
        encoded = key.encode("utf-8")
        if encoded < previous:
            problem("is out of order (bytewise: LC_ALL=C sort)", f"{where} ({key!r})")
        elif encoded == previous and ids and not repeat:
            problem("repeats the id of the line before", f"{where} ({key!r})")
        previous = encoded
        ids.append(key)
    stream.close()
    if not number:
        problems.add(name, "is empty (0 bytes), expected `id value` lines")
    if not complete:
        problem("lacks a line end: cut off while it was written?", "the last line")
    for what, places in counts.items():
        more = f" and {len(places) - EXAMPLES} more" if len(places) > EXAMPLES else ""
        problems.add(name, f"{', '.join(places[:EXAMPLES])}{more} {what}")
    return ids


def _check_same(
    name: str, ids: list[str], expected: set[str], source: str, problems: _Problems
) -> None:
    found = set(ids)
    if found == expected:
        return
    lacking, extra = expected - found, found - expected
    parts = []
    if lacking:
        parts.append(f"lacks {len(lacking)} ids of {source} ({_some(lacking)})")
    if extra:
        parts.append(f"has {len(extra)} ids that {source} lacks ({_some(extra)})")
    problems.add(name, " and ".join(parts))


def validate(directory: Path, require_text: bool = True) -> int:
    """Check every file of a data directory and their agreement.

    Args:
        directory: the data directory.
        require_text: whether `text` must be there.

    Returns:
        Number of samples.

    Raises:
        DataDirError: names everything that is wrong, up to a bound, and the remedy.
    """
    directory = Path(directory)
    problems = _Problems(directory)
    if not directory.is_dir():
        raise DataDirError(f"{directory}: no such data directory.")
    names = sample_files(directory)
    source = next((n for n in ("segments", "wav.scp", "feats.scp") if n in names), None)
    if source is None:
        raise DataDirError(
            f"{directory}: expected wav.scp (or feats.scp); found {_listing(directory)}"
        )
    if require_text and "text" not in names:
        problems.add("text", f"no such file; found {_listing(directory)}")
    ids = _check_lines(directory / source, problems)
    expected = set(ids)
    for name in names:
        if name != source:
            others = _check_lines(directory / name, problems)
            if others:
                _check_same(name, others, expected, source, problems)
    if source == "segments":
        _check_segments(directory, problems)
    _check_speakers(directory, problems)
    _check_meaning(directory, expected, problems)
    problems.raise_any()
    return len(ids)


def _check_segments(directory: Path, problems: _Problems) -> None:
    recordings = set(_check_lines(directory / "wav.scp", problems))
    unknown = set()
    for key, value in read_pairs(directory / "segments"):
        wrong = segment_fault(value)
        if wrong:
            problems.add("segments", f"{key!r} {wrong}")
        elif value.split()[0] not in recordings:
            unknown.add(value.split()[0])
    if unknown:
        problems.add("segments", f"names recordings wav.scp lacks ({_some(unknown)})")


def segment_fault(value: str) -> str | None:
    """What is wrong with `recording start end`, None if nothing."""
    parts = value.split()
    try:
        start, end = float(parts[1]), float(parts[2])
    except (IndexError, ValueError):
        return f"has {value!r}, expected `recording start end` with seconds"
    if len(parts) != 3 or not start >= 0 or not (end > start or end == -1):
        return f"has {value!r}, expected 0 <= start < end (or end -1: all the rest)"
    return None


def _check_speakers(directory: Path, problems: _Problems) -> None:
    for name, other in (("utt2spk", "spk2utt"), ("spk2utt", "utt2spk")):
        if not (directory / name).is_file():
            if (directory / other).is_file():
                problems.add(name, f"no such file beside {other}")
            return
    _check_lines(directory / "spk2utt", problems)
    inverse = set()
    for speaker, samples in read_pairs(directory / "spk2utt"):
        inverse.update((sample, speaker) for sample in samples.split())
    pairs = set(read_pairs(directory / "utt2spk"))
    if inverse != pairs:
        wrong = {sample for sample, _ in inverse ^ pairs}
        problems.add("spk2utt", f"is not the inverse of utt2spk ({_some(wrong)})")


def _check_meaning(directory: Path, ids: set[str], problems: _Problems) -> None:
    """What the values say: tasks, clips, references, labels."""
    try:
        description = read_set(directory)
    except DataDirError as error:
        problems.add("set.json", str(error).removeprefix(f"{directory}/set.json: "))
        return
    if (directory / "utt2task").is_file():
        pairs = read_pairs(directory / "utt2task")
        wrong = {task for _, task in pairs if task not in SAMPLE_TASKS}
        if wrong:
            problems.add(
                "utt2task", f"expected {', '.join(SAMPLE_TASKS)}; found {_some(wrong)}"
            )
    clips = set(clip_of(directory).values()) or ids
    broken = {clip for clip in clips if check_id(clip) or " " in clip}
    if broken:
        problems.add("utt2audio", f"clip ids must be one word, found {_some(broken)}")
    references = directory / "references"
    if references.is_file():
        found = _check_lines(references, problems, repeat=True)
        _check_same("references", found, clips, "the clip ids", problems)
    labels = None
    for name in ("labels", "answers"):
        if (directory / name).is_file():
            lines = _lines(directory / name)
            labels = set(lines) if name == "labels" else labels
            if not lines or not all(line.strip() for line in lines):
                problems.add(name, "is empty or has empty lines, expected one a line")
            elif len(set(lines)) < len(lines):
                twice = {line for line in lines if lines.count(line) > 1}
                problems.add(name, f"has lines twice ({_some(twice)})")
    tasks = description.get("tasks", [])
    needs = {
        "caption": "references",
        "retrieval": "references",
        "question_answering": "instruction",
        "classification": "labels",
    }
    for task in tasks:
        if not (directory / needs[task]).is_file():
            problems.add(
                "set.json", f"names the task {task}, which needs {needs[task]}"
            )
    if "classification" in tasks and labels and (directory / "text").is_file():
        texts = (text for _, text in read_pairs(directory / "text"))
        # several labels of one clip are joined by "; "
        unknown = {label for text in texts for label in text.split("; ")} - labels
        if unknown:
            problems.add("text", f"has labels that `labels` lacks ({_some(unknown)})")


# ------------------------------------------------------------------------ fix, and edit


def _unique_pairs(path: Path, report: Report) -> dict[str, str]:
    """id -> value of one file: first of repeated ids, broken lines counted out."""
    found: dict[str, str] = {}
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                text = line.decode("utf-8").strip(" \t\r\n\ufeff")
            except UnicodeDecodeError:
                report.drop(f"{path.name}: not UTF-8", f"line {number}")
                continue
            if not text:
                continue
            key, *value = _SEPARATOR.split(text, maxsplit=1)
            if check_id(key):
                report.drop(f"{path.name}: unprintable id", f"line {number}")
            elif not value:
                report.drop(f"{path.name}: no value", key)
            elif key not in found:
                found[key] = value[0].replace("\r", " ")
            elif found[key] == value[0]:
                report.note(f"repeated lines in {path.name}")
            else:
                report.drop(f"{path.name}: other value for an id seen before", key)
    return found


def write_speakers(directory: Path) -> None:
    """Write spk2utt from utt2spk."""
    speakers: dict[str, list[str]] = {}
    for sample, speaker in read_pairs(Path(directory) / "utt2spk"):
        speakers.setdefault(speaker, []).append(sample)
    with SortedWriter(Path(directory) / "spk2utt") as out:
        for speaker, samples in speakers.items():
            out.add(f"{speaker} {' '.join(samples)}")


def write_categories(directory: Path) -> int:
    """Write category2utt, from which ESPnet's category samplers draw.

    Args:
        directory: data directory with utt2category; without it all samples are of one
            category, "all", so that such a sampler can be used all the same.

    Returns:
        How many categories there are.
    """
    directory = Path(directory)
    pairs: Iterable[tuple[str, str]]
    if (directory / "utt2category").is_file():
        pairs = read_pairs(directory / "utt2category")
    else:
        pairs = ((key, "all") for key in sample_ids(directory))
    flat = directory / ".category2utt"  # sorted on disk: categories may be large
    with SortedWriter(flat) as lines:
        for sample, category in pairs:
            lines.add(f"{category} {sample}")
    count = 0
    with open(directory / "category2utt", "w", encoding="utf-8", newline="\n") as out:
        for category, members in itertools.groupby(read_pairs(flat), lambda p: p[0]):
            out.write(category)
            out.writelines(f" {sample}" for _, sample in members)
            out.write("\n")
            count += 1
    flat.unlink()
    return count


def fix(directory: Path) -> Report:
    """Sort, drop repeated and broken lines, keep the ids that every file has.

    The files as they were are kept in `.backup`. Running it again changes nothing.

    Args:
        directory: the data directory, changed in place.

    Returns:
        Report of what was dropped and why; also written to report.json.

    Raises:
        DataDirError: there is no audio list, or no sample is left.
    """
    directory = Path(directory)
    names = sample_files(directory)
    report = Report(str(directory))
    source = next((n for n in ("segments", "wav.scp", "feats.scp") if n in names), None)
    if source is None:
        raise DataDirError(
            f"{directory}: expected wav.scp (or feats.scp); found {_listing(directory)}"
        )
    base = _unique_pairs(directory / source, report)
    report.rows = len(base)
    ids = set(base)
    if source == "segments":
        recordings = set(_unique_pairs(directory / "wav.scp", report))
        for key, value in base.items():
            wrong = segment_fault(value)
            if wrong or value.split()[0] not in recordings:
                report.drop("segments: broken or of no recording", key)
                ids.discard(key)
    del base
    for name in names:
        if name == source:
            continue
        found = set(_unique_pairs(directory / name, report))
        for key in sorted(ids - found):
            report.drop(f"no line in {name}", key)
        report_extra = len(found - ids)
        if report_extra:
            report.note(f"lines of {name} without audio, left out", report_extra)
        ids &= found
    if not ids:
        raise DataDirError(
            f"{directory}: no sample is left. "
            + " ".join(report.lines())
            + " Do the ids of wav.scp and text agree?"
        )
    rewrite(directory, directory, ids, backup=True)
    report.kept = len(ids)
    report.write(directory / "report.json")
    return report


def rewrite(source: Path, target: Path, ids: set[str], backup: bool = False) -> None:
    """Write the samples `ids` of one directory to another (or to itself).

    Args:
        source: data directory to read.
        target: data directory to write; may be `source`.
        ids: samples to keep.
        backup: keep the files of `target` in `.backup`.
    """
    source, target = Path(source), Path(target)
    names = sample_files(source)
    if backup:
        keep = target / ".backup"
        keep.mkdir(exist_ok=True)
        for name in {*names, "wav.scp", "references", "spk2utt"}:
            if (target / name).is_file():
                shutil.copy2(target / name, keep / name)
    unheard = Report("")
    clips = {}
    recordings = set()
    for name in names:
        pairs = _unique_pairs(source / name, unheard)
        with SortedWriter(target / name) as out:
            for key, value in pairs.items():
                if key in ids:
                    out.add(f"{key} {value}")
                    if name == "utt2audio":
                        clips[key] = value
                    elif name == "segments":
                        recordings.add(value.split()[0])
    if "segments" in names:
        with SortedWriter(target / "wav.scp") as out:
            for key, value in _unique_pairs(source / "wav.scp", unheard).items():
                if key in recordings:
                    out.add(f"{key} {value}")
    if "utt2spk" not in names:
        with SortedWriter(target / "utt2spk") as out:
            for key in ids:
                out.add(f"{key} {key}")
    write_speakers(target)
    write_categories(target)
    if (source / "references").is_file():
        wanted = set(clips.values()) or ids
        with SortedWriter(target / "references", unique=True) as out:
            for key, value in read_pairs(source / "references"):
                if key in wanted and value:
                    out.add(f"{key} {value}")
    for name in PLAIN_FILES:
        if source != target and (source / name).is_file():
            write_atomically(target / name, _lines(source / name))


def combine(target: Path, sources: Iterable[Path]) -> Report:
    """Join data directories into one.

    A file that some of them lack is completed where a default is known (utt2spk,
    utt2audio, utt2task, segments), else left out with a note.

    Args:
        target: data directory to make.
        sources: data directories; their ids must not overlap.

    Returns:
        Report with the number of samples and the files left out.

    Raises:
        DataDirError: fewer than two directories, or an id is in several of them.
    """
    target, sources = Path(target), [Path(source) for source in sources]
    if len(sources) < 2:
        raise DataDirError(f"expected two or more directories, found {len(sources)}.")
    report = Report(str(target))
    owner: dict[str, Path] = {}
    for source in sources:
        for key in sample_ids(source):
            if key in owner:
                raise DataDirError(
                    f"the id {key!r} is in {owner[key]} and in {source}; expected"
                    " different ids. Give one of them a prefix, or combine only one."
                )
            owner[key] = source
    report.rows = report.kept = len(owner)
    per_source = {source: sample_files(source) for source in sources}
    cut = any("segments" in names for names in per_source.values())
    every = sorted({name for names in per_source.values() for name in names})
    if cut and "wav.scp" in every:
        every.remove("wav.scp")
    for name in every:
        lacking = [source for source in sources if name not in per_source[source]]
        if lacking and name not in DEFAULTS and name != "segments":
            report.notes[f"{name} left out"] = f"{', '.join(map(str, lacking))} lack it"
            continue
        with SortedWriter(target / name) as out:
            for source in sources:
                if source not in lacking:
                    pairs = read_pairs(source / name)
                elif name == "segments":
                    pairs = ((key, f"{key} 0 -1") for key in sample_ids(source))
                else:
                    make = DEFAULTS[name]
                    pairs = ((key, make(key)) for key in sample_ids(source))
                for key, value in pairs:
                    out.add(f"{key} {value}")
    if cut:
        recordings: dict[str, str] = {}
        for source in sources:
            for key, value in read_pairs(source / "wav.scp"):
                if recordings.setdefault(key, value) != value:
                    raise DataDirError(
                        f"the recording {key!r} is {recordings[key]!r} in one directory"
                        f" and {value!r} in {source}. Rename it in one of them."
                    )
        with SortedWriter(target / "wav.scp") as out:
            for key, value in recordings.items():
                out.add(f"{key} {value}")
    if not (target / "utt2spk").is_file():
        with SortedWriter(target / "utt2spk") as out:
            for key in owner:
                out.add(f"{key} {key}")
    write_speakers(target)
    write_categories(target)
    if all((source / "references").is_file() for source in sources):
        with SortedWriter(target / "references", unique=True) as out:
            for source in sources:
                for key, value in read_pairs(source / "references"):
                    out.add(f"{key} {value}")
    for name in ("labels", "answers"):
        if all((source / name).is_file() for source in sources):
            lines: dict[str, None] = {}
            for source in sources:
                lines.update(dict.fromkeys(read_lines(source / name)))
            write_atomically(target / name, lines)
    descriptions = [read_set(source) for source in sources]
    write_set(
        target,
        corpus="+".join(
            dict.fromkeys(d["corpus"] for d in descriptions if d["corpus"])
        ),
        split=descriptions[0]["split"],
        tasks=[t for t in TASKS if all(t in d["tasks"] for d in descriptions)],
        zero_shot=all(d["zero_shot"] for d in descriptions),
    )
    report.write(target / "report.json")
    return report


def subset(
    source: Path,
    target: Path,
    count: int | None = None,
    ids: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    seed: int | None = None,
) -> Report:
    """Take a part of a data directory; samples of one clip stay together.

    Args:
        source: data directory.
        target: data directory to make.
        count: number of clips to take: the first, or with `seed` random ones.
        ids: samples or clips to take.
        exclude: samples or clips to leave out.
        seed: for a random choice of `count` clips.

    Returns:
        Report.

    Raises:
        DataDirError: nothing is left, an id is unknown, or count exceeds the clips.
    """
    samples = sample_ids(source)
    clip = clip_of(source)
    report = Report(str(target), rows=len(samples))
    clips = dict.fromkeys(clip.get(sample, sample) for sample in samples)
    known = set(samples) | set(clips)
    chosen = set(known)
    if ids is not None:
        chosen = set(ids)
        if chosen - known:
            raise DataDirError(
                f"{source} has no sample or clip {_some(chosen - known)}; it has"
                f" {len(samples)} samples, {_some(samples[:EXAMPLES])} among them."
            )
    left_out = set(exclude or ())
    kept = [
        sample
        for sample in samples
        if (sample in chosen or clip.get(sample, sample) in chosen)
        and sample not in left_out
        and clip.get(sample, sample) not in left_out
    ]
    if count is not None:
        wanted = list(dict.fromkeys(clip.get(sample, sample) for sample in kept))
        if not 0 < count <= len(wanted):
            raise DataDirError(f"{source}: asked for {count} of {len(wanted)} clips.")
        if seed is not None:
            random.Random(seed).shuffle(wanted)
        first = set(wanted[:count])
        kept = [sample for sample in kept if clip.get(sample, sample) in first]
    if not kept:
        raise DataDirError(f"{source}: no sample is left of {len(samples)}.")
    rewrite(source, target, set(kept))
    report.kept = len(kept)
    if (Path(target) / "set.json").is_file():
        write_set(target)
    return report


def split(source: Path, target: Path, parts: int) -> list[Path]:
    """Cut a directory into near-equal parts `target/1`, `target/2`, ...

    Samples of one clip stay together, in the directory's order.

    Args:
        source: data directory.
        target: folder of the parts.
        parts: how many.

    Returns:
        The parts.

    Raises:
        DataDirError: there are fewer clips than parts.
    """
    clip = clip_of(source)
    groups: dict[str, list[str]] = {}
    for sample in sample_ids(source):
        groups.setdefault(clip.get(sample, sample), []).append(sample)
    if not 1 <= parts <= len(groups):
        raise DataDirError(
            f"{source}: cannot cut {len(groups)} clips into {parts} parts; ask for"
            f" 1 to {len(groups)}."
        )
    members = list(groups.values())
    made = []
    for part in range(parts):
        first = len(members) * part // parts
        last = len(members) * (part + 1) // parts
        chosen = {sample for group in members[first:last] for sample in group}
        made.append(Path(target) / str(part + 1))
        rewrite(source, made[-1], chosen)
    return made
