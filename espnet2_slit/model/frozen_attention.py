"""Attention of frozen transformers models whose inputs are trained, fast on a CPU.

Gradients have to pass the whole frozen language model to reach the queries, and
PyTorch's attention in bfloat16 on a CPU takes 1.6 to 2.7 times as long as what is here,
nearly all of it in its backward pass. The latter is offered to transformers by its
public registry; everything else (no gradient, float32, another device, what a model
asks beyond this) stays with "sdpa".
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Callable

import torch
from torch import Tensor, nn

from espnet2_slit.model.cpu_attention import attend_saving

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "slit"
# What models may ask and sdpa answers, or refuses in its own words.
BEYOND = ("softcap", "s_aux", "output_attentions")


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
    AttentionInterface.register(NAME, functools.partial(_attend, sdpa))
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return model.config._attn_implementation == NAME


def _attend(
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
    half = query.device.type == "cpu" and value.dtype in (torch.bfloat16, torch.float16)
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
    context = attend_saving(query, key, value, mask, bias, scale, dropout)
    return context.transpose(1, 2).contiguous(), None
