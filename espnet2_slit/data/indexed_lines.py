"""Lists that stay on disk: ESPnet's data types `text` and `kaldi_ark` by an index.

ESPnet's own keep each id and value as Python strings, in a dictionary per file. Here a
file costs 16 bytes a line, and a line is read when it is asked for; what a sample holds
is the same. Options go on naming ESPnet's types: `by_index` says what is read instead.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np

from espnet2_slit.common import compat
from espnet2_slit.data.kaldi_dir import DataDirError

compat.prepare_espnet_import("espnet2.train.dataset")

from espnet2.train.dataset import DATA_TYPES, AdapterForSoundScpReader  # noqa: E402


class IndexedText(Mapping[str, str]):
    """A file of `id value` lines as a mapping, with what ESPnet's type `text` reads.

    The file stays open and is read by position, so that workers of a loader share no
    place in it. Whoever has it open goes on reading the old one when it is replaced;
    spawned workers, who open it again, refuse a changed one.

    Args:
        path: a file in UTF-8; its lines end as Python's universal newlines do.
        least: words that a line must have: 1, an id; 2, a value, too.

    Raises:
        DataDirError: a line lacks what it must have, or an id comes twice.
    """

    def __init__(self, path: str | os.PathLike, least: int = 1):
        self.path = Path(path)
        self._file = self.path.open("rb", buffering=0)
        self._state = self._state_of_file()
        checksums, starts, place = array("I"), array("Q", [0]), 0
        # newline="": line ends are kept, whose bytes count as well
        handle = self._file.fileno()
        with open(handle, encoding="utf-8", newline="", closefd=False) as lines:
            for number, line in enumerate(lines, 1):
                words = line.split(maxsplit=1)
                if len(words) < least:
                    wanted = "an id" if least == 1 else "an id and a value"
                    raise DataDirError(
                        f"{path}:{number}: expected {wanted}, found {line!r}."
                    )
                checksums.append(crc32(words[0].encode()))
                place += len(line.encode())
                starts.append(place)
        # Arrays of Python again: a look-up takes 3 us, with numpy's 6.
        order = np.argsort(checksums, kind="stable").astype("I")
        self.starts, self.order = starts, array("I", order.tobytes())
        self.checksums = array("I", np.asarray(checksums)[order].tobytes())
        self._refuse_duplicates()

    def _refuse_duplicates(self) -> None:
        """Compare the ids whose checksums are equal: a hundred pairs in a million."""
        checksums, order = np.asarray(self.checksums), np.asarray(self.order)
        equal = checksums[1:] == checksums[:-1]
        suspects = np.zeros(len(self), bool)
        suspects[1:] |= equal
        suspects[:-1] |= equal
        seen = set()
        for row in np.sort(order[suspects]).tolist():
            key, _ = self._read(row)
            if key in seen:
                raise DataDirError(
                    f"{self.path}:{row + 1}: expected each id once, found {key!r}"
                    " again."
                )
            seen.add(key)

    def _read(self, row: int) -> tuple[str, str]:
        """Id and value of a line, counted from 0."""
        start, end = self.starts[row], self.starts[row + 1]
        line = os.pread(self._file.fileno(), end - start, start).decode()
        key, *value = line.rstrip().split(maxsplit=1)
        return key, "".join(value)

    def _state_of_file(self) -> tuple[int, int]:
        state = os.fstat(self._file.fileno())
        return state.st_size, state.st_mtime_ns

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._file = self.path.open("rb", buffering=0)
        if self._state_of_file() != self._state:
            raise DataDirError(
                f"{self.path}: expected the file that was indexed, found another size"
                " or time of change. Start again, and leave the set alone meanwhile."
            )

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[str]:
        return (self._read(row)[0] for row in range(len(self)))

    def __getitem__(self, key: str) -> str:
        checksum = crc32(key.encode())
        place = bisect_left(self.checksums, checksum)
        while place < len(self) and self.checksums[place] == checksum:
            found, value = self._read(self.order[place])
            if found == key:
                return value
            place += 1
        raise KeyError(f"{key}: no such id in {self.path}")


class IndexedMatrices(Mapping[str, Any]):
    """A Kaldi scp file as a mapping: what its lines name, read by Kaldi's reader.

    Args:
        scp: a file of `id place` lines, as feats.scp.
        open_arks: how many arks stay open, at most; 0: each is opened when read.
    """

    def __init__(self, scp: str | os.PathLike, open_arks: int = 0):
        self.places = IndexedText(scp, least=2)
        self.open_arks = open_arks
        self.arks: dict[str, BinaryIO] = {}
        self.load = compat.kaldi_io().load_mat

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __getitem__(self, key: str) -> Any:
        arks = self.arks if self.open_arks else None
        found = self.load(self.places[key], fd_dict=arks)
        while len(self.arks) > self.open_arks:
            self.arks.pop(next(iter(self.arks))).close()
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "arks": {}}


def _indexed_ark(
    path: str, max_cache_fd: int = 0, allow_multi_rates: bool = False
) -> Mapping[str, np.ndarray]:
    """ESPnet's loader of `kaldi_ark`, around ours of the places."""
    matrices = IndexedMatrices(path, max_cache_fd)
    return AdapterForSoundScpReader(matrices, allow_multi_rates=allow_multi_rates)


# Beside ESPnet's own names, none of which is the beginning of these.
DATA_TYPES["indexed_text"] = {**DATA_TYPES["text"], "func": IndexedText, "kwargs": []}
DATA_TYPES["indexed_kaldi_ark"] = {**DATA_TYPES["kaldi_ark"], "func": _indexed_ark}


def by_index(path: str, name: str, kind: str) -> tuple[str, str, str]:
    """One row of ESPnet's data options, its type replaced by the indexed one.

    Other types stay, and so does what is no file, as the output of a command.
    """
    indexed = f"indexed_{kind}"
    on_disk = Path(path).is_file() or Path(path).is_dir()  # a folder of splits
    return path, name, indexed if indexed in DATA_TYPES and on_disk else kind
