"""Where the queries look: weights of the cross-attention, for pictures.

Hooks hang on the modules while it runs; `engine.computes` keeps others out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from espnet2_slit.inference.clips import Clips, pad
from espnet2_slit.inference.engine import Engine, computes
from espnet2_slit.model.query_windows import split_windows


@computes
def attention(
    engine: Engine, clips: Clips, instruction: str | None = None
) -> list[np.ndarray]:
    """Where the queries look.

    Args:
        engine: a system.
        clips: N clips.
        instruction: None looks through the representation part (if there is one), else
            the generator reads this instruction.

    Returns:
        For each clip (layers, Q, T) float32: weights of the cross-attention layers
        over the frames, mean over the heads; each row sums to 1, with queries for each
        window to 1 in each.
    """
    part = engine.require("generator") if instruction else engine.first
    maps: list[Any] = [None] * len(clips)
    for batch, arrays in engine.batches(clips):
        frames, lengths = engine.frames(part, clips, arrays)
        reads: tuple[Tensor, ...] = ()
        if instruction:
            ids = part.prompt(instruction).get("qformer_instruction")
            if ids is not None:
                reads = tuple(t.to(engine.device) for t in pad([ids] * len(batch)))
        weights = attention_weights(part.model.qformer, frames, lengths, reads)
        for row, clip in enumerate(batch):
            maps[clip] = weights[row, :, :, : int(lengths[row])]
    return maps


def attention_weights(
    qformer: Any, frames: Tensor, lengths: Tensor, reads: tuple[Tensor, ...] = ()
) -> np.ndarray:
    """Weights of the cross-attention, which its fused kernel never holds.

    Args:
        qformer: QFormer.
        frames: (B, T, D_a).
        lengths: (B,).
        reads: (instruction (B, L), lengths (B,)) or nothing.

    Returns:
        (B, layers, Q, T) float32 array, mean over the heads.
    """
    if not qformer.query_window:
        return _weights(qformer, frames, lengths, reads)
    windows, real, counts = split_windows(frames, lengths, qformer.query_window)
    reads = tuple(tensor.repeat_interleave(counts, 0) for tensor in reads)
    maps = torch.from_numpy(_weights(qformer, windows, real, reads))
    clips = [torch.cat(tuple(some), dim=-1) for some in maps.split(counts.tolist())]
    places = [clip.movedim(-1, 0) for clip in clips]  # (T, layers, Q)
    joined = torch.nn.utils.rnn.pad_sequence(places, batch_first=True)
    return joined.movedim(1, -1)[..., : frames.shape[1]].numpy()


def _weights(
    qformer: Any, frames: Tensor, lengths: Tensor, reads: tuple[Tensor, ...]
) -> np.ndarray:
    """`attention_weights` of queries that read the whole of what is given."""
    layers = [layer.cross_attention for layer in qformer.layers]
    layers = [cross for cross in layers if cross is not None]
    projected: list[Tensor] = []
    handles = [
        cross.query.register_forward_hook(lambda *call: projected.append(call[2]))
        for cross in layers
    ]
    try:
        memory = qformer.read_frames(frames, lengths)
        qformer.forward_queries(memory, *reads)
    finally:
        for handle in handles:
            handle.remove()
    weights = []
    for cross, query, keys in zip(layers, projected, memory.keys, strict=True):
        query = query.unflatten(-1, (cross.heads, -1)).transpose(1, 2)  # (B,H,Q,d)
        scores = query @ keys.transpose(-1, -2) / keys.shape[-1] ** 0.5  # (B,H,Q,T)
        if memory.mask is not None:
            scores = scores.masked_fill(~memory.mask, float("-inf"))
        weights.append(scores.softmax(dim=-1).mean(dim=1))
    return torch.stack(weights, dim=1).float().cpu().numpy()
