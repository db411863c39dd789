"""The three losses of audio-text pre-training and their small layers.

Owns the contrastive, matching and generation losses and the drawing of hard negatives;
the passes that feed them are in `qformer`, what crosses ranks in `ranks` (which states
the convention of all losses), the step itself in `espnet_model`.

Shape letters as in the package: B clips of this rank, W ranks, WB clips of all ranks,
Q queries of a clip, E joint width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_slit.common.padded import IGNORED, Padded
from espnet2_slit.model.ranks import World, gather_rows, global_mean

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
    def forward(ctx: Any, value: Tensor, lowest: float, highest: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.bounds = lowest, highest
        return value.clamp(lowest, highest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
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

    def embed_audio(self, queries: Padded) -> Tensor:
        """(B, Q, D_q) -> (B, Q, E) float32, unit length.

        Where a clip has fewer queries than others, its first one stands in for those
        that it lacks: the best of them is what it was, and no mask is needed.
        """
        embedded = F.normalize(self.audio_projection(queries.values).float(), dim=-1)
        if queries.lengths is None:
            return embedded
        return torch.where(queries.mask()[..., None], embedded, embedded[:, :1])

    def embed_text(self, text_cls: Tensor) -> Tensor:
        """(S, D_q) -> (S, E) float32, unit length."""
        return F.normalize(self.text_projection(text_cls).float(), dim=-1)

    def match(self, pairs: Padded) -> Tensor:
        """(N, Q, D_q) -> (N, 2) logits, [:, 1] = they match; mean over the queries."""
        logits = self.matching_head(pairs.values).float()
        if pairs.lengths is None:
            return logits.mean(dim=1)
        total = torch.where(pairs.mask()[..., None], logits, 0.0).sum(dim=1)
        return total / pairs.lengths[:, None]


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

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """In-batch recall of both directions, and how far the similarities spread."""
        stats = {}
        for direction in ("audio_to_text", "text_to_audio"):
            best = getattr(self, direction).argmax(dim=1, keepdim=True)
            hits = self.positives.gather(1, best)
            stats[f"recall_{direction}"] = hits.float().mean()
        # collapsed: all similarities of a clip equal
        spread = self.audio_to_text.std(dim=1, unbiased=False)
        return stats | {"similarity_spread": spread.mean()}


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
        audio: (B, Q, E), unit length along E; Q may differ between ranks.
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
    world = World.of(audio)
    audio, text = audio.float(), text.float()
    if audio.size(1) < world.columns:  # as `embed_audio` fills up within a rank
        missing = world.columns - audio.size(1)
        audio = torch.cat((audio, audio[:, :1].expand(-1, missing, -1)), dim=1)
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

    (R,) rows, (C,) columns and (...) seeds -> (..., R, C).

    A counter-based generator, so every rank draws the same numbers for the same pair
    of samples however they are spread over ranks, and needs only its own rows.
    """

    def mix(x: Tensor) -> Tensor:  # splitmix64's finaliser, int64 wraps around
        x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
        x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
        return x ^ ((x >> 31) & 0x1FFFFFFFF)

    seed = torch.as_tensor(seed, dtype=torch.int64, device=rows.device)
    step = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number
    row_state = mix(mix(seed * step)[..., None] + (rows + 1) * step)
    bits = mix(row_state[..., None] + (columns + 1) * step)
    # 23 bits: with 24 the largest value would round to 1 and give infinite noise
    return ((bits & 0x7FFFFF).float() + 0.5) / 2**23


def sample_negatives(
    similarity: Tensor,
    positives: Tensor,
    seed: int | Tensor,
    offset: int = 0,
    sample_keys: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw for each row one column that is not a positive, by softmax(similarity).

    Gumbel's trick in place of `multinomial`: no loop, no wait for the device, and the
    same draw whatever the number of ranks.

    Args:
        similarity: (B, WB), divided by the temperature; or (2, B, WB).
        positives: (B, WB), True = must not be drawn.
        seed: equal on all ranks, different at each step and for each direction: (2,)
            with two similarities.
        offset: place of the first row among the samples of all ranks.
        sample_keys: (WB,) integers that name the samples of all ranks, so that the
            draw depends on them and not on their order; None: their order.

    Returns:
        index, (B,) or (2, B), and valid (B,), False where every column is a positive
        (the index is then 0 and must be masked).
    """
    batch, total = similarity.shape[-2:]
    device = similarity.device
    if sample_keys is None:
        sample_keys = torch.arange(total, device=device)
    uniform = _noise(sample_keys[offset : offset + batch], sample_keys, seed)
    gumbel = -(-uniform.log()).log()
    scores = similarity.detach().float() + gumbel
    scores = scores.masked_fill(positives, float("-inf"))
    return scores.argmax(dim=-1), ~positives.all(dim=1)


def sample_negative_pairs(
    contrast: ContrastiveOutput, seed: int | Tensor, sample_keys: Tensor | None = None
) -> Negatives:
    """Hard negatives for both directions, with labels in the order of the pairs.

    Args:
        contrast: of this step.
        seed: a step counter, equal on all ranks (an int or a buffer of the model).
        sample_keys: see `sample_negatives`.

    Returns:
        See `Negatives`; the order is that of `QFormer.forward_matching`.
    """
    both = torch.stack((contrast.text_to_audio, contrast.audio_to_text))
    seeds = 2 * seed + torch.arange(2, device=both.device)
    drawn, valid = sample_negatives(
        both, contrast.positives, seeds, contrast.world.offset, sample_keys
    )
    labels = torch.zeros(3 * len(valid), dtype=torch.long, device=both.device)
    labels[: len(valid)] = 1
    return Negatives(drawn[0], drawn[1], labels, valid.repeat(3))


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
        targets: (N,) ids; IGNORED where there is nothing to predict.
        batch_size: B of this rank.
        label_smoothing: in [0, 1), spread over the vocabulary.

    Returns:
        Scalar float32, this rank's share of the mean over all ranks' tokens.

    Source: salesforce/LAVIS@506965b blip2_qformer.py:249-266.
    """
    total = F.cross_entropy(
        logits.float(),
        targets,
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return global_mean(total, (targets != IGNORED).sum(), batch_size)
