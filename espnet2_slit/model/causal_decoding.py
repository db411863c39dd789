"""A causal language model as a decoder for `search`, by its own `forward`.

transformers' `generate` reads prefix and prompt once for each beam: with SmolLM2-135M
on a CPU more than half of a caption's time. Here each clip is read once, and its beams
go on from copies of what was kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from espnet2_slit.model.kv_cache import select_rows


class CausalDecoder:
    """A causal language model that has read B clips: a TokenDecoder.

    Args:
        forward: the model's; its cache comes first.
        output: of the model for prefix and prompt, `use_cache` and `logits_to_keep` 1;
            padding stands at the left.
        used: (B, L) True = real.
    """

    def __init__(self, forward: Callable[..., Any], output: Any, used: Tensor):
        self.forward = forward
        self.cache, self.mask = output.past_key_values, used.long()
        self.first: Tensor | None = output.logits[:, -1].float()
        self.places = self.mask.sum(dim=1, keepdim=True)  # (N, 1) of the next token
        self.rows, self.device = len(used), used.device

    def __call__(self, ids: Tensor) -> Tensor:
        """See `TokenDecoder`."""
        if self.first is not None:
            first, self.first = self.first, None
            return first
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], dim=1)
        output = self.forward(
            self.cache,
            input_ids=ids[:, None],
            attention_mask=self.mask,
            position_ids=self.places,
        )
        self.places = self.places + 1
        return output.logits[:, -1].float()

    def take_rows(self, rows: list[int]) -> None:
        """See `TokenDecoder`."""
        if rows == list(range(len(self.mask))):
            return
        index = torch.tensor(rows, device=self.device)
        self.cache = select_rows(self.cache, index)
        self.mask, self.places = self.mask[index], self.places[index]
