"""Finding audio files by name below some folders, and looking into them."""

from __future__ import annotations

import itertools
import logging
import os
import re
import unicodedata
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from espnet2_slit.data import audio, containers, other_decoders

AUDIO_SUFFIXES = containers.SNDFILE_SUFFIXES  # the earlier, the better
VIDEO_SUFFIXES = containers.OTHER_SUFFIXES  # read where ffmpeg's libraries are

logger = logging.getLogger(__name__)


def strip_suffix(name: str) -> str:
    """The name without an audio or video suffix; other dots belong to the name."""
    stem, suffix = os.path.splitext(name)
    known = suffix.lower() in AUDIO_SUFFIXES or suffix.lower() in VIDEO_SUFFIXES
    return stem if known else name


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
        self.videos = 0  # files that nothing here can decode
        videos = VIDEO_SUFFIXES if other_decoders.available() else ()
        self._readable = (*AUDIO_SUFFIXES, *videos)
        self._root = f"{os.path.abspath(root)}/" if root else ""
        self._paths: dict[str, str | list[str]] = {}
        self._loose: dict[str, str] | None = {} if loose else None
        self.size = 0
        for folder in self.folders:
            self._walk(folder)
        if self.videos:
            logger.warning(
                "%s: %d files (mp4, m4a, webm ...) are passed over, as neither ffmpeg"
                " nor PyAV is installed. %s",
                ", ".join(map(str, self.folders)), self.videos, other_decoders.REMEDY,
            )  # fmt: skip

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
                if suffix.lower() in self._readable:
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
    order = AUDIO_SUFFIXES + VIDEO_SUFFIXES
    return (suffix != wanted, order.index(suffix), path)


def probe(path: str) -> tuple[float, int, int] | str:
    """(seconds, sample rate, channels) of an audio file, or why it can't be read."""
    try:
        info = audio.probe(path)
    except audio.AudioError as error:
        return str(error).removeprefix(f"{path}: ")
    return info.duration_s, info.sample_rate, info.channels


def size_only(path: str) -> tuple[float, int, int] | str:
    """The part of `probe` that costs one `stat`; length, rate and channels unknown."""
    try:
        return (0.0, 0, 0) if os.path.getsize(path) else "0 bytes"
    except OSError as problem:
        return problem.strerror or "not readable"


class Prober:
    """Probes paths in a pool of processes; alone while there are few.

    Args:
        jobs: processes.
        headers: False looks at sizes only.
    """

    FEW = 512

    def __init__(self, jobs: int, headers: bool = True):
        self._jobs, self._headers = jobs, headers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Prober":
        return self

    def __exit__(self, *_) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def __call__(self, paths: list[str]) -> list[tuple[float, int, int] | str]:
        if not self._headers:
            return [size_only(p) for p in paths]
        if self._jobs <= 1 or len(paths) < self.FEW:
            return [probe(p) for p in paths]
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._jobs)
        return list(self._pool.map(probe, paths, chunksize=128))
