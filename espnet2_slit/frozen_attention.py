"""Attention of frozen transformers models whose inputs are trained, fast on a CPU.

Gradients have to pass the whole frozen language model to reach the queries, and
PyTorch's attention in bfloat16 on a CPU takes 3 to 4 times as long as `attention`'s,
nearly all of it in its backward pass. The latter is offered to transformers by its
public registry; everything else (no gradient, float32, another device, what a model
asks beyond this) stays with "sdpa".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from espnet2_slit.attention import attend_saving

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
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return model.config._attn_implementation == NAME


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **others,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (N, H, L, d) each -> (N, L, H, d)."""
    trains = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    half = query.device.type == "cpu" and value.dtype in (torch.bfloat16, torch.float16)
    beyond = [others.get(name) for name in BEYOND]
    asked = any(x is not None and x is not False for x in beyond)
    if asked or not (trains and half):
        from transformers import AttentionInterface

        attend = AttentionInterface()["sdpa"]
        return attend(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            position_bias=position_bias,
            **others,
        )
    groups = query.size(1) // key.size(1)
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    mask, bias = attention_mask, position_bias
    if mask is not None and mask.dtype != torch.bool:  # a number to add
        bias = mask if bias is None else bias + mask
        mask = None
    elif mask is None and is_causal and query.size(2) > 1:
        shape = query.size(2), key.size(2)
        mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    if scaling is None:
        scaling = query.size(-1) ** -0.5
    # Scores in float32, as sdpa's: no frozen model was trained with 8 bits of them.
    context = attend_saving(
        query.float(), key.float(), value, mask, bias, scaling, dropout
    )
    return context.transpose(1, 2).contiguous(), None
