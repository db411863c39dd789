"""Writing data directories: files that appear whole, sorted in bounded memory."""

from __future__ import annotations

import heapq
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from espnet2_slit.common.files import atomic, write_atomically, write_json
from espnet2_slit.data.kaldi_dir import read_pairs, read_set, sample_ids

LINES_IN_MEMORY = 250_000  # a longer file is sorted in runs on disk


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


def write_set(directory: Path, **values) -> None:
    """Write set.json, completing what `values` leaves out."""
    content = {**read_set(directory), "sample_rate": 16000, **values}
    content["name"] = values.get("name", Path(directory).name)
    write_json(Path(directory) / "set.json", content)


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
    try:
        with atomic(directory / "category2utt") as out:
            for category, members in itertools.groupby(
                read_pairs(flat), lambda pair: pair[0]
            ):
                out.write(category.encode())
                out.writelines(f" {sample}".encode() for _, sample in members)
                out.write(b"\n")
                count += 1
    finally:
        flat.unlink()
    return count
