"""What all corpus readers share: find the audio, check it, write data directories.

A reader yields `Sample`s as the publisher lists them; everything else (resolving file
names, probing, ids, duplicates, references, the report) happens here, once.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from espnet2_slit import data_dir

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au")
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".m4a", ".aac")  # libsndfile reads none
BATCH = 4096  # rows resolved and probed together; bounds what is held in memory
CAPTION, QUESTION, CLASS = "caption", "question_answering", "classification"


class CorpusError(RuntimeError):
    """The corpus on disk is not what its publisher ships; the message says where."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One annotation of one clip, as published.

    Args:
        clip: the publisher's name of the clip; samples with one name share a clip.
        audio: names the file may have, best first: "x.wav", "x" or "fold1/x.wav".
        text: caption, answer or label.
        task: caption, question_answering or classification.
        instruction: the question, if there is one.
        source: where the recording comes from, "youtube:<id>" or "freesound:<id>".
        seconds: (start, end) inside the file, None for all of it.
        duration: published length in seconds, used where files are not probed.
        labels: all labels of a multi-label clip; `text` joins them.
    """

    clip: str
    audio: tuple[str, ...]
    text: str
    task: str = CAPTION
    instruction: str = ""
    source: str = ""
    seconds: tuple[float, float] | None = None
    duration: float | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What to accept as audio, and how to find out.

    Args:
        min_duration: shorter clips are left out, seconds.
        max_duration: longer clips are treated as `long` says, seconds; 0: no limit.
        long: "keep", "crop" (the first max_duration seconds) or "drop".
        probe: open each file's header; without it only its size is looked at.
        jobs: processes that probe.
    """

    min_duration: float = 0.1
    max_duration: float = 0.0
    long: str = "keep"
    probe: bool = True
    jobs: int = 4

    def __post_init__(self):
        if self.long not in ("keep", "crop", "drop"):
            raise ValueError(f"long: expected keep, crop or drop, found {self.long!r}")


@dataclass
class SetPlan:
    """One data directory to make.

    Args:
        name: directory name.
        corpus, split, variant: written to set.json and printed with every score.
        samples: the rows, in the publisher's order; read once.
        evaluation: one line per clip (or question) and `references`, instead of one
            line per annotation.
        tasks: what the set can be scored on.
        namespace: prefix of clip ids; corpora that annotate the same audio share it.
        labels: candidate labels of a classification set.
        answers: candidate answers of a question set.
        category: for balanced sampling.
        zero_shot: the set is not trained on (the leakage check verifies the claim).
        notes: anything a reader of the scores must know.
        tally: counted by the reader while it reads ("rows" and reasons to leave out).
    """

    name: str
    corpus: str
    split: str
    samples: Iterable[Sample]
    variant: str = ""
    evaluation: bool = False
    tasks: tuple[str, ...] = ()
    namespace: str = ""
    labels: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    category: str = ""
    zero_shot: bool = False
    notes: str = ""
    tally: Counter = field(default_factory=Counter)


