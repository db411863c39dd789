"""ESPnet's Trainer with what long runs need: whole files, and a watch on numbers.

Owns the reaction to batches that are not finite and to killed runs. The training loop
itself, the optimizer steps and the reports are ESPnet's.
"""

import argparse
import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Union

import torch
from typeguard import typechecked

from espnet2_slit.common import compat
from espnet2_slit.common.weights import read_checkpoint
from espnet2_slit.train.checkpoint import (
    EPOCH_FILE,
    STEP_FILE,
    atomic_torch_save,
    check_training,
    remove_unfinished,
    repair_experiment,
    restore_training,
)
from espnet2_slit.train.scheduler import WarmupCosine
from espnet2_slit.train.step_checkpoint import Batch, ResumableEpoch

compat.prepare_espnet_import("espnet2.train.trainer")

import espnet2.train.trainer as espnet_trainer  # noqa: E402
from espnet2.train.distributed_utils import DistributedOption  # noqa: E402
from espnet2.train.reporter import Reporter, SubReporter  # noqa: E402
from espnet2.train.trainer import Trainer, TrainerOptions  # noqa: E402
from espnet2.utils.build_dataclass import build_dataclass  # noqa: E402

IDS_SHOWN = 20  # of a batch in a message


def _attention_maps(model: Any, batch: Dict[str, Any]) -> Dict[str, List[Any]]:
    return model.attention_maps(**batch)


class NotFiniteError(RuntimeError):
    """Too many batches gave NaN or Inf."""


@dataclasses.dataclass
class SLITTrainerOptions(TrainerOptions):
    """ESPnet's options and ours.

    Attributes:
        max_non_finite_batches: batches of one epoch that may be skipped for a loss
            that is not finite; one more stops the run.
        checkpoint_minutes: between two checkpoints inside an epoch; 0 for none.
        target_steps: optimizer steps that decide the number of epochs; 0: max_epoch
            decides.
    """

    max_non_finite_batches: int
    checkpoint_minutes: float
    target_steps: int


