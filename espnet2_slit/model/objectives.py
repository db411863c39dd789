"""The three losses of audio-text pre-training, and how they cross ranks.

Owns contrastive, matching and generation losses, hard-negative sampling and all
gathering between ranks; the passes that feed them are in `qformer`. Everything works
without a process group, with one sample, and with different batch sizes per rank.

A training step of the representation model, complete:

    memory = qformer.read_frames(frames, frame_lengths)
    queries = qformer.forward_queries(memory)
    summary = qformer.forward_text(text, text_lengths)
    contrast = contrastive(
        heads.embed_audio(queries.hidden), heads.embed_text(summary),
        heads.temperature(), clip_ids, text_ids,
    )
    negatives = sample_negative_pairs(contrast, seed)  # seed: equal on all ranks
    pairs = qformer.forward_triplets(
        memory, text, text_lengths,
        gather_memory(qformer, memory, frames, frame_lengths,
                      negatives.audio, contrast.world),
        *gather_text(text, text_lengths, negatives.text, contrast.world),
    )
    losses = {
        "contrastive": contrast.loss,
        "matching": matching(
            heads.match(pairs), negatives.labels, negatives.valid, len(text)
        ),
        "generation": generation(
            *qformer.forward_generation(queries.cache, text, text_lengths), len(text)
        ),
    }

Loss convention. ESPnet's Trainer weights the loss of rank r by its batch size B_r.
Every loss here is scaled so that sum_r(B_r * loss_r) / sum_r(B_r) is the loss that
one rank would compute on the whole batch, and so are the gradients after DDP's mean.
`global_mean` does this for sums over tokens or rows; use it for other losses too.

Shape letters as in the package: B clips of this rank, W ranks, WB clips of all ranks,
Q queries, E joint width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from espnet2_slit.model.qformer import AudioMemory, QFormer

GATHER_RULES = ("full", "detach")


# -- ranks --------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """The batch of all ranks, in the order of the ranks.

    Attributes:
        rank: of this process.
        sizes: B of each rank.
    """

    rank: int
    sizes: tuple[int, ...]

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
    def of(batch: int, device: torch.device) -> World:
        """Ask every rank for its batch size (one small exchange)."""
        if not _is_parallel():
            return World(0, (batch,))
        mine = torch.tensor([batch], device=device)
        sizes = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, mine)
        return World(dist.get_rank(), tuple(torch.cat(sizes).tolist()))


def _is_parallel() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _GatherFull(torch.autograd.Function):
    """Concatenate over ranks; backward sums each rank's gradient for our rows."""

    @staticmethod
    def forward(ctx, x: Tensor, world: World) -> Tensor:
        ctx.world = world
        return _gather_values(x, world)

    @staticmethod
    def backward(ctx, grad: Tensor):
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
        missing = int(longest) - x.size(1)
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
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


def gather_memory(
    qformer: QFormer,
    memory: AudioMemory,
    frames: Tensor,
    frame_lengths: Tensor,
    index: Tensor,
    world: World,
) -> AudioMemory:
    """Keys and values of clips `index` of all ranks, with the full gradient.

    On one rank the memory is indexed and nothing is computed again. On several, the
    frames travel (they have no gradient: the encoder is frozen) and each rank
    projects those it needs; the gradient of the projections is then complete after
    DDP's mean, and backward needs no communication.

    Args:
        qformer: whose projections to use.
        memory: of this rank's clips.
        frames: (B, T, D_a) of this rank's clips.
        frame_lengths: (B,).
        index: (N,) places among the clips of all ranks.
        world: of the contrastive loss.

    Returns:
        Memory of N clips.
    """
    if world.size == 1:
        return memory.select(index)
    return qformer.read_frames(
        fetch_rows(frames, index, world), fetch_rows(frame_lengths, index, world)
    )


def gather_text(
    text: Tensor, text_lengths: Tensor, index: Tensor, world: World
) -> tuple[Tensor, Tensor]:
    """Texts `index` of all ranks.

    Args:
        text: (B, L) ids of this rank.
        text_lengths: (B,).
        index: (N,) places among the texts of all ranks.
        world: of the contrastive loss.

    Returns:
        (N, L_max) ids and (N,) lengths.
    """
    return fetch_rows(text, index, world), fetch_rows(text_lengths, index, world)


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


