"""A batch of sequences of unequal length: one padded tensor and its lengths."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100  # as a target: nothing is predicted here


class Padded(NamedTuple):
    """Sequences padded at their ends to the longest.

    Attributes:
        values: (B, L, ...); what lies beyond a length may be anything.
        lengths: (B,); None: all have length L.
    """

    values: Tensor
    lengths: Tensor | None = None

    def mask(self) -> Tensor:
        """(B, L), True where a value is real."""
        batch, longest = self.values.shape[:2]
        positions = torch.arange(longest, device=self.values.device)
        if self.lengths is None:
            return torch.ones_like(positions, dtype=torch.bool).expand(batch, -1)
        return positions < self.lengths.to(positions.device)[:, None]

    def select(self, index: Tensor) -> Padded:
        """Sequences `index` (N,) of these."""
        lengths = None if self.lengths is None else self.lengths[index]
        return Padded(self.values[index], lengths)

    def to(self, device: torch.device | str) -> Padded:
        """These on another device."""
        lengths = None if self.lengths is None else self.lengths.to(device)
        return Padded(self.values.to(device), lengths)

    def repeat_each(self, times: int) -> Padded:
        """(B, L, ...) -> (B * times, L, ...), copies of a sequence together."""
        if times == 1:
            return self
        lengths = self.lengths
        if lengths is not None:
            lengths = lengths.repeat_interleave(times)
        return Padded(self.values.repeat_interleave(times, dim=0), lengths)

    @staticmethod
    def cat(parts: list[Padded]) -> Padded:
        """All sequences of several batches, in their order; zeros behind the shorter.

        Args:
            parts: of equal kind; lengths may be None only in all of them.
        """
        longest = max(part.values.size(1) for part in parts)
        values = [lengthen(part.values, longest) for part in parts]
        lengths = [part.lengths for part in parts if part.lengths is not None]
        return Padded(torch.cat(values), torch.cat(lengths) if lengths else None)


def is_on_host(lengths: Tensor) -> bool:
    """Whether a look at these numbers is free; elsewhere it waits for all work.

    While a graph is traced, which is to serve any lengths, there is nothing to look at.
    """
    return lengths.device.type == "cpu" and not torch.compiler.is_exporting()


def lengthen(x: Tensor, longest: int) -> Tensor:
    """(B, L, ...) -> (B, longest, ...), zeros at the end."""
    missing = longest - x.size(1)
    if not missing:
        return x
    return torch.nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
