"""Which test clips were trained on: compared by clip, by recording and by file.

Corpora overlap where they took the same recordings from YouTube or Freesound
(AudioCaps and AudioSet; Clotho, ESC-50, FSD50K, UrbanSound8K and WavCaps). `utt2source`
holds "youtube:<id>" or "freesound:<id>", so recordings meet across corpora.
"""

from __future__ import annotations

import bisect
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet2_slit.data import kaldi_dir
from espnet2_slit.data.clips import Clip, read_clips

KINDS = ("clip", "source", "file")
EXAMPLES = 3


@dataclass(frozen=True)
class Overlap:
    """What one training set has in common with one test set.

    Args:
        train, test: the data directories.
        clips: clips of the test set.
        shared: kind -> test clips that the training set has, too: the same "clip" id,
            the same "source" (YouTube or Freesound recording, maybe another part of
            it), or the same "file" (where both cut it, stretches that overlap).
        unknown: training and test samples without a source, which can't be compared.
        zero_shot: the test set claims that it was never trained on.
        examples: kind -> a few of the shared values.
        samples: ids of the training samples concerned.
    """

    train: str
    test: str
    clips: int
    shared: dict[str, int]
    unknown: tuple[int, int]
    zero_shot: bool
    examples: dict[str, list[str]]
    samples: tuple[str, ...]

    def line(self) -> str:
        """One line for people; begins with NOT ZERO-SHOT where the claim is wrong."""
        found = ", ".join(
            f"same {kind} {self.shared[kind]:,} (e.g. {', '.join(self.examples[kind])})"
            for kind in KINDS
            if self.shared[kind]
        )
        line = f"{self.train} and {self.test} ({self.clips:,} clips): "
        line += found or "nothing in common"
        if any(self.unknown):
            line += (
                f"; no source known of {self.unknown[0]:,} training and "
                f"{self.unknown[1]:,} test samples"
            )
        return f"NOT ZERO-SHOT: {line}" if found and self.zero_shot else line


@dataclass(frozen=True, slots=True)
class _Sample:
    """By what a sample can be recognised elsewhere; "" where it is not known."""

    id: str
    clip: str
    source: str
    file: str
    start: float
    end: float


def _samples(folder: Path) -> Iterator[_Sample]:
    """The samples of a data directory, in its order."""
    folder = Path(folder)
    sources = {}
    if (folder / "utt2source").is_file():
        sources = kaldi_dir.read_map(folder / "utt2source")
    if (folder / "wav.scp").is_file():
        samples, clips = read_clips(folder)
    else:  # encoded elsewhere: only ids can be compared
        named = kaldi_dir.clip_of(folder)
        samples = {key: named.get(key, key) for key in kaldi_dir.sample_ids(folder)}
        clips = {name: Clip(name, "") for name in samples.values()}
    files = {clip.path: clip.path and _real(clip.path) for clip in clips.values()}
    for key, name in samples.items():
        clip, source = clips[name], sources.get(key, "")
        yield _Sample(
            key,
            name,
            "" if source == name else source,  # the clip's id stands in for it
            files[clip.path],
            clip.start_s,
            math.inf if clip.end_s is None else clip.end_s,
        )


def _real(path: str) -> str:
    """The file behind links; commands stay as they are."""
    return path if path.endswith("|") else os.path.realpath(path)


class _Stretches:
    """Parts of one file, each with its clip, found by time."""

    def __init__(self) -> None:
        self._parts: set[tuple[float, float, str]] = set()
        self._sorted: list[tuple[float, float, str]] = []
        self._longest = 0.0

    def add(self, start: float, end: float, clip: str) -> None:
        self._parts.add((start, end, clip))
        self._longest = max(self._longest, end - start)

    def clips(self, start: float, end: float) -> set[str]:
        """Clips that overlap a stretch."""
        if len(self._sorted) < len(self._parts):
            self._sorted = sorted(self._parts)
        first = bisect.bisect_left(self._sorted, (start - self._longest,))
        last = bisect.bisect_left(self._sorted, (end,))
        return {clip for _, stop, clip in self._sorted[first:last] if stop > start}


class _TestSet:
    """A test set, indexed by everything its clips can be recognised by."""

    def __init__(self, folder: Path):
        self.name = str(folder)
        self.zero_shot = bool(kaldi_dir.read_set(folder)["zero_shot"])
        self.unknown = 0
        self.clips: dict[str, set[str]] = {}
        self.sources: dict[str, set[str]] = {}
        self.files: dict[str, _Stretches] = {}
        for sample in _samples(folder):
            self.clips.setdefault(sample.clip, {sample.clip})
            if sample.source:
                self.sources.setdefault(sample.source, set()).add(sample.clip)
            self.unknown += not sample.source
            if sample.file:
                stretches = self.files.setdefault(sample.file, _Stretches())
                stretches.add(sample.start, sample.end, sample.clip)

    def shared(self, sample: _Sample) -> Iterator[tuple[str, str, set[str]]]:
        """(kind, value, test clips) of everything a training sample meets."""
        if sample.clip in self.clips:
            yield "clip", sample.clip, self.clips[sample.clip]
        if sample.source in self.sources:
            yield "source", sample.source, self.sources[sample.source]
        if sample.file in self.files:
            clips = self.files[sample.file].clips(sample.start, sample.end)
            if clips:
                yield "file", sample.file, clips


def find_overlaps(train: Iterable[Path], test: Iterable[Path]) -> list[Overlap]:
    """Compares every training set with every test set.

    Args:
        train: data directories that are trained on; read one sample at a time.
        test: data directories to score.

    Returns:
        One entry a pair, also where nothing overlaps.
    """
    tests = [_TestSet(Path(folder)) for folder in test]
    return [row for folder in train for row in _compare(Path(folder), tests)]


def _compare(folder: Path, tests: Sequence[_TestSet]) -> Iterator[Overlap]:
    met = [_Met() for _ in tests]
    unknown = 0
    for sample in _samples(folder):
        unknown += not sample.source
        for test, found in zip(tests, met, strict=True):
            for kind, value, clips in test.shared(sample):
                found.add(sample.id, kind, value, clips)
    for test, found in zip(tests, met, strict=True):
        yield Overlap(
            train=str(folder),
            test=test.name,
            clips=len(test.clips),
            shared={kind: len(found.clips[kind]) for kind in KINDS},
            unknown=(unknown, test.unknown),
            zero_shot=test.zero_shot,
            examples={kind: sorted(found.values[kind])[:EXAMPLES] for kind in KINDS},
            samples=tuple(found.samples),
        )


class _Met:
    """What a training set was seen to share with one test set."""

    def __init__(self) -> None:
        self.clips: dict[str, set[str]] = {kind: set() for kind in KINDS}
        self.values: dict[str, set[str]] = {kind: set() for kind in KINDS}
        self.samples: dict[str, None] = {}

    def add(self, sample: str, kind: str, value: str, clips: set[str]) -> None:
        if kind == "file" or value not in self.values[kind]:  # else nothing new
            self.clips[kind] |= clips
            self.values[kind].add(value)
        self.samples[sample] = None


def leaking_samples(train: Path, test: Iterable[Path]) -> set[str]:
    """Training samples that share a clip, a source or a file with a test set.

    Args:
        train: data directory that is trained on.
        test: data directories to score.

    Returns:
        Sample ids of the training set.
    """
    return {key for row in find_overlaps([train], test) for key in row.samples}
