"""Checks a data directory: every file, and their agreement."""

from __future__ import annotations

from pathlib import Path

from espnet2_slit.common.names import SAMPLE_TASKS
from espnet2_slit.data.choices import read_choices
from espnet2_slit.data.clips import parse_segment
from espnet2_slit.data.kaldi_dir import (
    EXAMPLES,
    SEPARATOR,
    DataDirError,
    asks_questions,
    check_id,
    clip_of,
    every_line,
    listing,
    read_pairs,
    read_set,
    sample_files,
    some_ids,
)


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
        parts = SEPARATOR.split(text.strip(" \t"), maxsplit=1)
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
        parts.append(f"lacks {len(lacking)} ids of {source} ({some_ids(lacking)})")
    if extra:
        parts.append(f"has {len(extra)} ids that {source} lacks ({some_ids(extra)})")
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
            f"{directory}: expected wav.scp (or feats.scp); found {listing(directory)}"
        )
    if require_text and "text" not in names:
        problems.add("text", f"no such file; found {listing(directory)}")
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
        try:
            recording = parse_segment(value).recording
        except ValueError as error:
            problems.add("segments", f"{key!r} {error}")
            continue
        if recording not in recordings:
            unknown.add(recording)
    if unknown:
        problems.add(
            "segments", f"names recordings wav.scp lacks ({some_ids(unknown)})"
        )


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
        problems.add("spk2utt", f"is not the inverse of utt2spk ({some_ids(wrong)})")


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
                "utt2task",
                f"expected {', '.join(SAMPLE_TASKS)}; found {some_ids(wrong)}",
            )
    clips = set(clip_of(directory).values()) or ids
    broken = {clip for clip in clips if check_id(clip) or " " in clip}
    if broken:
        problems.add(
            "utt2audio", f"clip ids must be one word, found {some_ids(broken)}"
        )
    references = directory / "references"
    if references.is_file():
        found = _check_lines(references, problems, repeat=True)
        if asks_questions(directory):
            _check_same("references", found, ids, "the sample ids", problems)
        else:
            _check_same("references", found, clips, "the clip ids", problems)
    try:
        read_choices(directory, ids)
    except DataDirError as error:
        problems.add("choices", str(error).removeprefix(f"{directory}/choices: "))
    labels = None
    for name in ("labels", "answers"):
        if (directory / name).is_file():
            lines = every_line(directory / name)
            labels = set(lines) if name == "labels" else labels
            if not lines or not all(line.strip() for line in lines):
                problems.add(name, "is empty or has empty lines, expected one a line")
            elif len(set(lines)) < len(lines):
                twice = {line for line in lines if lines.count(line) > 1}
                problems.add(name, f"has lines twice ({some_ids(twice)})")
    tasks = description.get("tasks", [])
    needs = {
        "caption": "references",
        "retrieval": "references",
        "question_answering": "instruction",
        "moments": "moments",
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
            problems.add(
                "text", f"has labels that `labels` lacks ({some_ids(unknown)})"
            )
