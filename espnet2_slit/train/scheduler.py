"""The learning rate of BLIP-2's recipes: linear warm-up, then half a cosine."""

import math

import torch
from torch.optim.lr_scheduler import LRScheduler
from typeguard import typechecked

from espnet2_slit.common import compat

compat.prepare_espnet_import()

from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler  # noqa: E402


class WarmupCosine(LRScheduler, AbsBatchStepScheduler):
    """Up to the optimizer's rate in `warmup_steps`, then down along half a cosine.

    ESPnet's own cosine counts epochs and has no warm-up, or counts steps that have to
    be known beforehand; this one is told by the trainer how many steps there will be,
    so one configuration fits any amount of data.

    Args:
        optimizer: whose rates are the highest ones.
        warmup_steps: at most; a run of fewer than twice as many steps warms up for
            half of its steps.
        final_ratio: of the highest rate, reached at the last step.
        total_steps: of the whole training; 0: the trainer sets it from the number of
            batches and max_epoch.
        last_epoch: PyTorch's count of steps taken, -1 at the start.
    """

    @typechecked
    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_steps: int = 1000,
        final_ratio: float = 0.01,
        total_steps: int = 0,
        last_epoch: int = -1,
    ):
        if warmup_steps < 0 or total_steps < 0 or not 0 <= final_ratio <= 1:
            raise ValueError(
                "scheduler_conf: expected warmup_steps >= 0, total_steps >= 0 and "
                f"final_ratio in [0, 1]; found {warmup_steps}, {total_steps} and "
                f"{final_ratio}"
            )
        self.warmup_steps = warmup_steps
        self.final_ratio = final_ratio
        self.total_steps = total_steps
        super().__init__(optimizer, last_epoch)

    def state_dict(self) -> dict:
        """Without the total: a resumed run may have another max_epoch."""
        return {k: v for k, v in super().state_dict().items() if k != "total_steps"}

    def ratio(self, step: int) -> float:
        """Factor on the highest rate at a step, counted from 0."""
        warmup = self.warmup_steps
        if self.total_steps:
            warmup = min(warmup, self.total_steps // 2)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if not self.total_steps:
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.final_ratio + (1 - self.final_ratio) * cosine

    def get_lr(self) -> list:
        """Rates of all parameter groups."""
        return [base * self.ratio(self.last_epoch) for base in self.base_lrs]
