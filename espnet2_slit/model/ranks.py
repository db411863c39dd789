"""How one step is spread over the ranks of a training.

Owns everything that passes between ranks: rows with or without gradient, sequences,
sums. All of it works without a process group and with batches of unequal size.

Loss convention. ESPnet's Trainer weights the loss of rank r by its batch size B_r.
Every loss here is scaled so that sum_r(B_r * loss_r) / sum_r(B_r) is the loss that
one rank would compute on the whole batch, and so are the gradients after DDP's mean.
`global_mean` does this for sums over tokens or rows; use it for other losses too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from espnet2_slit.common.padded import Padded, lengthen

if TYPE_CHECKING:
    from espnet2_slit.model.qformer import QFormer
    from espnet2_slit.model.qformer_layers import FrameKV

GATHER_RULES = ("full", "detach")


@dataclass(frozen=True)
class World:
    """The batch of all ranks, in the order of the ranks.

    Attributes:
        rank: of this process.
        sizes: B of each rank.
        columns: the largest second axis of any rank.
    """

    rank: int
    sizes: tuple[int, ...]
    columns: int

    @property
    def offset(self) -> int:
        """Place of this rank's first sample among all."""
        return sum(self.sizes[: self.rank])

    @property
    def total(self) -> int:
        """Samples of all ranks, WB."""
        return sum(self.sizes)

    @property
    def size(self) -> int:
        """Number of ranks, W."""
        return len(self.sizes)

    @staticmethod
    def of(x: Tensor) -> World:
        """Ask every rank for the first two sizes of its `x` (one small exchange)."""
        batch, columns = x.shape[:2]
        if not _is_parallel():
            return World(0, (batch,), columns)
        mine = torch.tensor([[batch, columns]], device=x.device)
        shapes = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(shapes, mine)
        batches, widths = zip(*torch.cat(shapes).tolist(), strict=True)
        return World(dist.get_rank(), tuple(batches), max(widths))


def _is_parallel() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _GatherFull(torch.autograd.Function):
    """Concatenate over ranks; backward sums each rank's gradient for our rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        ctx.world = world
        return _gather_values(x, world)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        world = ctx.world
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad.narrow(0, world.offset, world.sizes[world.rank]), None


def _gather_values(x: Tensor, world: World) -> Tensor:
    largest = max(world.sizes)
    padded = x.detach().new_zeros(largest, *x.shape[1:])
    padded[: x.size(0)] = x.detach()
    parts = [torch.empty_like(padded) for _ in world.sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, world.sizes, strict=True)])


def gather_rows(x: Tensor, world: World, rule: str = "full") -> Tensor:
    """Rows of all ranks, (B, ...) -> (WB, ...), in the order of the ranks.

    Args:
        x: this rank's rows.
        world: sizes of all ranks.
        rule: "full": the gradient flows through the gathered rows of every rank, as
            in CLIP; after DDP's mean it is the gradient of one rank with the whole
            batch. "detach": no gradient at all through the result, also on one rank,
            as in LAVIS.

    Returns:
        (WB, ...).

    Raises:
        ValueError: unknown rule.
    """
    if rule not in GATHER_RULES:
        raise ValueError(f"gather rule must be one of {GATHER_RULES}, found {rule!r}")
    if world.size == 1:
        return x if rule == "full" else x.detach()
    if rule == "full" and x.is_floating_point():
        return _GatherFull.apply(x, world)
    return _gather_values(x, world)


def fetch_rows(x: Tensor, index: Tensor, world: World) -> Tensor:
    """Rows `index` of all ranks' `x`, without gradient.

    One rank after the other shows its rows and each rank keeps those it asked for, so
    memory stays at one rank's rows whatever W is. The second axis (frames, tokens) may
    differ in length between ranks; the result has the longest, zero-padded.

    Args:
        x: (B, L, ...) or (B,) rows of this rank.
        index: (N,) places in the concatenation of all ranks.
        world: sizes of all ranks.

    Returns:
        (N, L_max, ...) or (N,).
    """
    if world.size == 1:
        return x.detach()[index]
    x = x.detach()
    if x.dim() > 1:
        longest = torch.tensor([x.size(1)], device=x.device)
        dist.all_reduce(longest, op=dist.ReduceOp.MAX)
        x = lengthen(x, int(longest))
    result = x.new_zeros(index.numel(), *x.shape[1:])
    start = 0
    for rank, size in enumerate(world.sizes):
        shown = x.new_empty(size, *x.shape[1:])
        if rank == world.rank:
            shown.copy_(x)
        dist.broadcast(shown, src=rank)
        here = (index >= start) & (index < start + size)
        rows = shown[(index - start).clamp(0, size - 1)]
        result = torch.where(here.view(-1, *[1] * (x.dim() - 1)), rows, result)
        start += size
    return result


def fetch(sequences: Padded, index: Tensor, world: World) -> Padded:
    """Sequences `index` of all ranks, as `fetch_rows`.

    Args:
        sequences: (B, L, ...) of this rank.
        index: (N,) places among the sequences of all ranks.
        world: sizes of all ranks.

    Returns:
        (N, L_max, ...).
    """
    values, lengths = sequences
    if lengths is None:
        lengths = torch.full((len(values),), values.size(1), device=values.device)
    return Padded(fetch_rows(values, index, world), fetch_rows(lengths, index, world))


def gather_memory(
    qformer: QFormer, memory: FrameKV, frames: Padded, index: Tensor, world: World
) -> FrameKV:
    """Keys and values of clips `index` of all ranks, with the full gradient.

    On one rank the memory is indexed and nothing is computed again. On several, the
    frames travel (they have no gradient: the encoder is frozen) and each rank
    projects those it needs; the gradient of the projections is then complete after
    DDP's mean, and backward needs no communication.

    Args:
        qformer: whose projections to use.
        memory: of this rank's clips.
        frames: (B, T, D_a) of this rank's clips.
        index: (N,) places among the clips of all ranks.
        world: of the contrastive loss.

    Returns:
        Memory of N clips.
    """
    if world.size == 1:
        return memory.select(index)
    return qformer.encode_frames(fetch(frames, index, world))


def global_mean(total: Tensor, count: Tensor | int, batch_size: int) -> Tensor:
    """This rank's share of sum(total) / sum(count) over all ranks.

    Weighted by batch sizes over the ranks (as ESPnet's Trainer does), the shares give
    that mean exactly, however unevenly the counts are spread.

    Args:
        total: scalar sum over this rank's tokens or rows, with gradient.
        count: how many they are.
        batch_size: B of this rank, the weight that the model returns.

    Returns:
        Scalar; 0 (with a graph) if nothing was counted on any rank.
    """
    count = torch.as_tensor(count, device=total.device, dtype=torch.float32)
    if not _is_parallel():
        return total / count.clamp(min=1)
    sums = torch.stack((count, count.new_tensor(float(batch_size))))
    dist.all_reduce(sums)
    return total / sums[0].clamp(min=1) * (sums[1] / batch_size)
