"""Weights of the queries' cross-attention, for pictures of what they look at.

Hooks hang on the modules while it runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from espnet2_slit.common.padded import Padded


def attention_weights(
    qformer: Any, frames: Padded, reads: Padded | None = None
) -> np.ndarray:
    """Weights of the cross-attention, which its fused kernel never holds.

    Args:
        qformer: QFormer.
        frames: (B, T, D_a).
        reads: instruction (B, L), or None.

    Returns:
        (B, layers, Q, T) float32 array, mean over the heads.
    """
    layers = [layer.cross_attention for layer in qformer.layers]
    layers = [cross for cross in layers if cross is not None]
    projected: list[Tensor] = []
    handles = [
        cross.query.register_forward_hook(lambda *call: projected.append(call[2]))
        for cross in layers
    ]
    try:
        memory = qformer.encode_frames(frames)
        qformer.forward_queries(memory, reads)
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
    stacked = torch.stack(weights, dim=1)  # (B W, layers, Q, T of a window)
    of_clips = stacked.unflatten(0, (-1, memory.windows)).movedim(1, 3).flatten(3)
    return of_clips[..., : frames.values.shape[1]].float().cpu().numpy()
