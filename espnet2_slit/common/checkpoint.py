"""Weight files: read safely, written whole or not at all, carried from stage to stage.

Owns what ESPnet leaves open: weights_only reading, atomic writing, the repair of an
experiment folder after a kill, and the rule by which a training stage starts from the
one before it. What the weights are is the business of the models.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional, Sequence

import numpy as np
import torch

from espnet2_slit.common.files import UNFINISHED, atomic

# Beside tensors, ESPnet's checkpoint.pth holds its reporter: numbers and durations.
_CHECKPOINT_GLOBALS = [
    datetime.timedelta,
    np.dtype,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]  # private, and pickled
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "bool")),
]
# What torch.load raises for half a file, an empty one, or one of another kind.
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
)
NAMES_SHOWN = 10  # of a list of weights in a message
EPOCH_FILE = "checkpoint.pth"  # ESPnet's, of the end of the last epoch
STEP_FILE = "step.pth"  # ours, of an epoch under way (see step_checkpoint)


class WeightsError(RuntimeError):
    """Weights that cannot be read or do not fit; says expected, found and remedy."""


def read_checkpoint(
    path: str | Path, map_location: Any = "cpu", mmap: bool = False
) -> dict:
    """Read a file of torch.save; tensors, numbers and plain containers only.

    Args:
        path: of the file.
        map_location: as for torch.load.
        mmap: read tensors when they are used: for a look into a file of several GB.

    Returns:
        What was saved.

    Raises:
        WeightsError: missing, truncated, or not such a file.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            f"{path}: expected a weights file, found "
            f"{'a folder' if path.is_dir() else 'nothing'}. Give the .pth file of a "
            "finished training stage."
        )
    try:
        with torch.serialization.safe_globals(_CHECKPOINT_GLOBALS):
            content = torch.load(
                path, map_location=map_location, weights_only=True, mmap=mmap
            )
    except _UNREADABLE as error:
        raise WeightsError(
            f"{path}: expected a PyTorch file of tensors, found {path.stat().st_size} "
            f"bytes that cannot be read as one ({_first_line(error)}). It is "
            "truncated or of another kind: delete it and run the stage again, or "
            "give another file."
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(
            f"{path}: expected a dict of named tensors, found "
            f"{type(content).__name__}. Give the .pth file of a training stage."
        )
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_weights(path: str | Path, map_location: Any = "cpu") -> dict:
    """State dict of a model file, a checkpoint.pth or a DeepSpeed checkpoint."""
    content = read_checkpoint(path, map_location)
    for wrapper in ("model", "module"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    strangers = [k for k, v in content.items() if not isinstance(v, torch.Tensor)]
    if strangers or not content:
        raise WeightsError(
            f"{path}: expected named tensors, found "
            f"{shown(strangers) if strangers else 'an empty file'}. Give the .pth "
            "file of a training stage."
        )
    return content


def load_strictly(
    module: torch.nn.Module, weights: dict, source: str, prefix: str = ""
) -> None:
    """Load all of `weights` into all of `module`, or raise.

    Args:
        module: takes the weights.
        weights: state dict.
        source: where they come from, for the message.
        prefix: name of `module` in its model, for the message.

    Raises:
        WeightsError: missing, unexpected or misshapen weights, listed.
    """
    expected = module.state_dict()
    faults = mismatches(expected, weights)
    if faults:
        raise WeightsError(
            f"{source}: the weights do not fit {prefix or type(module).__name__}: "
            f"{'; '.join(faults)}. Use the config.yaml that lies beside the file."
        )
    module.load_state_dict(weights)


def mismatches(expected: dict, found: dict) -> list[str]:
    """What `found` lacks, has too much, or has in another shape; empty if it fits."""
    missing = [k for k in expected if k not in found]
    unexpected = [k for k in found if k not in expected]
    misshapen = [
        f"{k} expected {tuple(expected[k].shape)}, found {tuple(found[k].shape)}"
        for k in expected
        if k in found and expected[k].shape != found[k].shape
    ]
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing ({shown(missing)})")
    if unexpected:
        faults.append(f"{len(unexpected)} unexpected ({shown(unexpected)})")
    if misshapen:
        faults.append(f"{len(misshapen)} misshapen ({shown(misshapen)})")
    return faults


def shown(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    rest = len(names) - NAMES_SHOWN
    return ", ".join(map(str, names[:NAMES_SHOWN])) + (
        f" and {rest} more" if rest > 0 else ""
    )


# ---------------------------------------------------------------- from stage to stage


def load_init_params(
    model: torch.nn.Module,
    specs: Sequence[str],
    ignore_mismatch: bool = False,
    map_location: Any = "cpu",
) -> None:
    """ESPnet's --init_param, without silence: every weight is loaded or accounted for.

    A spec is `file[:source prefix[:target prefix[:excluded prefixes]]]` as in ESPnet.
    Parts that belong to other stages (`model.parts_of_other_stages`) are left out. If
    a file is given without prefixes, the files together must cover the model, except
    for parts that are new in this stage (`model.new_parts`): these keep their
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
        others = tuple(getattr(model, "parts_of_other_stages", ()))
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
        for part in getattr(model, "new_parts", ())
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
