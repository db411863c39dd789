"""Attention and dropout with the paths that are fast on a CPU.

On an accelerator both are PyTorch's own. On a CPU, PyTorch's attention falls back to
float32 arithmetic in many passes as soon as dropout is on, and its dropout draws one
slow random number and keeps one float for every element; what is here needs about half
the time for both and a quarter of dropout's memory. Imports nothing of ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 1 << 16  # dropout probabilities are rounded to multiples of 1 / LEVELS


def _kept(shape: torch.Size, probability: float) -> Tensor:
    """1 with 1 - probability, else 0, uint8; four draws from each 64-bit number.

    Uses PyTorch's global generator, so seeds and checkpointing work as usual. A
    product with uint8 takes a quarter of the time of one with bool.
    """
    count = shape.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64)
    bits.random_(torch.iinfo(torch.int64).min, None)
    threshold = round(probability * LEVELS) - LEVELS // 2
    kept = bits.view(torch.int16)[:count] >= threshold
    return kept.view(torch.uint8).view(shape)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, probability: float) -> Tensor:
        kept = _kept(x.shape, probability)
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - probability)
        return torch.mul(x, kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (kept,) = ctx.saved_tensors
        return torch.mul(grad, kept).mul_(ctx.scale), None


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """As `F.dropout`.

    Args:
        x: any shape.
        probability: in [0, 1); on a CPU rounded to 1 / 65536.
        training: False returns x.

    Returns:
        The shape of x.
    """
    if not training or probability == 0.0:
        return x
    if x.device.type == "cpu":
        return _Dropout.apply(x, probability)
    return F.dropout(x, probability, training=True)


class Dropout(nn.Module):
    """As `nn.Dropout`, by `dropout`.

    Args:
        p: probability in [0, 1).
    """

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout must be in [0, 1), found {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return dropout(x, self.p, self.training)


class _Attention(torch.autograd.Function):
    """Softmax attention that keeps only the probabilities and a bit per dropout."""

    @staticmethod
    def forward(ctx, query, key, value, mask, bias, scale, probability) -> Tensor:
        scores = torch.matmul(query * scale, key.transpose(-1, -2))
        if bias is not None:
            scores.add_(bias)
        if mask is not None:
            scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1).to(value.dtype)
        kept = _kept(weights.shape, probability) if probability else None
        query, key = query.to(value.dtype), key.to(value.dtype)
        ctx.save_for_backward(query, key, value, weights, kept)
        ctx.scale, ctx.keep_scale = scale, 1 / (1 - probability)
        if kept is None:
            return torch.matmul(weights, value)
        return torch.matmul(weights * kept, value).mul_(ctx.keep_scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        query, key, value, weights, kept = ctx.saved_tensors
        dropped = weights
        if kept is not None:
            grad = grad * ctx.keep_scale
            dropped = weights * kept
        grad_key = grad_value = None  # folded projections read frames as they are
        if ctx.needs_input_grad[2]:
            grad_value = torch.matmul(dropped.transpose(-1, -2), grad)
        grad_weights = torch.matmul(grad, value.transpose(-1, -2))
        if kept is not None:
            grad_weights.mul_(kept)
        grad_scores = torch.ops.aten._softmax_backward_data(
            grad_weights, weights, -1, weights.dtype
        )
        grad_query = torch.matmul(grad_scores, key).mul_(ctx.scale)
        if ctx.needs_input_grad[1]:
            grad_key = torch.matmul(grad_scores.transpose(-1, -2), query)
            grad_key = grad_key.mul_(ctx.scale)
        return grad_query, grad_key, grad_value, None, None, None, None


def attend_saving(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float,
    probability: float = 0.0,
) -> Tensor:
    """Attention for training on a CPU.

    Args:
        query: (N, H, L_q, d); scores and softmax are computed in its dtype.
        key: (N, H, L_k, d).
        value: (N, H, L_k, d); weights and gradients are kept in its dtype.
        mask: broadcastable to (N, H, L_q, L_k), True = may look; None: all.
        bias: added to the scores, broadcastable likewise, gets no gradient; or None.
        scale: the scores are multiplied by it.
        probability: dropout of the attention weights.

    Returns:
        (N, H, L_q, d).
    """
    if bias is not None:
        bias = bias.detach()
    with torch.autocast("cpu", enabled=False):
        return _Attention.apply(query, key, value, mask, bias, scale, probability)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, probability: float
) -> Tensor:
    """Scaled dot-product attention of all heads.

    Args:
        query: (N, H, L_q, d).
        key: (N, H, L_k, d).
        value: (N, H, L_k, d).
        mask: broadcastable to (N, H, L_q, L_k), True = may look; None: all.
        probability: dropout of the attention weights.

    Returns:
        (N, L_q, H * d), heads side by side.
    """
    scale = query.size(-1) ** -0.5
    half = query.dtype in (torch.bfloat16, torch.float16)
    # Training on a CPU, forward and backward, against PyTorch's (12 heads, 496 keys):
    # bfloat16 with dropout 0.5 of its time, without 0.6; float32 with dropout 0.87.
    if (
        query.device.type == "cpu"
        and torch.is_grad_enabled()
        and (probability > 0 or half)
    ):
        # one dtype throughout: keys may come from outside the autocast region
        key, value = key.to(query.dtype), value.to(query.dtype)
        context = attend_saving(query, key, value, mask, None, scale, probability)
    else:
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=probability
        )
    return context.transpose(1, 2).flatten(2)
