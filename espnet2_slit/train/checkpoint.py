"""Checkpoints: carried from stage to stage, written whole, put right after a kill.

Owns what ESPnet leaves open: atomic writing, the repair of an experiment folder after a
kill, and the rule by which a training stage starts from the one before it. What the
weights are is the business of the models, reading them that of `common.weights`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional, Sequence

import torch

from espnet2_slit.common.files import UNFINISHED, atomic
from espnet2_slit.common.weights import (
    WeightsError,
    mismatches,
    read_checkpoint,
    read_weights,
    shown,
)

EPOCH_FILE = "checkpoint.pth"  # ESPnet's, of the end of the last epoch
STEP_FILE = "step.pth"  # ours, of an epoch under way (see step_checkpoint)


# ---------------------------------------------------------------- from stage to stage


def load_init_params(
    model: torch.nn.Module,
    specs: Sequence[str],
    ignore_mismatch: bool = False,
    map_location: Any = "cpu",
) -> None:
    """ESPnet's --init_param, without silence: every weight is loaded or accounted for.

    A spec is `file[:source prefix[:target prefix[:excluded prefixes]]]` as in ESPnet.
    Parts that belong to other stages (`model.ignored_keys`) are left out. If
    a file is given without prefixes, the files together must cover the model, except
    for parts that are new in this stage (`model.new_keys`): these keep their
    initialisation.

    Args:
        model: one of the three models.
        specs: in the order given; a later one overrides an earlier one.
        ignore_mismatch: ESPnet's --ignore_init_mismatch: what does not fit is left out,
            and listed in the log.
        map_location: as for torch.load.

    Raises:
        WeightsError: a weight that no part of the model takes, or one of the model
            that no file gives.
    """
    own = model.state_dict()
    taken: dict[str, torch.Tensor] = {}
    whole_model = False
    for spec in specs:
        path, source, target, excluded = (spec.split(":", 3) + [""] * 3)[:4]
        weights = read_weights(path, map_location)
        for prefix in filter(None, excluded.split(",")):
            weights = {k: v for k, v in weights.items() if not k.startswith(prefix)}
        whole_model |= not source and not target
        found = {
            _join(target, k[len(source) :].lstrip(".") if source else k): v
            for k, v in weights.items()
            if not source or k == source or k.startswith(source + ".")
        }
        if not found:
            raise WeightsError(
                f"--init_param {spec}: expected weights named {source}.*, found "
                f"{shown(sorted({k.split('.')[0] for k in weights}))} in {path}."
            )
        others = tuple(getattr(model, "ignored_keys", ()))
        left_out = [k for k in found if k not in own and k.startswith(others)]
        found = {k: v for k, v in found.items() if k not in set(left_out)}
        bad = [k for k in found if k not in own or found[k].shape != own[k].shape]
        if bad and not ignore_mismatch:
            faults = mismatches({k: v for k, v in own.items() if k in found}, found)
            raise WeightsError(
                f"--init_param {spec}: the weights do not fit this "
                f"{type(model).__name__}: {'; '.join(faults)}. Make qformer_conf, "
                "qformer_tokenizer and features equal to those of the earlier stage, "
                "exclude weights (file:source:target:excluded), or set "
                "--ignore_init_mismatch true."
            )
        if bad:
            logging.warning(
                f"--init_param {spec}: does not fit, left out: {shown(bad)}"
            )
        taken.update({k: v for k, v in found.items() if k not in set(bad)})
        logging.info(
            f"--init_param {spec}: {len(found) - len(bad)} weights"
            + (f"; of other stages, left out: {shown(left_out)}" if left_out else "")
        )
    # A new part may be absent as a whole, not in pieces.
    absent = [
        part
        for part in getattr(model, "new_keys", ())
        if not any(k.startswith(part) for k in taken)
    ]
    missing = [k for k in own if k not in taken and not k.startswith(tuple(absent))]
    if missing and whole_model and not ignore_mismatch:
        raise WeightsError(
            f"--init_param {' '.join(specs)}: {len(missing)} of {len(own)} weights of "
            f"{type(model).__name__} are in none of the files: {shown(missing)}. "
            "Start from a stage that has them (a generative stage keeps the Q-Former's "
            "text side with model_conf.carry_text_branch: true), or set "
            "--ignore_init_mismatch true to start with them untrained."
        )
    model.load_state_dict({**own, **taken})


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


# ---------------------------------------------------------------- a training's state

TRAINING = ("model", "optimizers", "schedulers", "scaler")


def training_state(
    model: torch.nn.Module, optimizers: Sequence, schedulers: Sequence, scaler: Any
) -> dict:
    """What ESPnet's checkpoint.pth holds beside its reporter, under its names."""
    return {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "schedulers": [s and s.state_dict() for s in schedulers],
        "scaler": scaler and scaler.state_dict(),
    }


def check_training(states: dict, source: str | Path, *more: str) -> None:
    """See that a file holds `training_state` and `more`.

    Raises:
        WeightsError: something is absent.
    """
    absent = [key for key in (*TRAINING, *more) if key not in states]
    if absent:
        raise WeightsError(
            f"{source}: expected the state of a training, found no "
            f"{', '.join(absent)}. Delete it to train without it, or give another "
            "--output_dir."
        )


