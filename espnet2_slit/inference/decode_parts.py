"""Pieces of a task's results on disk: a killed run goes on, jobs share a set."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_slit.common.files import atomic
from espnet2_slit.inference.requests import InferenceError

CHUNK = 128  # samples of one part: what a killed run loses at most

# Indices of items -> arrays with one row for each.
Compute = Callable[[Sequence[int]], dict[str, np.ndarray]]


class Parts:
    """Results of pieces of a task on disk, so that a killed run goes on.

    Args:
        folder: of the set's decode directory.
        key: what decides the results; parts of another key are not used.
        job: number of this job, from 1.
        num_jobs: jobs that share the pieces.
    """

    def __init__(
        self, folder: str | os.PathLike, key: str, job: int = 1, num_jobs: int = 1
    ):
        self.root = Path(folder) / ".parts"
        self.folder = self.root / key[:16]
        self.job, self.num_jobs = job, num_jobs

    def run(
        self,
        name: str,
        count: int,
        compute: Compute,
        size: int | None = None,
        every: bool = False,
    ) -> None:
        """Compute this job's pieces of `range(count)`.

        Args:
            name: of the task.
            count: items.
            compute: indices -> {name: array with one row per index}.
            size: items of a piece; None: CHUNK.
            every: this job goes on with all pieces; then those that no other job has
                computed by then are computed here, after its own.
        """
        size = size or CHUNK
        self.folder.mkdir(parents=True, exist_ok=True)
        pieces = range(-(-count // size))
        mine = [k for k in pieces if k % self.num_jobs == self.job - 1]
        # Others' pieces from the end, which their own jobs come to last.
        others = [k for k in reversed(pieces) if k not in mine] if every else []
        kept = sum(self._path(name, k).is_file() for k in mine)
        if kept:
            logging.info("%s: %d of %d parts are kept", name, kept, len(mine))
        started, done = time.monotonic(), 0
        for k in [*mine, *others]:
            if self._path(name, k).is_file():  # perhaps another job's, just now
                continue
            indices = list(range(k * size, min((k + 1) * size, count)))
            arrays: dict[str, Any] = compute(indices)
            with atomic(self._path(name, k)) as stream:
                np.savez(stream, **arrays)
            done += len(indices)
            rate = done / max(time.monotonic() - started, 1e-9)
            logging.info(
                "%s: %d of %d (%.1f a second)", name, indices[-1] + 1, count, rate
            )

    def merged(
        self, name: str, count: int, size: int | None = None
    ) -> dict[str, np.ndarray]:
        """All pieces joined.

        Args:
            name: of the task.
            count: items.
            size: items of a piece, as of `run`.

        Raises:
            InferenceError: pieces that no job has computed.
        """
        size = size or CHUNK
        pieces = []
        absent = 0
        for k in range(-(-count // size)):
            path = self._path(name, k)
            if not path.is_file():
                absent += 1
                continue
            with np.load(path, allow_pickle=False) as loaded:
                pieces.append({key: loaded[key] for key in loaded.files})
        if absent:
            raise InferenceError(
                f"{self.folder}: {absent} parts of {name} are missing. Run the decoding"
                " jobs again; finished parts are kept."
            )
        return {key: np.concatenate([p[key] for p in pieces]) for key in pieces[0]}

    def _path(self, name: str, k: int) -> Path:
        return self.folder / f"{name}.{k:05d}.npz"

    def remove(self) -> None:
        """Delete all parts; the set is complete."""
        shutil.rmtree(self.root, ignore_errors=True)
