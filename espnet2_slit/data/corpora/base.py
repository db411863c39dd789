"""What all corpus readers share: a sample, a plan, a report, and how sets are built.

A reader yields `Sample`s as the publisher lists them; everything else (resolving file
names, probing, ids, duplicates, references, the report) happens here, once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from espnet2_slit.common.names import SAMPLE_TASKS
from espnet2_slit.common.templates import choice_question
from espnet2_slit.data.corpora.audio_index import AudioIndex, Prober, strip_suffix
from espnet2_slit.data.corpora.fetch import Mirror
from espnet2_slit.data.corpora.tables import CorpusError, clean
from espnet2_slit.data.writer import SetWriter

BATCH = 4096  # rows resolved and probed together; bounds what is held in memory
CAPTION, QUESTION, CLASS = SAMPLE_TASKS


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
        fold: published fold of the clip, where accuracy is a mean over folds.
        category: of the sample, where its publisher scores by category.
        choices: answers to choose from.
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
    fold: str = ""
    category: str = ""
    choices: tuple[str, ...] = ()


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

    def __post_init__(self) -> None:
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


def role(split: str, evaluation: bool) -> str:
    """What a split is for: train, valid or test, whatever its publisher calls it."""
    if evaluation:
        return "test"
    return "valid" if split in ("val", "valid", "validation", "dev") else "train"


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
        with SetWriter(folder) as files, self._prober() as prober:
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

    def _prober(self) -> Prober:
        return Prober(self.limits.jobs, self.limits.probe)

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
        for (sample, path), facts in zip(new.values(), probed, strict=True):
            self._judge(self._clips[sample.clip], sample, path, facts)

    def _judge(self, clip: _Clip, sample: Sample, path: str, facts: Any) -> None:
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

    def _take(self, sample: Sample, files: SetWriter) -> None:
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
        question, choices = clean(sample.instruction), sample.choices
        if choices and not self.plan.evaluation:  # decoding shows them itself
            question, choices = choice_question(question, choices), ()
        category = clean(sample.category).replace(" ", "_")
        files.add(
            utterance,
            clip.id,
            clip.path,
            text,
            sample.task,
            category or self.plan.category or self.plan.corpus,
            source=sample.source,
            instruction=question,
            segment=(clip.id, clip.start, clip.end) if clip.cut else None,
            name=sample.clip,
            fold=sample.fold,
            choices=choices,
        )

    def _one_line_a_clip(self, sample: Sample) -> bool:
        """Labels have all of a clip in one row; captions to score are `references`."""
        return sample.task == CLASS or (self.plan.evaluation and sample.task == CAPTION)

    def _is_new(self, *words: str) -> bool:
        digest = hashlib.blake2b("\0".join(words).encode(), digest_size=8).digest()
        if digest in self._seen:
            return False
        self._seen.add(digest)
        return True

    def _count(self, files: SetWriter) -> None:
        plan, report = self.plan, self.report
        rows = sum(clip.rows for clip in self._clips.values())
        report.rows = plan.tally.pop("rows", 0) or rows
        report.clips = len(self._clips)
        report.left_out = dict(plan.tally)
        report.sample_rates, report.channels = dict(self._rates), dict(self._channels)
        report.kept_clips, report.kept_samples = len(files.clips), files.samples

    def _describe(self, files: SetWriter) -> None:
        plan, report = self.plan, self.report
        kept = f"{report.kept_clips} of {report.clips} published clips"
        facts = json.dumps(asdict(report), indent=2, ensure_ascii=False)
        for name, content in (("txt", report.text()), ("json", facts)):
            files.write(f"corpus_report.{name}", [content.rstrip("\n")])
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
                f"; {self.audio.videos:,} video files, which are read where ffmpeg or "
                "PyAV is installed, or extract their sound: ffmpeg -i x.mp4 x.wav"
            )
        wanted = report.examples.get("missing", ["(nothing)"])
        return (
            f"{self.plan.name}: no usable clip. The corpus names {report.clips:,} "
            f"clips, for example {', '.join(map(repr, wanted[:3]))}; "
            f"looked below {', '.join(report.looked_in)}: {index}. Give the folder "
            f"that holds the audio with --audio_dir.\n{report.text()}"
        )


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
        mirror: where its archives can be fetched with published checksums, if anywhere.
    """

    name = ""
    splits: tuple[str, ...] = ()
    default_splits: tuple[str, ...] = ()
    evaluation_splits: tuple[str, ...] = ("test",)
    train_splits: tuple[str, ...] = ("train",)
    audio_folders: tuple[str, ...] = ()
    loose_names = False
    strict_hint = False
    mirror: Mirror | None = None

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

    @staticmethod
    def below(file: str) -> tuple[str, ...]:
        """Globs for a file in the root and three folders deep; links are followed."""
        return tuple(f"{'*/' * depth}{file}" for depth in range(4))

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
            f"{self.name}: expected {' or '.join(patterns)} below {self.root}; "
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