@dataclass
class Report:
    """What was read, what was found and what became of it."""

    name: str
    rows: int = 0
    clips: int = 0
    found: int = 0
    missing: int = 0
    unreadable: int = 0
    too_short: int = 0
    too_long: int = 0
    cropped: int = 0
    duplicates: int = 0
    empty_text: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    kept_clips: int = 0
    kept_samples: int = 0
    hours: float = 0.0
    sample_rates: dict[str, int] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    looked_in: list[str] = field(default_factory=list)

    def note(self, what: str, example: str) -> None:
        """Remembers the first ten examples of each kind of loss."""
        shown = self.examples.setdefault(what, [])
        if len(shown) < 10:
            shown.append(example)

    def text(self) -> str:
        """The report for people: one count a line, examples below."""
        counts = [
            ("rows read", self.rows),
            ("clips named", self.clips),
            ("clips found", self.found),
            ("missing", self.missing),
            ("unreadable", self.unreadable),
            ("too short", self.too_short),
            ("too long", self.too_long),
            ("cropped", self.cropped),
            ("duplicate samples", self.duplicates),
            ("empty text", self.empty_text),
            *((f"left out: {why}", n) for why, n in sorted(self.left_out.items())),
            ("clips kept", self.kept_clips),
            ("samples kept", self.kept_samples),
        ]
        lines = [f"{self.name}"]
        lines += [f"  {name:<28}{count:>10,}" for name, count in counts]
        if self.hours:
            lines.append(f"  {'hours kept':<28}{self.hours:>10,.2f}")
        for name, found in (("rates", self.sample_rates), ("channels", self.channels)):
            if found:
                shown = ", ".join(f"{k}: {n:,}" for k, n in sorted(found.items()))
                lines.append(f"  {name:<28}{shown}")
        for what, names in sorted(self.examples.items()):
            lines.append(f"  {what}, for example: {', '.join(map(repr, names[:3]))}")
        return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------- text and ids


def clean(text: str) -> str:
    """One line: control characters gone, runs of blanks are one, ends trimmed."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()  # almost every row, and ten times faster
    text = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    return " ".join(text.replace("\ufeff", "").split())


def spell(label: str) -> str:
    """A label as words: `crackling_fire` -> `crackling fire`."""
    return clean(label.replace("_", " "))


_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def safe_id(namespace: str, name: str) -> str:
    """An id without blanks, quotes, commas or accents, different for different names.

    A name that had to change gets six hex digits of its hash, so that "a b.wav" and
    "a_b.wav" stay two clips.
    """
    stem = strip_suffix(name)
    safe = _UNSAFE.sub("_", stem)
    if safe != stem:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=3)
        safe = f"{safe[:80]}_{digest.hexdigest()}"
    return f"{namespace}_{safe}"


def strip_suffix(name: str) -> str:
    """The name without an audio or video suffix; other dots belong to the name."""
    stem, suffix = os.path.splitext(name)
    known = suffix.lower() in AUDIO_SUFFIXES or suffix.lower() in VIDEO_SUFFIXES
    return stem if known else name


# -------------------------------------------------------------------- reading tables


def encoding_of(path: Path) -> str:
    """utf-8-sig where the whole file decodes, else iso-8859-1 (older metadata)."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open(path, "rb") as source:
            while block := source.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        logging.info("%s is not UTF-8, read as ISO-8859-1", path)
        return "iso-8859-1"
    return "utf-8-sig"


def read_table(
    path: Path,
    columns: tuple[str, ...],
    header: bool = True,
    delimiter: str = ",",
    tally: Counter | None = None,
) -> Iterator[dict[str, str]]:
    """Rows of a CSV file as dicts, streamed.

    Args:
        path: the file.
        columns: with a header: names it must have; without: names of the columns.
        header: whether the first line names the columns.
        delimiter: "," or tab.
        tally: its "rows" is counted up.

    Yields:
        One dict a row; rows shorter than the table are an error.

    Raises:
        CorpusError: a column is missing or a row is short; names file and line.
    """
    with open(path, encoding=encoding_of(path), newline="") as source:
        rows = csv.reader(source, delimiter=delimiter, skipinitialspace=True)
        names = [n.strip() for n in next(rows, [])] if header else list(columns)
        absent = [c for c in columns if c not in names]
        if absent:
            raise CorpusError(
                f"{path}: expected the columns {', '.join(columns)}; "
                f"found {', '.join(names) or 'an empty file'}."
            )
        for row in rows:
            if not row:
                continue
            if len(row) < len(columns):
                raise CorpusError(
                    f"{path} line {rows.line_num}: expected {len(names)} columns, "
                    f"found {len(row)}: {row}"
                )
            if tally is not None:
                tally["rows"] += 1
            yield dict(zip(names, row))


