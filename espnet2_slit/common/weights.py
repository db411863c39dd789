"""Weight files: one safe reader and one strict loader for all of them.

Owns reading without unpickling and loading without silence. What the weights are is the
business of the models.
"""

from __future__ import annotations

import datetime
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

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


class WeightsError(ValueError):
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
    path = _existing(path)
    try:
        with torch.serialization.safe_globals(_CHECKPOINT_GLOBALS):
            content = torch.load(
                path, map_location=map_location, weights_only=True, mmap=mmap
            )
    except _UNREADABLE as error:
        raise WeightsError(
            f"{path}: expected a PyTorch file of tensors and plain values, found "
            f"{path.stat().st_size} bytes that cannot be read as one "
            f"({_first_line(error)}). It is truncated or of another kind: copy it "
            "again, delete it and run the stage again, or give another file. Pickled "
            "objects are not opened: save plain values where you trust them."
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(
            f"{path}: expected a dict of tensors, found {type(content).__name__}. Give "
            "the .pth file of a training stage."
        )
    return content


def read_weights(path: str | Path, map_location: Any = "cpu") -> dict[str, Tensor]:
    """The named tensors of a file.

    Args:
        path: of safetensors, of a state dict, of a checkpoint that holds one under
            "model" (ESPnet, LAVIS) or "module" (DeepSpeed).
        map_location: as for torch.load.

    Returns:
        The state dict.

    Raises:
        WeightsError: missing, truncated, or of another kind.
    """
    if Path(path).suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(_existing(path), device=str(map_location))
        except SafetensorError as error:
            raise WeightsError(
                f"{path}: expected safetensors, found {Path(path).stat().st_size} "
                f"bytes that cannot be read as such ({_first_line(error)}). It is "
                "truncated or of another kind: copy it again."
            ) from error
    content = read_checkpoint(path, map_location)
    for wrapper in ("model", "module"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    strangers = [k for k, v in content.items() if not isinstance(v, Tensor)]
    if strangers or not content:
        raise WeightsError(
            f"{path}: expected a dict of tensors, or one under the key 'model'; found "
            f"{shown(strangers) if strangers else 'an empty file'}. Give the .pth "
            "file of a training stage."
        )
    return content


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            f"{path}: expected a weights file, found "
            f"{'a folder' if path.is_dir() else 'nothing'}. Give the .pth file of a "
            "finished training stage, or the one that was published."
        )
    return path


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def load_strictly(
    module: torch.nn.Module,
    weights: dict[str, Tensor],
    source: str | Path,
    remedy: str = "Use the config.yaml that lies beside the file.",
    may_lack: tuple[str, ...] = (),
    may_have: tuple[str, ...] = (),
) -> None:
    """Load all of `weights` into all of `module`, or raise.

    Args:
        module: takes the weights.
        weights: state dict.
        source: where they come from, for the message.
        remedy: last sentence of the error.
        may_lack: beginnings of names that the weights may leave out.
        may_have: beginnings of names that the weights may have in excess.

    Raises:
        WeightsError: missing, unexpected or misshapen weights, listed.
    """
    own = module.state_dict()
    expected = {n: t for n, t in own.items() if n in weights or not _is(n, may_lack)}
    given = {n: t for n, t in weights.items() if n in own or not _is(n, may_have)}
    faults = mismatches(expected, given)
    if faults:
        raise WeightsError(
            f"{source}: the weights do not fit {type(module).__name__}: "
            f"{'; '.join(faults)}. {remedy}"
        )
    module.load_state_dict({**own, **given})


def _is(name: str, beginnings: tuple[str, ...]) -> bool:
    return name.startswith(beginnings)


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