def restore_training(
    states: dict,
    source: str | Path,
    model: torch.nn.Module,
    optimizers: Sequence,
    schedulers: Sequence,
    scaler: Any,
) -> None:
    """Load what `training_state` gave.

    Args:
        states: of `training_state`, or ESPnet's checkpoint.pth.
        source: where they come from, for messages.
        model: takes all weights.
        optimizers: take their states.
        schedulers: likewise; None where there is no scheduler.
        scaler: of the loss, or None.

    Raises:
        WeightsError: they are of another model or optimizer.
    """
    faults = mismatches(model.state_dict(), states["model"])
    if faults:
        raise WeightsError(
            f"{source}: the run in this folder trained another model: "
            f"{'; '.join(faults)}. Give another --output_dir, or the configuration of "
            "that run (its config.yaml)."
        )
    model.load_state_dict(states["model"])
    for optimizer, state in zip(optimizers, states["optimizers"], strict=True):
        sizes = [
            [len(group["params"]) for group in groups]
            for groups in (optimizer.param_groups, state["param_groups"])
        ]
        if sizes[0] != sizes[1]:
            raise WeightsError(
                f"{source}: expected an optimizer over {sizes[0]} parameters, found "
                f"{sizes[1]}. Keep freeze_param, the loss weights and "
                "language_model_conf.lora as they were, or give another --output_dir."
            )
        optimizer.load_state_dict(state)
    for scheduler, state in zip(schedulers, states["schedulers"], strict=True):
        if scheduler is not None and state is not None:
            scheduler.load_state_dict(state)
    if scaler is not None:
        if states["scaler"] is None:
            logging.warning(f"{source}: no loss scale in it; starting anew")
        else:
            scaler.load_state_dict(states["scaler"])


# ---------------------------------------------------------------- whole or not at all


@contextlib.contextmanager
def atomic_torch_save() -> Iterator[None]:
    """Within, torch.save to a path writes a temporary file and renames it.

    ESPnet's trainer and its averaging write checkpoints in place: a kill or a full
    disk would leave half a file under the final name. They offer no hook, so
    torch.save itself is replaced for the time of the training.
    """
    original = torch.save

    def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(f, (str, os.PathLike)):
            original(obj, f, *args, **kwargs)
            return
        with atomic(os.fspath(f), durable=True) as stream:
            original(obj, stream, *args, **kwargs)

    torch.save = save
    try:
        yield
    finally:
        torch.save = original


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed `atomic_torch_save` left: it may be several GB."""
    for temporary in folder.glob(UNFINISHED):
        temporary.unlink(missing_ok=True)


def repair_experiment(
    folder: Path,
    best_model_criterion: Iterable[Sequence[str]],
    keep_nbest: int,
) -> None:
    """Finish what a killed trainer left undone after its last whole checkpoint.

    checkpoint.pth is written first at the end of an epoch. A kill right after it
    leaves no `Nepoch.pth`, stale links, or surplus model files; resuming would then
    miss that epoch in the n-best average.

    Args:
        folder: ESPnet's output_dir, with a checkpoint.pth.
        best_model_criterion: as in the config: (phase, key, min or max).
        keep_nbest: model files kept for each criterion.
    """
    try:
        states = read_checkpoint(folder / EPOCH_FILE, mmap=True)
    except WeightsError:
        return  # resume reads it again and says what is wrong with it
    if not {"model", "reporter"} <= set(states):
        return  # the same
    epoch, stats = states["reporter"]["epoch"], states["reporter"]["stats"]
    model_file = folder / f"{epoch}epoch.pth"
    if not model_file.is_file():
        with atomic_torch_save():
            torch.save({k: v.clone() for k, v in states["model"].items()}, model_file)
        logging.info(f"wrote {model_file} from checkpoint.pth, as a kill prevented it")
    _link(folder / "latest.pth", model_file.name)
    kept = {epoch}
    for phase, key, mode in best_model_criterion:
        values = {
            e: by_phase[phase][key]
            for e, by_phase in stats.items()
            if key in by_phase.get(phase, {})
        }
        if not values:
            continue
        ranked = sorted(values, key=lambda e: values[e] * (1 if mode == "min" else -1))
        kept.update(ranked[:keep_nbest])
        _link(folder / f"{phase}.{key}.best.pth", f"{ranked[0]}epoch.pth")
    for e in range(1, epoch):
        if e not in kept:
            (folder / f"{e}epoch.pth").unlink(missing_ok=True)


def _link(link: Path, target: str) -> None:
    if link.is_symlink() and os.readlink(link) == target:
        return
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def can_be_resumed(folder: Path) -> bool:
    """Whether a training in this folder has left a checkpoint."""
    return any((folder / name).is_file() for name in (EPOCH_FILE, STEP_FILE))


def read_training_config(folder: Path) -> Optional[dict]:
    """config.yaml of an experiment that can be resumed; None if there is none."""
    import yaml

    config = folder / "config.yaml"
    if not can_be_resumed(folder) or not config.is_file():
        return None
    try:
        with config.open(encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except yaml.YAMLError:
        content = None  # killed while ESPnet wrote it; it is written again now
    return content if isinstance(content, dict) else None
