"""Requests that wait together are computed together, by one thread for all.

Owns the queue of a server. Results are those of single calls, since a system's results
do not depend on the batch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any

from espnet2_slit.inference.one_by_one import each

MAX_PAUSES = 20

# Items of one kind -> their results, in order.
Work = Callable[[Sequence[Any]], Sequence[Any]]


class QueueFull(Exception):
    """More requests wait than the queue holds; come again later."""


class Batcher:
    """A queue and the one thread that empties it.

    Args:
        batch_size: items that are computed together at most.
        capacity: items that may wait.
        patience_s: how long a batch waits for a next item, MAX_PAUSES times at most.
    """

    def __init__(self, batch_size: int, capacity: int, patience_s: float = 0.01):
        self.batch_size, self.capacity = batch_size, capacity
        self.patience_s = patience_s
        self.largest = 0  # items of the largest batch so far
        self._waiting: deque[tuple[Hashable, Work, Any, Future]] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="slit-batches")
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, kind: Hashable, work: Work, item: Any) -> Future:
        """Let an item wait for its turn.

        Args:
            kind: items of equal kind may be computed together.
            work: what computes them; equal for equal kinds.
            item: one of them.

        Returns:
            Its result to be.

        Raises:
            QueueFull: too many wait, or the server is ending.
        """
        future: Future = Future()
        with self._change:
            if self._closed or len(self._waiting) >= self.capacity:
                raise QueueFull
            self._waiting.append((kind, work, item, future))
            self._change.notify()
        return future

    def close(self) -> None:
        """Compute what waits, take nothing more, and end."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
            self._pause()
            work, batch = self._take()
            if batch:
                self._compute(work, batch)

    def _pause(self) -> None:
        """Let items gather that come at about the same time."""
        for _ in range(MAX_PAUSES):
            before = len(self._waiting)
            if self._closed or before >= self.batch_size:
                return
            time.sleep(self.patience_s)
            if len(self._waiting) == before:
                return

    def _take(self) -> tuple[Work, list[tuple[Any, Future]]]:
        """The oldest item and those of its kind, as many as a batch holds."""
        with self._change:
            kind, work, *_ = self._waiting[0]
            batch: list[tuple[Any, Future]] = []
            rest: deque[tuple[Hashable, Work, Any, Future]] = deque()
            for waiting in self._waiting:
                if waiting[0] == kind and len(batch) < self.batch_size:
                    if waiting[3].set_running_or_notify_cancel():  # its client is there
                        batch.append(waiting[2:])
                else:
                    rest.append(waiting)
            self._waiting = rest
        self.largest = max(self.largest, len(batch))
        return work, batch

    @staticmethod
    def _compute(work: Work, batch: list[tuple[Any, Future]]) -> None:
        items = [item for item, _ in batch]
        left = [future for _, future in batch]
        try:
            for _, result in each(items, work):
                future = left.pop(0)
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
        except Exception as error:  # of the request that all of them make
            for future in left:
                future.set_exception(error)