class SLITTrainer(Trainer):
    """ESPnet's Trainer, unchanged in what it computes."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Options of this trainer."""
        parser.add_argument(
            "--max_non_finite_batches",
            type=int,
            default=20,
            help="Batches of one epoch that may be skipped because their loss is NaN "
            "or Inf. One more stops the run",
        )
        parser.add_argument(
            "--checkpoint_minutes",
            type=float,
            default=10.0,
            help="Minutes between two checkpoints inside an epoch, from which a killed "
            "training goes on; 0: only at the end of each epoch",
        )
        parser.add_argument(
            "--target_steps",
            type=int,
            default=0,
            help="Optimizer steps that the training should take, whatever the amount "
            "of data: it runs for the number of whole epochs that comes nearest, at "
            "least 1 and at most max_epoch; 0: for max_epoch",
        )

    @classmethod
    @typechecked
    def build_options(cls, args: argparse.Namespace) -> SLITTrainerOptions:
        """Options for run()."""
        return build_dataclass(SLITTrainerOptions, args)

    @classmethod
    def run(
        cls,
        model: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Any],
        train_iter_factory: Any,
        valid_iter_factory: Any,
        plot_attention_iter_factory: Any,
        trainer_options: SLITTrainerOptions,
        distributed_option: DistributedOption,
    ) -> None:
        """ESPnet's training, with files that are whole or absent."""
        output_dir = Path(trainer_options.output_dir)
        is_first = (
            not distributed_option.distributed or distributed_option.dist_rank == 0
        )
        if is_first:
            remove_unfinished(output_dir)
            if not trainer_options.resume:
                (output_dir / STEP_FILE).unlink(missing_ok=True)
        trainer_options = planned(train_iter_factory, trainer_options)
        if trainer_options.resume and (output_dir / EPOCH_FILE).is_file():
            if is_first:
                nbest = trainer_options.keep_nbest_models
                repair_experiment(
                    output_dir,
                    trainer_options.best_model_criterion,
                    nbest if isinstance(nbest, int) else max(nbest, default=1),
                )
            trainer_options = _without_epochs_if_stopped(trainer_options)
        for scheduler in schedulers:
            if isinstance(scheduler, WarmupCosine) and not scheduler.total_steps:
                scheduler.total_steps = training_steps(
                    train_iter_factory, trainer_options
                )
        with atomic_torch_save():
            super().run(
                model=model,
                optimizers=optimizers,
                schedulers=schedulers,
                train_iter_factory=train_iter_factory,
                valid_iter_factory=valid_iter_factory,
                plot_attention_iter_factory=plot_attention_iter_factory,
                trainer_options=trainer_options,
                distributed_option=distributed_option,
            )
        if is_first:  # all epochs are over
            (output_dir / STEP_FILE).unlink(missing_ok=True)

    @classmethod
    def plot_attention(cls, model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        """ESPnet's pictures at the end of an epoch, of what the queries look at.

        ESPnet hangs hooks on attention modules of its own, which are not here, and has
        no other way in: what it draws is replaced meanwhile.
        """
        original = espnet_trainer.calculate_all_attentions
        espnet_trainer.calculate_all_attentions = _attention_maps
        try:
            super().plot_attention(model, *args, **kwargs)
        finally:
            espnet_trainer.calculate_all_attentions = original

    @staticmethod
    def resume(
        checkpoint: Union[str, Path],
        model: torch.nn.Module,
        reporter: Reporter,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Any],
        scaler: Optional[Any],
        ngpu: int = 0,
        strict: bool = True,
    ) -> None:
        """Continue from a checkpoint, read without executing what is in it.

        Raises:
            WeightsError: truncated, foreign, or of another model or optimizer.
        """
        device = f"cuda:{torch.cuda.current_device()}" if ngpu > 0 else "cpu"
        states = read_checkpoint(checkpoint, device)
        check_training(states, checkpoint, "reporter")
        restore_training(states, checkpoint, model, optimizers, schedulers, scaler)
        reporter.load_state_dict(states["reporter"])
        logging.info(f"Resuming after epoch {reporter.get_epoch()} from {checkpoint}")

    @classmethod
    def train_one_epoch(
        cls,
        model: torch.nn.Module,
        iterator: Iterable[Batch],
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Any],
        scaler: Optional[Any],
        reporter: SubReporter,
        summary_writer: Any,
        options: SLITTrainerOptions,
        distributed_option: DistributedOption,
    ) -> bool:
        """ESPnet's epoch, resumable, with every step's outcome looked at."""
        epoch = ResumableEpoch(
            iterator,
            Path(options.output_dir),
            options.checkpoint_minutes,
            options.resume,
            (getattr(model, "module", model), optimizers, schedulers, scaler),
            reporter,
            options.accum_grad,
            "cuda" if options.ngpu > 0 else "cpu",
            distributed_option.distributed,
        )
        watched = WatchedIterator(
            epoch,
            reporter,
            options.max_non_finite_batches,
            distributed_option.distributed,
        )
        no_step_was_valid = super().train_one_epoch(
            model=model,
            iterator=watched,
            optimizers=optimizers,
            schedulers=schedulers,
            scaler=scaler,
            reporter=reporter,
            summary_writer=summary_writer,
            options=options,
            distributed_option=distributed_option,
        )
        return no_step_was_valid and not epoch.done


def _without_epochs_if_stopped(options: SLITTrainerOptions) -> SLITTrainerOptions:
    """A run that early stopping ended is over: train no further epoch when resumed.

    ESPnet 202511 looks at its criterion only after another epoch (202611 does so at
    once), so that each repetition of a command would go on by one epoch.
    """
    if options.patience is None:
        return options
    states = read_checkpoint(Path(options.output_dir) / EPOCH_FILE, mmap=True)
    if "reporter" not in states:
        return options  # resume says what is wrong with the file
    reporter = Reporter()
    reporter.load_state_dict(states["reporter"])
    phase, key, mode = options.early_stopping_criterion
    if not reporter.has(phase, key) or not reporter.check_early_stopping(
        options.patience, phase, key, mode
    ):
        return options
    stopped = {"max_epoch": reporter.get_epoch()}
    return dataclasses.replace(options, **stopped)


def training_steps(iter_factory: Any, options: SLITTrainerOptions) -> int:
    """Optimizer steps from the first epoch to max_epoch.

    Raises:
        ValueError: the number of batches is not known, or too small for one step.
    """
    return options.max_epoch * _epoch_steps(iter_factory, options.accum_grad)


def planned(iter_factory: Any, options: SLITTrainerOptions) -> SLITTrainerOptions:
    """The options, with as many epochs as come nearest to target_steps.

    Raises:
        ValueError: as for `training_steps`.
    """
    if not options.target_steps:
        return options
    steps = _epoch_steps(iter_factory, options.accum_grad)
    epochs = min(options.max_epoch, max(1, round(options.target_steps / steps)))
    logging.info(
        f"plan: {epochs} epochs of {steps * options.accum_grad} batches, "
        f"{epochs * steps} optimizer steps (target_steps {options.target_steps}, "
        f"max_epoch {options.max_epoch})"
    )
    return dataclasses.replace(options, **{"max_epoch": epochs})


