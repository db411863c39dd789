"""In which precision a machine computes fastest without harm: one answer for all rooms.

Owns what "auto" means. Where bfloat16 products are emulated (a CPU with AVX-512 but
without its bfloat16 instructions, a GPU before Ampere) a training step in bfloat16
takes about 2.5 times as long as in float32, though PyTorch runs it without a word.
"""

from __future__ import annotations

import contextlib
import logging
from functools import lru_cache

import torch

PRECISIONS = ("auto", "float32", "bfloat16")


def has_bfloat16(device: str | torch.device = "cpu") -> bool:
    """True if the hardware multiplies bfloat16 by instructions of its own.

    Args:
        device: "cpu", "cuda", "cuda:N" or a torch.device.
    """
    if torch.device(device).type == "cuda":
        if not torch.cuda.is_available():
            return False
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.device(device).type != "cpu":
        return False
    # Not torch.ops.mkldnn._is_mkldnn_bf16_supported: that is true where it emulates.
    # PyTorch has no public name for these; where one is absent, nothing is promised.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def choose_precision(
    precision: str,
    device: str | torch.device = "cpu",
    allowed: tuple[str, ...] = PRECISIONS,
    option: str = "precision",
) -> str:
    """The precision to compute in: "auto" becomes what the hardware is good at.

    Args:
        precision: as configured.
        device: what computes.
        allowed: values that the option takes.
        option: name of the option, for the error.

    Returns:
        `precision`, or for "auto" "bfloat16" or "float32". Said once for each device.

    Raises:
        ValueError: not one of `allowed`.
    """
    check_precision(precision, allowed, option)
    if precision != "auto":
        return precision
    return _chosen(torch.device(device).type, has_bfloat16(device))


def check_precision(
    precision: str, allowed: tuple[str, ...] = PRECISIONS, option: str = "precision"
) -> None:
    """A name that is known; what "auto" is waits until the device is known.

    Raises:
        ValueError: not one of `allowed`.
    """
    if precision not in allowed:
        raise ValueError(
            f"{option}: expected one of {', '.join(allowed)}, found {precision!r}"
        )


def default_device() -> str:
    """The device of a part that is built before it is moved: a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@lru_cache(maxsize=None)
def _chosen(kind: str, fast: bool) -> str:
    """What "auto" is, logged at the first question."""
    precision = "bfloat16" if fast else "float32"
    # A logger of its own: logging.info would set the root logger up before ESPnet does.
    logging.getLogger(__name__).info(
        f"precision: auto is {precision} here ({describe(kind, fast)})"
    )
    return precision


def describe(device: str | torch.device, fast: bool | None = None) -> str:
    """What was found about a device, in words."""
    kind = torch.device(device).type
    fast = has_bfloat16(device) if fast is None else fast
    name = {"cpu": "CPU", "cuda": "GPU"}.get(kind, kind)
    return f"this {name} has {'' if fast else 'no '}bfloat16 instructions"


def autocast(
    precision: str, device: str | torch.device = "cpu"
) -> contextlib.AbstractContextManager[None]:
    """A context that computes in `precision`; float32 leaves an outer autocast alone.

    Args:
        precision: one of `PRECISIONS`.
        device: what computes.
    """
    if choose_precision(precision, device) == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)
