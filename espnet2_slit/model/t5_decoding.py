"""A T5's decoder for `search`, by transformers' modules and nothing between them.

A token of a small T5 costs Python, not arithmetic: masks, position biases and records
of outputs made anew at each step. Here a step runs the layers alone, and all beams of a
clip look at one copy of what the encoder has read. Imports nothing of ours.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def decodes_quickly(model: nn.Module) -> bool:
    """Whether this module can decode with the model."""
    # layers clamp what float16 cannot hold
    is_half = next(model.parameters()).dtype == torch.float16
    return type(model).__name__ == "T5ForConditionalGeneration" and not is_half


class T5Decoder:
    """A T5's decoder with its cache, one token of each row at a time: a TokenDecoder.

    Args:
        model: T5ForConditionalGeneration in eval mode.
        states: (B, L, D_l) of its encoder.
        used: (B, L) True = real.
        steps: tokens that will be decoded at most.
    """

    def __init__(self, model: Any, states: Tensor, used: Tensor, steps: int):
        self.model, self.blocks = model, model.decoder.block
        config = model.config
        # older releases of transformers scale wherever embeddings are tied
        scales = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
        self.scale = config.d_model**-0.5 if scales else 1.0
        self.rows, self.device = len(states), states.device
        self.mask = None if bool(used.all()) else used.bool()[:, None, None]
        self.read = []
        for block in self.blocks:
            attention = block.layer[1].EncDecAttention
            shape = len(states), -1, attention.n_heads, attention.key_value_proj_dim
            projected = attention.k(states), attention.v(states)
            self.read.append([x.view(shape).transpose(1, 2) for x in projected])
        self.own: list[tuple[Tensor, Tensor]] = []
        first = self.blocks[0].layer[0].SelfAttention
        self.biases = first.compute_bias(steps, steps)  # (1, H, steps, steps)

    def __call__(self, ids: Tensor) -> Tensor:
        """See `TokenDecoder`."""
        position = self.own[0][0].size(2) if self.own else 0
        bias = self.biases[:, :, position : position + 1, : position + 1]
        hidden = self.model.decoder.embed_tokens(ids)  # (N, D_l)
        grown = []
        for i, block in enumerate(self.blocks):
            own_layer, cross_layer, feed_forward = block.layer
            normed, attention = own_layer.layer_norm(hidden), own_layer.SelfAttention
            shape = len(ids), attention.n_heads, 1, attention.key_value_proj_dim
            query = attention.q(normed).view(shape)
            key, value = attention.k(normed).view(shape), attention.v(normed).view(
                shape
            )
            if self.own:
                key = torch.cat((self.own[i][0], key), dim=2)
                value = torch.cat((self.own[i][1], value), dim=2)
            grown.append((key, value))
            context = F.scaled_dot_product_attention(query, key, value, bias, scale=1.0)
            hidden = hidden + attention.o(context.flatten(1))
            hidden = hidden + self._look(cross_layer, hidden, *self.read[i])
            hidden = feed_forward(hidden)
        self.own = grown
        hidden = self.model.decoder.final_layer_norm(hidden)
        if self.scale != 1.0:
            hidden = hidden * self.scale
        return self.model.lm_head(hidden).float()

    def _look(self, layer: Any, hidden: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Rows of a clip look at its states together: (N, D_l) -> (N, D_l)."""
        attention = layer.EncDecAttention
        shape = len(key), -1, attention.n_heads, attention.key_value_proj_dim
        query = attention.q(layer.layer_norm(hidden)).view(shape).transpose(1, 2)
        context = F.scaled_dot_product_attention(
            query, key, value, self.mask, scale=1.0
        )
        return attention.o(context.transpose(1, 2).reshape(len(hidden), -1))

    def take_rows(self, rows: list[int]) -> None:
        """See `TokenDecoder`."""
        if rows == list(range(len(self.own[0][0]))):
            return
        index = torch.tensor(rows, device=self.own[0][0].device)
        self.own = [
            (key.index_select(0, index), value.index_select(0, index))
            for key, value in self.own
        ]