def _epoch_steps(iter_factory: Any, accum_grad: int) -> int:
    """Optimizer steps of one epoch."""
    batches = getattr(iter_factory, "num_iters_per_epoch", None)
    if batches is None and hasattr(iter_factory, "sampler"):
        batches = len(iter_factory.sampler)
    if not batches:
        raise ValueError(
            "scheduler warmupcosine and target_steps: the iterator does not tell its "
            "number of batches. Set num_iters_per_epoch; or scheduler_conf.total_steps "
            "and max_epoch."
        )
    if batches < accum_grad:
        raise ValueError(
            f"accum_grad: expected at most {batches}, the batches of an epoch, found "
            f"{accum_grad}: no step would be made. Lower it."
        )
    # ESPnet counts batches anew in each epoch: what is left over makes no step
    return batches // accum_grad


class WatchedIterator:
    """Hands out batches and looks, before the next one, at what the last one gave.

    A loss that is not finite makes every gradient NaN, on every rank after DDP's
    mean, so ESPnet's Trainer skips the update by itself. Here the event is counted,
    its utterances are named, and the run is stopped if there are too many. The
    statistics looked at are means over ranks, so all ranks decide alike and none
    is left waiting.

    Args:
        iterator: of (utterance ids, batch).
        reporter: of this epoch; the statistics of the last step are in it as numbers.
        max_non_finite: skipped batches after which the run goes on.
        distributed: True if there are several ranks.
    """

    def __init__(
        self,
        iterator: Iterable[Batch],
        reporter: SubReporter,
        max_non_finite: int,
        distributed: bool,
    ):
        self.iterator: Any = iterator  # a DataLoader, or what counts like one
        self.reporter = reporter
        self.max_non_finite = max_non_finite
        self.distributed = distributed
        # of a resumed epoch, the reporter has the steps before
        self.non_finite = sum(
            _is_hit(v.value) for v in reporter.stats.get("non_finite", [])
        )

    def __len__(self) -> int:
        return len(self.iterator)

    def __iter__(self) -> Iterator[Batch]:
        for utt_ids, batch in self.iterator:
            step = self.reporter.count
            yield utt_ids, batch
            if self.reporter.count > step:  # else it was not trained on
                self._look(utt_ids, batch)

    def _last(self, name: str) -> float:
        values = self.reporter.stats.get(name)
        return float(values[-1].value) if values else 0.0

    def _look(self, utt_ids: List[str], batch: Dict[str, torch.Tensor]) -> None:
        epoch, step = self.reporter.get_epoch(), self.reporter.count
        if self._last("loss_spike") > 0:
            logging.warning(
                f"epoch {epoch}, step {step}: the loss jumped to "
                f"{self._last('loss'):.3g}; utterances of this rank: {_some(utt_ids)}"
            )
        if not _is_hit(self._last("non_finite")):
            return
        self.non_finite += 1
        named = self._gathered(_suspects(utt_ids, batch))
        logging.error(
            f"epoch {epoch}, step {step}: the loss is not finite, the batch was "
            f"skipped ({self.non_finite} of at most {self.max_non_finite} in this "
            f"epoch). {named}"
        )
        if self.non_finite > self.max_non_finite:
            raise NotFiniteError(
                f"{self.non_finite} batches of epoch {epoch} gave a loss that is not "
                f"finite; expected at most {self.max_non_finite}. {named} Remove the "
                "utterances named above, lower optim_conf.lr, or raise "
                "--max_non_finite_batches."
            )

    def _gathered(self, mine: str) -> str:
        if not self.distributed:
            return mine
        # every rank is here: the statistics are the same on all of them
        everyone: List[str] = [""] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, mine)
        return " ".join(f"Rank {i}: {text}" for i, text in enumerate(everyone))


def _is_hit(non_finite: float) -> bool:
    """Whether the statistic of one step says that some rank's loss was not finite."""
    return non_finite > 0 or math.isnan(non_finite)


def _suspects(utt_ids: List[str], batch: Dict[str, torch.Tensor]) -> str:
    """The utterances whose input is not finite; all of the batch if none is."""
    bad = set()
    for value in batch.values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            finite = value.flatten(1).isfinite().all(dim=1).tolist()
            bad.update(i for i, ok in zip(utt_ids, finite, strict=True) if not ok)
    if bad:
        return f"NaN or Inf in the input of: {_some(sorted(bad))}."
    return f"All inputs are finite; the batch was: {_some(utt_ids)}."


def _some(utt_ids: Sequence[str]) -> str:
    rest = len(utt_ids) - IDS_SHOWN
    return ", ".join(utt_ids[:IDS_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
