"""Attention for training in bfloat16 on a CPU, where PyTorch's is slow.

PyTorch's attention in half precision on a CPU takes 1.6 to 2.7 times as long as what is
here, nearly all of it in its backward pass. It serves the Q-Former (`attend`) and, by
transformers' public registry, frozen language models whose inputs are trained
(`use_fast_attention`). Everything else (no gradient, float32, another device) stays
with PyTorch's own. Imports nothing of ours.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "slit"
# What models may ask and sdpa answers, or refuses in its own words.
BEYOND = ("softcap", "s_aux", "output_attentions")
HALF = (torch.bfloat16, torch.float16)


def keep_mask(shape: torch.Size, dropout_p: float) -> Tensor:
    """1 with 1 - dropout_p, else 0; a product with uint8 is faster than with bool."""
    return torch.empty(shape, dtype=torch.uint8).bernoulli_(1 - dropout_p)


def _goes_in_float32(keys: int) -> bool:
    """Whether softmax over so many keys is faster in float32 than in half precision.

    A row is read 32 numbers at once and its rest one by one: 31 keys take 4.5 times as
    long in bfloat16 as in float32, conversions included, 60 keys 2.5 times, 34 and 170
    as long.
    """
    return keys < 128 and keys % 32 >= 8


def _softmax(scores: Tensor) -> Tensor:
    """Over the last dimension, in the dtype of the scores."""
    if scores.dtype in HALF and _goes_in_float32(scores.size(-1)):
        return scores.float().softmax(-1).to(scores.dtype)
    return scores.softmax(-1)


def _softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """Gradient of the scores, in the dtype of the weights."""
    dtype = weights.dtype
    if dtype in HALF and weights.size(-1) < 32:  # 0.3 of the time for 31 keys
        grad, weights = grad.float(), weights.float()
    found = torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)
    return found.to(dtype)


class _Attention(torch.autograd.Function):
    """Softmax attention that keeps only the probabilities and a byte per dropout."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        scale: float,
        dropout_p: float,
    ) -> Tensor:
        # heads one behind the other: each product would copy them else
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        scores = torch.matmul(query * scale, key.transpose(-1, -2))
        if bias is not None:
            scores.add_(bias)
        if mask is not None:
            scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        weights = _softmax(scores).to(value.dtype)
        kept = keep_mask(weights.shape, dropout_p) if dropout_p else None
        query, key = query.to(value.dtype), key.to(value.dtype)
        ctx.save_for_backward(query, key, value, weights, kept)
        ctx.scale, ctx.keep_scale = scale, 1 / (1 - dropout_p)
        if kept is None:
            return torch.matmul(weights, value)
        return torch.matmul(weights * kept, value).mul_(ctx.keep_scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, kept = ctx.saved_tensors
        dropped = weights
        if kept is not None:
            grad = grad * ctx.keep_scale
            dropped = weights * kept
        grad_value = torch.matmul(dropped.transpose(-1, -2), grad)
        grad_weights = torch.matmul(grad, value.transpose(-1, -2))
        if kept is not None:
            grad_weights.mul_(kept)
        grad_scores = _softmax_backward(grad_weights, weights)
        grad_query = torch.matmul(grad_scores, key).mul_(ctx.scale)
        grad_key = torch.matmul(grad_scores.transpose(-1, -2), query).mul_(ctx.scale)
        return grad_query, grad_key, grad_value, None, None, None, None


def memory_efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention for training on a CPU.

    Args:
        query: (N, H, L_q, d); scores and softmax are computed in its dtype.
        key: (N, H, L_k, d).
        value: (N, H, L_k, d); weights and gradients are kept in its dtype.
        mask: broadcastable to (N, H, L_q, L_k), True = may look; None: all.
        bias: added to the scores, broadcastable likewise, gets no gradient; or None.
        scale: the scores are multiplied by it.
        dropout_p: dropout of the attention weights.

    Returns:
        (N, H, L_q, d).
    """
    if bias is not None:
        bias = bias.detach()
    with torch.autocast("cpu", enabled=False):
        return _Attention.apply(query, key, value, mask, bias, scale, dropout_p)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float
) -> Tensor:
    """Scaled dot-product attention of all heads.

    Args:
        query: (N, H, L_q, d).
        key: (N, H, L_k, d).
        value: (N, H, L_k, d).
        mask: broadcastable to (N, H, L_q, L_k), True = may look, or numbers to add to
            the scores (see `as_bias`); None: all.
        dropout_p: of the attention weights.

    Returns:
        (N, L_q, H * d), heads side by side.
    """
    # one dtype throughout: keys may come from outside the autocast region
    key, value = key.to(query.dtype), value.to(query.dtype)
    # Forward and backward against PyTorch's (12 heads, 496 keys): with dropout 0.5 of
    # its time, without 0.6; nothing is gained in float32.
    if query.device.type == "cpu" and torch.is_grad_enabled() and query.dtype in HALF:
        scale = query.size(-1) ** -0.5
        bias = None
        if mask is not None and mask.dtype != torch.bool:
            mask, bias = None, mask
        context = memory_efficient_attention(
            query, key, value, mask, bias, scale, dropout_p
        )
    else:
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout_p
        )
    return context.transpose(1, 2).flatten(2)


def as_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask, True = may look, as numbers to add to scores.

    PyTorch makes them for each call of its attention, with three operators; all layers
    of a pass may share them.

    Args:
        mask: None: all.
        dtype: of the queries.
    """
    if mask is None:
        return None
    return mask.new_zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))


def use_fast_attention(model: PreTrainedModel) -> bool:
    """Let a frozen model train its inputs by the attention of this module.

    Args:
        model: of transformers.

    Returns:
        Whether it does now: not if the model has an attention of its own, or if another
        one was chosen for it ("flash_attention_2", "eager").
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if getattr(model.config, "_attn_implementation", None) != "sdpa":
        return False
    sdpa = AttentionInterface()["sdpa"]
    AttentionInterface.register(NAME, functools.partial(_attend_frozen, sdpa))
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return model.config._attn_implementation == NAME


def _attend_frozen(
    sdpa: Callable,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (N, H, L, d) each -> (N, L, H, d)."""
    trains = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    half = query.device.type == "cpu" and value.dtype in HALF
    beyond = [asked.get(name) for name in BEYOND]
    if not (trains and half) or any(x is not None and x is not False for x in beyond):
        return sdpa(module, query, key, value, attention_mask, **asked)
    groups = query.size(1) // key.size(1)
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    is_causal = asked.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    mask, bias = attention_mask, asked.get("position_bias")
    if mask is not None and mask.dtype != torch.bool:  # a number to add
        bias = mask if bias is None else bias + mask
        mask = None
    elif mask is None and is_causal and query.size(2) > 1:
        shape = query.size(2), key.size(2)
        mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    scale = asked.get("scaling")
    if scale is None:
        scale = query.size(-1) ** -0.5
    dropout = asked.get("dropout", 0.0)
    # Scores in float32, as sdpa's: no frozen model was trained with 8 bits of them.
    query, key = query.float(), key.float()
    context = memory_efficient_attention(query, key, value, mask, bias, scale, dropout)
    return context.transpose(1, 2).contiguous(), None
