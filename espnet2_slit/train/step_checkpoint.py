"""Going on in the middle of an epoch: a kill costs minutes, whatever an epoch lasts.

Owns `step.pth` in the experiment folder: what it holds, when it is written, and how an
epoch goes on from it with the batches that come next, with the random numbers that
would have been drawn. Checkpoints at the end of an epoch are ESPnet's.
"""

import hashlib
import itertools
import logging
import random
import time
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch

from espnet2_slit.common import compat
from espnet2_slit.common.weights import read_checkpoint
from espnet2_slit.train.checkpoint import (
    STEP_FILE,
    check_training,
    restore_training,
    training_state,
)

compat.prepare_espnet_import("espnet2.train.reporter")

from espnet2.train.reporter import (  # noqa: E402
    Average,
    SubReporter,
    WeightedAverage,
)

Batch = Tuple[List[str], Dict[str, torch.Tensor]]


class ResumableEpoch:
    """The batches of one epoch; saves the training every few minutes between two.

    The run that goes on equals one that was left alone, to the bit where the machine's
    arithmetic repeats: weights, optimizer, schedule, loss scale, the epoch's statistics
    and every rank's random state are saved, and the workers' seeds are drawn as at the
    epoch's start.

    Args:
        iterator: ESPnet's, of one epoch, from its first batch.
        folder: the experiment's.
        minutes: between two checkpoints; 0 for none.
        resume: go on from the checkpoint in `folder`, if it is of this epoch.
        training: model, optimizers, schedulers and scaler.
        reporter: of this epoch.
        accum_grad: batches of one optimizer step; saved is only between two steps.
        device: where the ranks talk to each other.
        distributed: whether there are several ranks.
    """

    def __init__(
        self,
        iterator: Iterable[Batch],
        folder: Path,
        minutes: float,
        resume: bool,
        training: Tuple[torch.nn.Module, Sequence, Sequence, Optional[Any]],
        reporter: SubReporter,
        accum_grad: int,
        device: str,
        distributed: bool,
    ):
        self.iterator: Any = iterator  # a DataLoader, or what counts like one
        self.path = folder / STEP_FILE
        self.minutes = minutes
        self.training = training
        self.reporter = reporter
        self.accum_grad = accum_grad
        self.device = device
        self.distributed = distributed
        self.rank = torch.distributed.get_rank() if distributed else 0
        self.random_state: Optional[dict] = None  # to be restored
        self.done = 0  # batches of this epoch that an earlier run has trained on
        self.orders: List[str] = []  # of the batches, by rank
        if minutes > 0 or resume:
            seen = self._of_all_ranks((_order(iterator), self.path.is_file()))
            self.orders = [order for order, _ in seen]
            if resume and any(exists for _, exists in seen):
                self._resume()

    def __len__(self) -> int:
        return self.done + len(self.iterator)

    def __iter__(self) -> Iterator[Batch]:
        saved = time.monotonic()
        batches = iter(self.iterator)  # draws the workers' seed
        if self.done and not hasattr(self.iterator, "batch_sampler"):
            batches = itertools.islice(batches, self.done, None)
        if self.random_state is not None:
            _set_random_state(self.random_state)
        for batch in batches:
            step = self.reporter.count
            yield batch
            trained = self.reporter.count > step
            if trained and self._is_due(time.monotonic() - saved):
                self._save()
                saved = time.monotonic()

    def _is_due(self, seconds: float) -> bool:
        if not self.minutes or self.reporter.count % self.accum_grad:
            return False
        due = seconds >= 60 * self.minutes
        if self.distributed:  # by the first rank's clock
            flag = torch.tensor(int(due), device=self.device)
            torch.distributed.broadcast(flag, src=0)
            due = bool(flag)
        return due

    def _save(self) -> None:
        random_states = self._of_all_ranks(_random_state())
        if self.rank:
            return
        states = {
            "epoch": self.reporter.get_epoch(),
            "step": self.reporter.count,
            "orders": self.orders,
            "random_states": random_states,
            "total_count": self.reporter.total_count,
            "stats": _packed(self.reporter.stats),
            **training_state(*self.training),
        }
        torch.save(states, self.path)  # whole or not at all, see atomic_torch_save
        logging.info(
            f"epoch {states['epoch']}, step {states['step']}: wrote {self.path}"
        )

    def _of_all_ranks(self, mine: Any) -> List[Any]:
        """What each rank gives, the same list on all of them."""
        if not self.distributed:
            return [mine]
        everyone = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, mine)
        return everyone

    def _resume(self) -> None:
        """Go on from the file, if it is of this epoch and these batches."""
        epoch = self.reporter.get_epoch()
        states = read_checkpoint(self.path, mmap=True)
        check_training(states, self.path, "epoch", "step", "orders", "random_states")
        if states["epoch"] != epoch:  # of an epoch that is over
            return
        if states["orders"] != self.orders:
            logging.warning(
                f"{self.path}: is of other batches than those of epoch {epoch} now "
                f"({len(states['orders'])} ranks then, {len(self.orders)} now; data, "
                "batch size and seed count, too). The epoch starts anew."
            )
            return
        states = read_checkpoint(self.path)
        restore_training(states, self.path, *self.training)
        self.reporter.total_count = states["total_count"]
        self.reporter.count = self.done = states["step"]
        self.reporter.stats.update(_unpacked(states["stats"]))
        self.random_state = states["random_states"][self.rank]
        if hasattr(self.iterator, "batch_sampler"):
            del self.iterator.batch_sampler[: self.done]  # not even loaded
        logging.info(f"Resuming epoch {epoch} after step {self.done} from {self.path}")


def _order(iterator: Iterable) -> str:
    """Tells the epoch's batches from others; empty where they are not known before."""
    batches = getattr(iterator, "batch_sampler", None)
    if not isinstance(batches, list):
        return ""
    return hashlib.sha256(repr(batches).encode()).hexdigest()


def _packed(stats: Dict[str, list]) -> Dict[str, Dict[str, torch.Tensor]]:
    """A reporter's values as tensors, (steps,) each: small, and readable as weights."""
    return {
        key: {
            name: torch.tensor([getattr(v, name) for v in values], dtype=torch.float64)
            for name in ("value", "weight")
            if hasattr(values[0], name)
        }
        for key, values in stats.items()
    }


def _unpacked(packed: Dict[str, Dict[str, torch.Tensor]]) -> Dict[str, list]:
    return {
        key: [
            WeightedAverage(*numbers) if "weight" in columns else Average(*numbers)
            for numbers in zip(
                *(columns[n].tolist() for n in ("value", "weight") if n in columns),
                strict=True,
            )
        ]
        for key, columns in packed.items()
    }


def _random_state() -> Dict[str, Any]:
    """Of Python, numpy and torch in this process, as tensors and numbers."""
    kind, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: Dict[str, Any]) -> None:
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
