"""Rows of transformers' caches of keys and values. Imports nothing of ours."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor


def has_plain_layers(cache: Any) -> bool:
    """True unless it holds the state of a recurrence, or a window that slides."""
    from transformers.cache_utils import DynamicLayer

    layers = getattr(cache, "layers", None) or [None]
    return all(type(layer) is DynamicLayer for layer in layers)


def rows_of(one: Tensor, rows: int) -> Tensor:
    """(1, H, L, d) as a view of B rows."""
    return one.expand(rows, -1, -1, -1)


def select_rows(cache: Any, rows: Tensor) -> Any:
    """A new cache with these rows of an old one, which stays as it is."""
    cache = copy.copy(cache)
    if hasattr(cache, "self_attention_cache"):
        cache.self_attention_cache = select_rows(cache.self_attention_cache, rows)
        cache.cross_attention_cache = select_rows(cache.cross_attention_cache, rows)
        cache.is_updated = dict(cache.is_updated)
        return cache
    # Layers replace their tensors when they grow, so a shallow copy is enough.
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    cache.batch_select_indices(rows)
    return cache