def read_json_items(
    path: Path, key: str | None = None
) -> Iterator[tuple[str, dict]]:
    """Members of a large JSON array or object, one at a time, in bounded memory.

    Args:
        path: the file.
        key: where the array is, `{"data": [...]}` -> "data"; None: the file is one
            object whose members are wanted.

    Yields:
        (member name, value); the name is "" in an array.

    Raises:
        CorpusError: the file is a Git LFS pointer or not such JSON.
    """
    decode = json.JSONDecoder().raw_decode
    with open(path, encoding="utf-8-sig") as source:
        buffer = source.read(1 << 20)
        if buffer.startswith("version https://git-lfs"):
            raise CorpusError(
                f"{path} is a Git LFS pointer, not the data. Fetch it with `git lfs "
                "pull`, or take the JSON file from the publisher's archive."
            )
        opener = re.compile(r"\s*\{" if key is None else rf'"{key}"\s*:\s*\[')
        start = opener.search(buffer)
        if start is None:
            raise CorpusError(f"{path}: expected {opener.pattern!r} near the start.")
        buffer, at, done = buffer[start.end() :], 0, False
        while not done:
            at = _skip(buffer, at)
            name, next_at = "", at
            try:
                if buffer[at : at + 1] in ("]", "}"):
                    return
                if key is None:
                    name, next_at = decode(buffer, at)
                    next_at = _skip(buffer, next_at, ":")
                value, next_at = decode(buffer, next_at)
            except (json.JSONDecodeError, IndexError):
                block = source.read(1 << 20)
                if not block:
                    raise CorpusError(
                        f"{path}: the JSON ends in the middle of a record "
                        f"({buffer[at : at + 80]!r}...); is the download complete?"
                    ) from None
                buffer, at = buffer[at:] + block, 0
                continue
            at = next_at
            yield name, value


def _skip(buffer: str, at: int, also: str = ",") -> int:
    """The next position that is neither blank nor the given separator."""
    while at < len(buffer) and (buffer[at].isspace() or buffer[at] == also):
        at += 1
    return at


# ------------------------------------------------------------------- finding the audio


class AudioIndex:
    """Every audio file below some folders, found by name whatever its suffix.

    One walk instead of one `stat` per guess: file servers like that better.

    Args:
        folders: where to look, recursively, links followed.
        hint: keep only paths that contain one of these words (any case).
        root: the part of paths that the hint does not look at.
        loose: also match names that differ in case, blanks and punctuation. Not for
            YouTube ids, where case and "-" matter.
    """

    def __init__(
        self,
        folders: Iterable[Path],
        hint: tuple[str, ...] = (),
        root: Path | None = None,
        loose: bool = False,
    ):
        self.folders = [Path(f) for f in folders]
        self.hint = hint
        self.videos = 0
        self._root = f"{os.path.abspath(root)}/" if root else ""
        self._paths: dict[str, str | list[str]] = {}
        self._loose: dict[str, str] | None = {} if loose else None
        self.size = 0
        for folder in self.folders:
            self._walk(folder)

    def _walk(self, folder: Path) -> None:
        seen = set()
        for where, inside, files in os.walk(folder, followlinks=True):
            real = os.path.realpath(where)
            if real in seen:  # a link back up the tree
                inside.clear()
                continue
            seen.add(real)
            inside.sort()
            shown = f"{os.path.abspath(where)}/".removeprefix(self._root).lower()
            if self.hint and not any(word in shown for word in self.hint):
                continue
            for name in sorted(files):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in AUDIO_SUFFIXES:
                    self._add(stem, os.path.join(where, name))
                elif suffix.lower() in VIDEO_SUFFIXES:
                    self.videos += 1

    def _add(self, stem: str, path: str) -> None:
        self.size += 1
        stem = unicodedata.normalize("NFC", stem)
        before = self._paths.get(stem)
        if before is None:
            self._paths[stem] = path
        elif isinstance(before, list):
            before.append(path)
        else:
            self._paths[stem] = [before, path]
        if self._loose is not None:
            key = _loosely(stem)
            # "" marks a loose name two files share: then neither may be guessed
            same = self._loose.get(key, stem) == stem
            self._loose[key] = stem if same else ""

    def find(self, names: Iterable[str]) -> str | None:
        """The path of the first name that exists, or None."""
        for name in names:
            folder, _, base = name.rpartition("/")
            stem = unicodedata.normalize("NFC", strip_suffix(base))
            found = self._paths.get(stem)
            if found is None and self._loose is not None:
                found = self._paths.get(self._loose.get(_loosely(stem), ""))
            if found is None:
                continue
            paths = [found] if isinstance(found, str) else found
            if folder:
                end = f"/{folder}"
                paths = [p for p in paths if os.path.dirname(p).endswith(end)]
            if paths:
                wanted = os.path.splitext(base)[1].lower()
                return min(paths, key=lambda p: _preference(p, wanted))
        return None

    def examples(self) -> list[str]:
        """A few file names, for messages."""
        first = itertools.islice(self._paths.values(), 3)
        return [os.path.basename(p if isinstance(p, str) else p[0]) for p in first]


