"""A small Q-Former with heads, a batch for it, and one complete training step."""

from __future__ import annotations

import torch

from espnet2_slit.common.padded import Padded
from espnet2_slit.model.espnet_model import RepresentationModel
from espnet2_slit.model.objectives import RepresentationHeads
from espnet2_slit.model.qformer import QFormer

BOS, VOCAB, ENCODER_WIDTH = 49, 50, 20
SIZES = dict(
    width=24,
    layers=4,
    heads=4,
    feed_forward=40,
    num_queries=3,
    max_text_length=16,
    dropout=0.0,
    bos_id=BOS,
)


def tiny_qformer(seed: int = 0, **sizes) -> QFormer:
    """Random weights, the norms and biases too; the caller's random state is kept."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vocab = sizes.pop("vocab_size", VOCAB)
        model = QFormer(ENCODER_WIDTH, vocab, **SIZES | sizes)
        for name, parameter in model.named_parameters():
            # 0.02 would make every layer nearly the identity and hide mistakes
            one = 1.0 if "norm.weight" in name else 0.0
            parameter.data.normal_(one, 0.2)
    return model


def tiny_heads(seed: int = 0) -> RepresentationHeads:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        heads = RepresentationHeads(SIZES["width"], joint_width=8)
        for parameter in (heads.matching_head.weight, heads.matching_head.bias):
            parameter.data.normal_()
    return heads


def tiny_batch(batch: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    """Clips and captions of different lengths, all different."""
    generator = torch.Generator().manual_seed(seed)
    frame_lengths = torch.tensor([11, 7, 5, 9, 3, 8, 10, 4])[:batch]
    text_lengths = torch.tensor([5, 8, 3, 6, 9, 4, 2, 7])[:batch]
    frames = torch.randn(batch, 11, ENCODER_WIDTH, generator=generator)
    text = torch.randint(5, BOS, (batch, 9), generator=generator)
    text[:, 0] = 1
    return {
        "frames": frames[:, : frame_lengths.max()],
        "frame_lengths": frame_lengths,
        "text": text[:, : text_lengths.max()],
        "text_lengths": text_lengths,
        "clip_ids": torch.arange(batch),
        "text_ids": torch.arange(batch) + 100,
    }


def tiny_audio(batch: dict[str, torch.Tensor]) -> Padded:
    return Padded(batch["frames"], batch["frame_lengths"])


def tiny_text(batch: dict[str, torch.Tensor]) -> Padded:
    return Padded(batch["text"], batch["text_lengths"])


def training_losses(
    qformer: QFormer,
    heads: RepresentationHeads,
    batch: dict[str, torch.Tensor],
    seed: int = 3,
    gather: str = "full",
) -> dict[str, torch.Tensor]:
    """The three losses of one training step."""
    model = RepresentationModel(qformer, gather=gather)
    model.heads = heads
    model.train(qformer.training)
    model.training_step += seed
    ids = batch["clip_ids"], batch["text_ids"]
    return model.losses(tiny_audio(batch), tiny_text(batch), *ids)[0]