# -- heads --------------------------------------------------------------------------


class Temperature(nn.Module):
    """A learned temperature that cannot leave its bounds.

    Inside the bounds it is a plain parameter, as in LAVIS. At a bound the gradient
    that would push it further out is dropped, so it neither stops the training nor
    drifts away unseen.

    Args:
        initial: start value.
        lowest: similarities are divided by no less.
        highest: and by no more.
    """

    def __init__(
        self, initial: float = 0.07, lowest: float = 0.01, highest: float = 1.0
    ):
        super().__init__()
        if not 0 < lowest <= initial <= highest:
            raise ValueError(
                "temperature must satisfy 0 < lowest <= initial <= highest; found "
                f"lowest {lowest}, initial {initial}, highest {highest}"
            )
        self.lowest, self.highest = lowest, highest
        # one dimension: DeepSpeed cannot broadcast scalars in bfloat16
        self.value = nn.Parameter(torch.tensor([float(initial)]))

    def forward(self) -> Tensor:
        """Scalar in [lowest, highest]."""
        return _Bounded.apply(self.value.squeeze(0), self.lowest, self.highest)


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, lowest: float, highest: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.bounds = lowest, highest
        return value.clamp(lowest, highest)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (value,) = ctx.saved_tensors
        lowest, highest = ctx.bounds
        # descent moves against the gradient: a positive one lowers the value
        outwards = ((value <= lowest) & (grad > 0)) | ((value >= highest) & (grad < 0))
        return grad.masked_fill(outwards, 0.0), None, None


class RepresentationHeads(nn.Module):
    """The small layers between the Q-Former and its three losses.

    Args:
        width: D_q.
        joint_width: E of the contrastive space.
        temperature: start value.
        min_temperature: lower bound.
        max_temperature: upper bound.
    """

    def __init__(
        self,
        width: int,
        joint_width: int = 256,
        temperature: float = 0.07,
        min_temperature: float = 0.01,
        max_temperature: float = 1.0,
    ):
        super().__init__()
        self.audio_projection = nn.Linear(width, joint_width)
        self.text_projection = nn.Linear(width, joint_width)
        self.matching_head = nn.Linear(width, 2)
        self.temperature = Temperature(temperature, min_temperature, max_temperature)

    def embed_audio(self, queries: Tensor) -> Tensor:
        """(B, Q, D_q) -> (B, Q, E) float32, unit length."""
        return F.normalize(self.audio_projection(queries).float(), dim=-1)

    def embed_text(self, summary: Tensor) -> Tensor:
        """(S, D_q) -> (S, E) float32, unit length."""
        return F.normalize(self.text_projection(summary).float(), dim=-1)

    def match(self, pairs: Tensor) -> Tensor:
        """(N, Q, D_q) -> (N, 2) logits, [:, 1] = they match; mean over the queries."""
        return self.matching_head(pairs).float().mean(dim=1)


# -- contrastive --------------------------------------------------------------------


@dataclass
class ContrastiveOutput:
    """Result of `contrastive`.

    Attributes:
        loss: scalar float32, mean over this rank's rows and both directions.
        audio_to_text: (B, WB) similarities of our clips / temperature.
        text_to_audio: (B, WB) similarities of our texts / temperature.
        positives: (B, WB), True = same clip or equal text: never a negative.
        world: batch sizes of all ranks; our sample i is column `world.offset + i`.
    """

    loss: Tensor
    audio_to_text: Tensor
    text_to_audio: Tensor
    positives: Tensor
    world: World

    def accuracy(self) -> Tensor:
        """Share of our rows whose best column is a positive, mean of both ways."""
        hits = [
            self.positives.gather(1, s.argmax(1, keepdim=True)).float().mean()
            for s in (self.audio_to_text, self.text_to_audio)
        ]
        return torch.stack(hits).mean()