def _loosely(stem: str) -> str:
    folded = unicodedata.normalize("NFKC", stem).casefold()
    return re.sub(r"[\W_]+", "_", folded).strip("_")


def _preference(path: str, wanted: str) -> tuple[bool, int, str]:
    suffix = os.path.splitext(path)[1].lower()
    return (suffix != wanted, AUDIO_SUFFIXES.index(suffix), path)


def probe(path: str) -> tuple[float, int, int] | str:
    """(seconds, sample rate, channels) of an audio file, or why it can't be read."""
    import soundfile

    try:
        if os.path.getsize(path) == 0:
            return "0 bytes"
        info = soundfile.info(path)
    except (RuntimeError, OSError) as problem:  # LibsndfileError is a RuntimeError
        return str(problem).replace(path, "").strip(" :'\n") or "not readable"
    return info.frames / info.samplerate, info.samplerate, info.channels


def size_only(path: str) -> tuple[float, int, int] | str:
    """The part of `probe` that costs one `stat`; length, rate and channels unknown."""
    try:
        return (0.0, 0, 0) if os.path.getsize(path) else "0 bytes"
    except OSError as problem:
        return problem.strerror or "not readable"


class Prober:
    """Probes paths in a pool of processes; alone while there are few.

    Args:
        limits: jobs and whether headers are read at all.
    """

    FEW = 512

    def __init__(self, limits: Limits):
        self._limits = limits
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Prober":
        return self

    def __exit__(self, *_) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def __call__(self, paths: list[str]) -> list[tuple[float, int, int] | str]:
        if not self._limits.probe:
            return [size_only(p) for p in paths]
        if self._limits.jobs <= 1 or len(paths) < self.FEW:
            return [probe(p) for p in paths]
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._limits.jobs)
        return list(self._pool.map(probe, paths, chunksize=128))


# ------------------------------------------------------------------------ writing sets


