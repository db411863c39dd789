"""The attention of BEATs, equal to ESPnet's and in fewer passes over the scores.

ESPnet's copies the bias of positions for every clip and subtracts from the scores their
maximum, which softmax takes away again. Here one bias serves all clips. It also traces:
no size of a batch becomes a constant.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def use_lean_attention(encoder: nn.Module) -> None:
    """Let the layers of ESPnet's BeatsEncoder attend by `attend`; weights stay."""
    layers: Any = encoder.encoder.layers  # type: ignore[union-attr]
    for layer in layers:
        layer.self_attn.forward = MethodType(attend, layer.self_attn)


def attend(
    self: Any,
    query: Tensor,
    key_padding_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None, Tensor | None]:
    """Forward of BEATs' attention of a sequence to itself.

    Args:
        self: ESPnet's MultiheadAttention.
        query: (F, B, D).
        key_padding_mask: (B, F), True where nobody may look; None: nowhere.
        position_bias: (H, F, F) as the layer before returned it; None in the first.

    Returns:
        (F, B, D), None, the bias.
    """
    q, k, v = (
        projection(query).unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)
        for projection in (self.q_proj, self.k_proj, self.v_proj)
    )  # (B, H, F, D / H)
    if self.has_relative_attention_bias and position_bias is None:
        position_bias = self.compute_bias(len(query), len(query))
        position_bias = position_bias.to(q.dtype)
    gate = None  # (B, H, F, 1), of the bias
    if position_bias is not None and self.gru_rel_pos:
        parts = self.grep_linear(q).unflatten(-1, (2, 4)).sum(-1).sigmoid()
        reset, update = parts.chunk(2, dim=-1)
        gate = (reset * (update * self.grep_a - 1.0) + 2.0).to(q.dtype)
    scores = torch.matmul(q * self.scaling, k.transpose(2, 3))
    if gate is not None:
        scores = torch.addcmul(scores, gate, position_bias)
    elif position_bias is not None:
        scores = scores + position_bias
    if key_padding_mask is not None:
        scores = scores.masked_fill(key_padding_mask[:, None, None], float("-inf"))
    weights = F.dropout(scores.softmax(-1), self.dropout_module.p, self.training)
    mixed = torch.matmul(weights, v).permute(2, 0, 1, 3).flatten(2)
    return self.out_proj(mixed), None, position_bias