def similarity(audio: Tensor, text: Tensor) -> Tensor:
    """Best query of each clip for each text, one matrix product.

    A broadcast product would hold N x M x Q x E numbers; this holds N x Q x M.

    Args:
        audio: (N, Q, E).
        text: (M, E).

    Returns:
        (N, M) float32.
    """
    with torch.autocast(audio.device.type, enabled=False):
        products = audio.float().flatten(0, 1) @ text.float().t()
    return products.view(audio.size(0), audio.size(1), -1).max(dim=1).values


def contrastive(
    audio: Tensor,
    text: Tensor,
    temperature: Tensor | float,
    clip_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    label_smoothing: float = 0.1,
    gather: str = "full",
) -> ContrastiveOutput:
    """Audio-text contrastive loss; the best-matching query speaks for its clip.

    Args:
        audio: (B, Q, E), unit length along E.
        text: (B, E), unit length; text i belongs to clip i.
        temperature: > 0, scalar; bounded by the model.
        clip_ids: (B,) integers; pairs of one clip are all positives. None: distinct.
        text_ids: (B,) integers; equal texts are positives too. None: distinct.
        label_smoothing: in [0, 1), spread over all WB columns; the rest is shared
            equally by the positives of a row.
        gather: see `gather_rows`.

    Returns:
        Loss in nats, similarities and positives; see `ContrastiveOutput`.

    Raises:
        ValueError: B differs between the inputs, or the rule is unknown.

    Source: BLIP-2 section 3.1; salesforce/LAVIS@506965b blip2_qformer.py:126-174.
        Differs: one matrix product, repeated clips and texts are positives, any B.
    """
    batch, device = audio.size(0), audio.device
    if text.size(0) != batch or audio.size(-1) != text.size(-1):
        raise ValueError(
            "audio must be (B, Q, E) and text (B, E) with equal B and E; found "
            f"{tuple(audio.shape)} and {tuple(text.shape)}"
        )
    world = World.of(batch, device)
    audio, text = audio.float(), text.float()
    all_audio = gather_rows(audio, world, gather)
    all_text = gather_rows(text, world, gather)
    audio_to_text = similarity(audio, all_text) / temperature
    if world.size == 1 and gather == "full":
        text_to_audio = audio_to_text.t()
    else:
        text_to_audio = similarity(all_audio, text).t() / temperature

    places = torch.arange(batch, device=device) + world.offset
    columns = torch.arange(world.total, device=device)
    positives = places[:, None] == columns
    for ids in (clip_ids, text_ids):
        if ids is not None:
            ids = ids.reshape(batch)
            positives = positives | (ids[:, None] == gather_rows(ids, world, "detach"))

    targets = positives.float()
    targets = targets / targets.sum(1, keepdim=True) * (1 - label_smoothing)
    targets = targets + label_smoothing / world.total
    loss = torch.stack(
        [
            -(targets * scores.log_softmax(dim=1)).sum(1).mean()
            for scores in (audio_to_text, text_to_audio)
        ]
    ).mean()
    return ContrastiveOutput(loss, audio_to_text, text_to_audio, positives, world)


# -- matching -----------------------------------------------------------------------


@dataclass
class Negatives:
    """Hard negatives of one step.

    Attributes:
        audio: (B,) for each of our texts a clip among those of all ranks.
        text: (B,) for each of our clips a text among those of all ranks.
        labels: (3 B,) 1 for the positives, then 0 for both kinds of negatives.
        valid: (3 B,) False where no legal negative exists; the positive of such a
            row is left out as well, alone it would only teach the head to say yes.
    """

    audio: Tensor
    text: Tensor
    labels: Tensor
    valid: Tensor


def _noise(rows: Tensor, columns: Tensor, seed: int | Tensor) -> Tensor:
    """Uniform (0, 1) numbers that depend on (seed, row, column) and nothing else.

    A counter-based generator, so every rank draws the same numbers for the same pair
    of samples however they are spread over ranks, and needs only its own rows.
    """

    def mix(x: Tensor) -> Tensor:  # splitmix64's finaliser, int64 wraps around
        x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
        x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
        return x ^ ((x >> 31) & 0x1FFFFFFFF)

    seed = torch.as_tensor(seed, dtype=torch.int64, device=rows.device)
    step = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number
    row_state = mix(mix(seed * step) + (rows + 1) * step)
    bits = mix(row_state[:, None] + (columns + 1) * step)
    # 23 bits: with 24 the largest value would round to 1 and give infinite noise
    return ((bits & 0x7FFFFF).float() + 0.5) / 2**23