class SetFiles:
    """The files of one data directory while they are written; set.json comes last.

    Use as a context manager: when the block fails, nothing is left of the set.

    Args:
        folder: the directory; what an earlier run left in it is removed.
    """

    NAMES = "wav.scp text utt2spk instruction utt2audio utt2task utt2category"
    NAMES += " utt2source clip2name references .recordings .segments"
    OTHERS = "segments spk2utt labels answers set.json category2utt"

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.samples = 0
        self.tasks: set[str] = set()
        self.clips: set[str] = set()
        self._recordings: set[str] = set()
        self._cut = self._shared = self._sources = False

    def __enter__(self) -> "SetFiles":
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in (self.NAMES + " " + self.OTHERS).split():
            (self.folder / old).unlink(missing_ok=True)
        self._stack = contextlib.ExitStack()
        self._files = {
            name: self._stack.enter_context(data_dir.SortedWriter(self.folder / name))
            for name in self.NAMES.split()
        }
        return self

    def __exit__(self, *failure) -> None:
        self._stack.__exit__(*failure)
        if failure[0] is None:
            self._arrange()

    def add(
        self,
        utterance: str,
        clip: str,
        path: str,
        text: str,
        task: str,
        category: str,
        source: str = "",
        instruction: str = "",
        segment: tuple[str, float, float] | None = None,
        name: str = "",
    ) -> None:
        """Adds one sample.

        Args:
            utterance: sample id.
            clip: clip id.
            path: the audio.
            text: caption, answer or label.
            task: caption, question_answering or classification.
            category: for balanced sampling.
            source: of the recording; the clip id stands in for an unknown one.
            instruction: or question.
            segment: (recording id, start, end) in seconds, end -1: to the end of the
                file; None: all of it.
            name: the publisher's name of the clip.
        """
        files = self._files
        self._cut |= segment is not None
        recording, start, end = segment or (clip, 0, -1)
        if recording not in self._recordings:
            self._recordings.add(recording)
            files[".recordings"].add(f"{recording} {path}")
        place = f"{recording} {_seconds(start)} {_seconds(end)}"
        files[".segments"].add(f"{utterance} {place}")
        files["wav.scp"].add(f"{utterance} {path}")
        files["text"].add(f"{utterance} {text}")
        files["utt2spk"].add(f"{utterance} {utterance}")
        files["utt2audio"].add(f"{utterance} {clip}")
        files["utt2task"].add(f"{utterance} {task}")
        files["utt2category"].add(f"{utterance} {category}")
        files["utt2source"].add(f"{utterance} {source or clip}")
        if instruction:
            files["instruction"].add(f"{utterance} {instruction}")
        if clip not in self.clips:
            self.clips.add(clip)
            if name:
                files["clip2name"].add(f"{clip} {name}")
        self._shared |= utterance != clip
        self._sources |= bool(source)
        self.tasks.add(task)
        self.samples += 1

    def reference(self, clip: str, text: str) -> None:
        """Adds one reference caption, or one label of several."""
        self._files["references"].add(f"{clip} {text}")

    def _arrange(self) -> None:
        folder = self.folder
        if self._cut:  # wav.scp names recordings, segments the samples
            (folder / ".recordings").replace(folder / "wav.scp")
            (folder / ".segments").replace(folder / "segments")
        else:
            (folder / ".recordings").unlink()
            (folder / ".segments").unlink()
        if not self._shared:
            (folder / "utt2audio").unlink()
        if not self._sources:
            (folder / "utt2source").unlink()
        for name in ("instruction", "clip2name", "references"):
            if not self._files[name].count:
                (folder / name).unlink()
        # every sample is its own speaker, so that the two orders agree
        shutil.copyfile(folder / "utt2spk", folder / "spk2utt")

    def describe(
        self, labels: Iterable[str] = (), answers: Iterable[str] = (), **facts
    ) -> None:
        """Writes candidate labels, answers and, last of all, set.json."""
        for name, words in (("labels", labels), ("answers", answers)):
            if words:
                data_dir.write_atomically(self.folder / name, words)
        data_dir.write_set(self.folder, **facts)


def role(split: str, evaluation: bool) -> str:
    """What a split is for: train, valid or test, whatever its publisher calls it."""
    if split in ("val", "valid", "validation"):
        return "valid"
    return "test" if evaluation else "train"


