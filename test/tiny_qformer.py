"""A small Q-Former with heads, a batch for it, and one complete training step."""

from __future__ import annotations

import torch

from espnet2_slit.model.objectives import (
    RepresentationHeads,
    contrastive,
    gather_memory,
    gather_text,
    generation,
    matching,
    sample_negative_pairs,
)
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


def training_losses(
    qformer: QFormer,
    heads: RepresentationHeads,
    batch: dict[str, torch.Tensor],
    seed: int = 3,
    gather: str = "full",
    label_smoothing: float = 0.1,
) -> dict[str, torch.Tensor]:
    """The step that the docstring of `objectives` describes."""
    frames, frame_lengths = batch["frames"], batch["frame_lengths"]
    text, text_lengths = batch["text"], batch["text_lengths"]
    memory = qformer.read_frames(frames, frame_lengths)
    queries = qformer.forward_queries(memory)
    summary = qformer.forward_text(text, text_lengths)
    contrast = contrastive(
        heads.embed_audio(queries.hidden),
        heads.embed_text(summary),
        heads.temperature(),
        batch["clip_ids"],
        batch["text_ids"],
        label_smoothing,
        gather,
    )
    negatives = sample_negative_pairs(contrast, seed)
    world = contrast.world
    pairs = qformer.forward_triplets(
        memory,
        text,
        text_lengths,
        gather_memory(qformer, memory, frames, frame_lengths, negatives.audio, world),
        *gather_text(text, text_lengths, negatives.text, world),
    )
    logits, targets = qformer.forward_generation(queries.cache, text, text_lengths)
    return {
        "contrastive": contrast.loss,
        "matching": matching(
            heads.match(pairs), negatives.labels, negatives.valid, len(text)
        ),
        "generation": generation(logits, targets, len(text), label_smoothing),
    }