def sample_negatives(
    similarity: Tensor,
    positives: Tensor,
    seed: int | Tensor,
    offset: int = 0,
    places: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw for each row one column that is not a positive, by softmax(similarity).

    Gumbel's trick in place of `multinomial`: no loop, no wait for the device, and the
    same draw whatever the number of ranks.

    Args:
        similarity: (B, WB), divided by the temperature.
        positives: (B, WB), True = must not be drawn.
        seed: equal on all ranks, different at each step and for each direction.
        offset: place of the first row among the samples of all ranks.
        places: (WB,) integers that name the samples of all ranks, so that the draw
            depends on them and not on their order; None: their order.

    Returns:
        index (B,) and valid (B,), False where every column is a positive (the index
        is then 0 and must be masked).
    """
    batch, total = similarity.shape
    device = similarity.device
    if places is None:
        places = torch.arange(total, device=device)
    uniform = _noise(places[offset : offset + batch], places, seed)
    gumbel = -(-uniform.log()).log()
    scores = similarity.detach().float() + gumbel
    scores = scores.masked_fill(positives, float("-inf"))
    return scores.argmax(dim=1), ~positives.all(dim=1)


def sample_negative_pairs(
    contrast: ContrastiveOutput, seed: int | Tensor, places: Tensor | None = None
) -> Negatives:
    """Hard negatives for both directions, with labels in the order of the pairs.

    Args:
        contrast: of this step.
        seed: a step counter, equal on all ranks (an int or a buffer of the model).
        places: see `sample_negatives`.

    Returns:
        See `Negatives`; the order is that of `QFormer.forward_triplets`.
    """
    offset = contrast.world.offset
    audio, audio_valid = sample_negatives(
        contrast.text_to_audio, contrast.positives, 2 * seed, offset, places
    )
    text, text_valid = sample_negatives(
        contrast.audio_to_text, contrast.positives, 2 * seed + 1, offset, places
    )
    labels = torch.zeros(3 * len(audio), dtype=torch.long, device=audio.device)
    labels[: len(audio)] = 1
    valid = torch.cat((audio_valid | text_valid, audio_valid, text_valid))
    return Negatives(audio, text, labels, valid)


def matching(
    logits: Tensor, labels: Tensor, valid: Tensor | None, batch_size: int
) -> Tensor:
    """Does this text belong to this audio? Cross-entropy over the valid pairs.

    Args:
        logits: (N, 2), usually N = 3 B.
        labels: (N,) 1 = yes.
        valid: (N,) False = leave out; None: all count.
        batch_size: B of this rank.

    Returns:
        Scalar float32, this rank's share of the mean over all ranks' valid pairs.

    Source: salesforce/LAVIS@506965b blip2_qformer.py:176-247. Differs: masked rows.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    if valid is None:
        return global_mean(losses.sum(), losses.numel(), batch_size)
    # where, not a product: a masked row may hold any number
    total = torch.where(valid, losses, 0.0).sum()
    return global_mean(total, valid.sum(), batch_size)


# -- generation ---------------------------------------------------------------------


def generation(
    logits: Tensor, targets: Tensor, batch_size: int, label_smoothing: float = 0.1
) -> Tensor:
    """Cross-entropy of the next caption token, mean over the tokens of all ranks.

    Args:
        logits: (N, V) of the positions that predict a real token.
        targets: (N,) ids.
        batch_size: B of this rank.
        label_smoothing: in [0, 1), spread over the vocabulary.

    Returns:
        Scalar float32, this rank's share of the mean over all ranks' tokens.

    Source: salesforce/LAVIS@506965b blip2_qformer.py:249-266.
    """
    total = F.cross_entropy(
        logits.float(), targets, reduction="sum", label_smoothing=label_smoothing
    )
    return global_mean(total, targets.numel(), batch_size)