def _seconds(value: float) -> str:
    """Milliseconds are kept, zeros are not: 30.0 -> "30"."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


@dataclass(slots=True)
class _Clip:
    """What is remembered of a clip while its set is read."""

    id: str
    path: str = ""  # empty: left out
    start: float = 0.0
    end: float = -1.0  # to the end of the file
    cut: bool = False
    rows: int = 0
    written: bool = False


class SetBuilder:
    """Turns the samples of a plan into a data directory.

    Args:
        plan: what to make.
        audio: where the clips are.
        limits: what to accept.
    """

    def __init__(self, plan: SetPlan, audio: AudioIndex, limits: Limits):
        self.plan, self.audio, self.limits = plan, audio, limits
        only = f" (paths with {' or '.join(audio.hint)})" if audio.hint else ""
        self.report = Report(
            plan.name, looked_in=[f"{folder}{only}" for folder in audio.folders]
        )
        self._clips: dict[str, _Clip] = {}
        self._seen: set[bytes] = set()  # hashes of (clip, instruction, text)
        self._rates, self._channels = Counter(), Counter()

    def build(self, out: Path) -> Report:
        """Writes `out/<plan.name>` and returns the report.

        Raises:
            CorpusError: no clip was found, or none was usable.
        """
        folder = Path(out) / self.plan.name
        with SetFiles(folder) as files, Prober(self.limits) as prober:
            rows = iter(self.plan.samples)
            while batch := list(itertools.islice(rows, BATCH)):
                self._look_up(batch, prober)
                for sample in batch:
                    self._take(sample, files)
            self._count(files)
            if not files.samples:
                raise CorpusError(self._nothing())
        self._describe(files)
        return self.report

    def _look_up(self, batch: list[Sample], prober: Prober) -> None:
        """Resolves and probes the clips of a batch that were not met before."""
        namespace = self.plan.namespace or self.plan.corpus
        new: dict[str, tuple[Sample, str]] = {}
        for sample in batch:
            if sample.clip in self._clips:
                continue
            self._clips[sample.clip] = _Clip(safe_id(namespace, sample.clip))
            path = self.audio.find(sample.audio)
            if path is None:
                self.report.missing += 1
                self.report.note("missing", sample.audio[0])
            else:
                new[sample.clip] = (sample, path)
        self.report.found += len(new)
        probed = prober([path for _, path in new.values()])
        for (sample, path), facts in zip(new.values(), probed):
            self._judge(self._clips[sample.clip], sample, path, facts)

    def _judge(self, clip: _Clip, sample: Sample, path: str, facts) -> None:
        """Accepts, crops or leaves out one clip; counts which."""
        report, limits = self.report, self.limits
        if isinstance(facts, str):
            report.unreadable += 1
            report.note("unreadable", f"{path} ({facts})")
            return
        length, rate, channels = facts
        if not limits.probe:
            length = sample.duration or float("nan")  # comparisons with nan are False
        if sample.seconds is not None:
            start, end = sample.seconds
            end = length if end > length else end
            clip.start, clip.end, clip.cut = start, end, True
            length = end - start
        if length < limits.min_duration:
            report.too_short += 1
            report.note("too short", f"{path} ({length:.3f} s)")
            return
        if limits.max_duration and length > limits.max_duration:
            if limits.long == "drop":
                report.too_long += 1
                report.note("too long", f"{path} ({length:.1f} s)")
                return
            if limits.long == "crop":
                report.cropped += 1
                length = limits.max_duration
                clip.end, clip.cut = clip.start + length, True
        clip.path = os.path.abspath(path)
        if length == length:
            report.hours += length / 3600
        if rate:
            self._rates[str(rate)] += 1
            self._channels[str(channels)] += 1

    def _take(self, sample: Sample, files: SetFiles) -> None:
        """Writes one sample, unless its clip is left out or it says nothing new."""
        clip = self._clips[sample.clip]
        number = clip.rows  # counts every row, so ids do not depend on what is kept
        clip.rows += 1
        if not clip.path:
            return
        text = clean(sample.text)
        if not text:
            self.report.empty_text += 1
            return
        is_new = self._is_new(clip.id, sample.instruction, text)
        self.report.duplicates += not is_new
        if self.plan.evaluation and sample.task == CAPTION:
            # published references all count, also when two people wrote the same
            files.reference(clip.id, text)
        if not is_new or (clip.written and self._one_line_a_clip(sample)):
            return
        if self.plan.evaluation:
            for label in sample.labels:
                files.reference(clip.id, label)
        utterance = clip.id
        if not self._one_line_a_clip(sample):
            utterance = f"{safe_id(self.plan.corpus, sample.clip)}-{number:02d}"
        clip.written = True
        files.add(
            utterance,
            clip.id,
            clip.path,
            text,
            sample.task,
            self.plan.category or self.plan.corpus,
            source=sample.source,
            instruction=clean(sample.instruction),
            segment=(clip.id, clip.start, clip.end) if clip.cut else None,
            name=sample.clip,
        )

    def _one_line_a_clip(self, sample: Sample) -> bool:
        """Labels have all of a clip in one row; captions to score are `references`."""
        return sample.task == CLASS or (
            self.plan.evaluation and sample.task == CAPTION
        )

    def _is_new(self, *words: str) -> bool:
        digest = hashlib.blake2b("\0".join(words).encode(), digest_size=8).digest()
        if digest in self._seen:
            return False
        self._seen.add(digest)
        return True

    def _count(self, files: SetFiles) -> None:
        plan, report = self.plan, self.report
        rows = sum(clip.rows for clip in self._clips.values())
        report.rows = plan.tally.pop("rows", 0) or rows
        report.clips = len(self._clips)
        report.left_out = dict(plan.tally)
        report.sample_rates, report.channels = dict(self._rates), dict(self._channels)
        report.kept_clips, report.kept_samples = len(files.clips), files.samples

    def _describe(self, files: SetFiles) -> None:
        plan, report = self.plan, self.report
        kept = f"{report.kept_clips} of {report.clips} published clips"
        facts = json.dumps(asdict(report), indent=2, ensure_ascii=False)
        for name, content in (("txt", report.text()), ("json", facts)):
            data_dir.write_atomically(
                files.folder / f"corpus_report.{name}", content.splitlines()
            )
        scored = (plan.tasks or sorted(files.tasks)) if plan.evaluation else []
        part = role(plan.split, plan.evaluation)
        published = f"{plan.split} split" if plan.split != part else ""
        files.describe(
            plan.labels,
            plan.answers,
            corpus=plan.corpus,
            split=part,
            variant=", ".join(v for v in (published, plan.variant) if v),
            tasks=list(scored),
            zero_shot=plan.zero_shot,
            notes="; ".join(note for note in (plan.notes, kept) if note),
        )

    def _nothing(self) -> str:
        report = self.report
        index = f"{self.audio.size:,} audio files"
        if self.audio.size:
            index += f", for example {', '.join(map(repr, self.audio.examples()))}"
        if self.audio.videos:
            index += (
                f"; {self.audio.videos:,} video files, whose sound must be extracted "
                "first (ffmpeg -i x.mp4 -ac 1 -ar 16000 x.wav)"
            )
        wanted = report.examples.get("missing", ["(nothing)"])
        return (
            f"{self.plan.name}: no usable clip. The corpus names {report.clips:,} "
            f"clips, for example {', '.join(map(repr, wanted[:3]))}; "
            f"looked below {', '.join(report.looked_in)}: {index}. Give the folder "
            f"that holds the audio with --audio_dir.\n{report.text()}"
        )


# ----------------------------------------------------------------------------- readers


class Corpus:
    """One public corpus; a subclass holds only what is peculiar to it.

    Constructor keywords of the subclass are its options (`--test_fold 1`), so they need
    an annotation, a default and a line under Args.

    Class attributes:
        name: command word and id prefix.
        splits: all splits, in the publisher's words; `default_splits` are made unasked.
        evaluation_splits: those written with references instead of one line each.
        train_splits: those that `recipe` trains on.
        audio_folders: usual places of the audio below root, globs; root itself is
            searched when none of them exists.
        loose_names: audio names may differ in blanks and punctuation.
        strict_hint: splits share file names, so that `audio_hint` must hold; else it is
            dropped where no path has it.
    """

    name = ""
    splits: tuple[str, ...] = ()
    default_splits: tuple[str, ...] = ()
    evaluation_splits: tuple[str, ...] = ("test",)
    train_splits: tuple[str, ...] = ("train",)
    audio_folders: tuple[str, ...] = ()
    loose_names = False
    strict_hint = False

    def __init__(self, root: Path):
        self.root = Path(root)
        if not self.root.is_dir():
            raise CorpusError(f"{self.name}: there is no folder {self.root}.")

    def plan(self, split: str, evaluation: bool) -> SetPlan:
        """What to write for a split; its samples are read later, once."""
        raise NotImplementedError

    def audio_hint(self, split: str) -> tuple[str, ...]:
        """Words of which one must be in the path of this split's audio."""
        return ()

    def find(self, *patterns: str) -> Path:
        """The first file below root that fits one of the globs.

        Raises:
            CorpusError: there is none; lists where it looked.
        """
        for pattern in patterns:
            for path in sorted(self.root.glob(pattern)):
                if path.is_file():
                    return path
        raise CorpusError(
            f"{self.name}: expected one of {', '.join(patterns)} below {self.root}; "
            f"found {', '.join(sorted(os.listdir(self.root))[:12]) or 'nothing'}."
        )

    def has(self, *patterns: str) -> bool:
        """Whether `find` would find something."""
        return any(p.is_file() for glob in patterns for p in self.root.glob(glob))


