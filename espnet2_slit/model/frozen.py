"""Keeps pretrained modules frozen: eval mode, own dtype, outside checkpoints and DDP.

Owns the holder (`Frozen`); what the held module computes is the business of
`audio_encoder` and `language_model`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """Holds a pretrained module that training must neither change nor save.

    The module is kept outside torch's registry, so `parameters()`, `state_dict()`,
    the optimizer, ESPnet's `--init_param`, n-best averaging and DDP's broadcast do not
    see it. It stays in eval mode through `model.train()`, follows `.to(device)`, and
    keeps its own dtype through `.half()` and ESPnet's `.to(dtype=..., device=...)`.
    Its parameters take no gradient; gradients do flow through it to its inputs.

    Args:
        module: the pretrained module. It is changed in place: eval, no gradients.
        dtype: cast its floating-point tensors to this dtype once; None leaves them.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None = None):
        super().__init__()
        module.requires_grad_(False).eval()
        if dtype is not None:
            module.to(dtype=dtype)
        # A tuple is not a Module, so nn.Module.__setattr__ does not register it.
        self._held = (module,)
        super().train(False)

    @property
    def module(self) -> nn.Module:
        """The held module."""
        return self._held[0]

    @property
    def device(self) -> torch.device:
        """Where the held module's first tensor is; cpu if it has none."""
        for tensors in (self.module.parameters(), self.module.buffers()):
            for tensor in tensors:
                return tensor.device
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point tensor; float32 if there is none."""
        for tensors in (self.module.parameters(), self.module.buffers()):
            for tensor in tensors:
                if tensor.is_floating_point():
                    return tensor.dtype
        return torch.float32

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Forwards to the held module."""
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> "Frozen":
        """Stays in eval mode whatever `mode` says."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Frozen":
        # `.to()`, `.cuda()`, `.half()`, ... all arrive here as a function of tensors.
        # An empty probe tells which device it leads to; its dtype is not followed.
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device=self.device, dtype=self.dtype)).device
        if device != self.device:
            if getattr(self.module, "is_quantized", False):
                raise RuntimeError(
                    f"{type(self.module).__name__} was loaded in 8 or 4 bits on "
                    f"{self.device} and cannot be moved to {device}. Start the process "
                    f"with {device} as its current device (CUDA_VISIBLE_DEVICES), or "
                    "load without load_in_bits."
                )
            self.module.to(device=device)
        return self

    def __deepcopy__(self, memo: dict) -> "Frozen":
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for key, value in self.__dict__.items():
            twin.__dict__[key] = copy.deepcopy(value, memo)
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"Frozen holds a pretrained {type(self.module).__name__} that is left out "
            "of checkpoints on purpose, so it is not pickled. Save the state_dict() of "
            "the model around it, and build the model again from its config to load."
        )

    def extra_repr(self) -> str:
        """Shows what is held, since torch cannot see it."""
        count = sum(p.numel() for p in self.module.parameters())
        kind = type(self.module).__name__
        return f"{kind}, {count:,} frozen parameters, {self.dtype}"