def build_sets(
    corpus: Corpus,
    out: Path,
    splits: Iterable[str] = (),
    audio_dirs: Iterable[Path] = (),
    limits: Limits | None = None,
    names: dict[str, str] | None = None,
    evaluation: bool | None = None,
    zero_shot: bool | None = None,
) -> list[Report]:
    """Makes data directories of a corpus.

    Args:
        corpus: the reader.
        out: parent of the data directories.
        splits: which; none: the corpus' default splits.
        audio_dirs: folders of audio; none: the usual places below the root.
        limits: what audio to accept.
        names: split -> name of its data directory, default `<corpus>_<split>`.
        evaluation: True or False to overrule what the splits are for.
        zero_shot: overrules the plan's claim.

    Returns:
        One report a set.

    Raises:
        CorpusError: an unknown split, or a set without any usable clip.
    """
    splits = tuple(splits) or corpus.default_splits or corpus.splits
    unknown = [s for s in (*splits, *(names or ())) if s not in corpus.splits]
    if unknown:
        raise CorpusError(
            f"{corpus.name}: expected splits from {', '.join(corpus.splits)}; "
            f"found {', '.join(unknown)}."
        )
    folders = [Path(d) for d in audio_dirs] or [
        p for glob in corpus.audio_folders for p in sorted(corpus.root.glob(glob))
    ]
    folders = folders or [corpus.root]
    for folder in folders:
        if not folder.is_dir():
            raise CorpusError(f"{corpus.name}: there is no audio folder {folder}.")
    indexes: dict[tuple[str, ...], AudioIndex] = {}
    reports = []
    for split in splits:
        hint = corpus.audio_hint(split)
        if hint not in indexes:
            index = AudioIndex(folders, hint, corpus.root, corpus.loose_names)
            if not index.size and hint and not corpus.strict_hint:
                index = AudioIndex(folders, (), corpus.root, corpus.loose_names)
            indexes[hint] = index
        form = split in corpus.evaluation_splits if evaluation is None else evaluation
        plan = corpus.plan(split, form)
        plan.evaluation = form
        plan.name = (names or {}).get(split, f"{corpus.name}_{split}")
        if zero_shot is not None:
            plan.zero_shot = zero_shot
        logging.info("%s: reading", plan.name)
        report = SetBuilder(plan, indexes[hint], limits or Limits()).build(Path(out))
        logging.info("%s: %s", plan.name, report.text())
        reports.append(report)
    return reports
