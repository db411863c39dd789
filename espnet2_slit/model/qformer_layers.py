"""The layers of the Q-Former, and what the queries of a pass may look at.

Owns one BERT layer for queries and text, the embeddings, the head, and the keys and
values of frames (`FrameKV`). Which passes there are is the business of `qformer`.

A row of queries reads one query window of frames. Unless windows are asked for, that
is the whole clip, and wherever W stands below it is 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_slit.model.cpu_attention import as_bias, attend
from espnet2_slit.model.packed_text import PackedText

NORM_EPS = 1e-12  # of BERT's LayerNorms


@dataclass
class FrameKV:
    """Keys and values of frames: what the queries may look at, ready for every pass.

    Attributes:
        keys: for each cross-attention layer (B W, H, T, D_q / H), the windows of a clip
            together.
        values: the same shapes.
        mask: (B W, 1, 1, T), True = frame of the clip; None: nothing is padded.
        windows: W, of the longest clip.
        counts: (B,) windows of each clip; None: every clip has W.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor | None
    windows: int = 1
    counts: Tensor | None = None

    def __len__(self) -> int:
        return self.keys[0].size(0) // self.windows

    def select(self, index: Tensor) -> FrameKV:
        """Clips `index` (N,) of this memory; nothing is projected again."""
        rows = index
        if self.windows > 1:
            places = torch.arange(self.windows, device=index.device)
            rows = (index[:, None] * self.windows + places).flatten()

        def selected(x: Tensor) -> Tensor:
            return x.index_select(0, rows)

        return FrameKV(
            [selected(keys) for keys in self.keys],
            [selected(values) for values in self.values],
            None if self.mask is None else selected(self.mask),
            self.windows,
            None if self.counts is None else self.counts[index],
        )


@dataclass
class PairBlock:
    """`repeats * len(memory)` consecutive pairs that look at one memory.

    Pair `r * len(memory) + i` looks at clip i. The queries of all repeats are stacked
    along the query axis, so keys and values are never copied for them.
    """

    memory: FrameKV
    repeats: int = 1

    @property
    def rows(self) -> int:
        """Rows of queries: the pairs' windows."""
        return self.repeats * len(self.memory) * self.memory.windows

    def with_bias(self, dtype: torch.dtype) -> PairBlock:
        """The same with numbers to add to scores for a mask; see `as_bias`."""
        mask = as_bias(self.memory.mask, dtype)
        return replace(self, memory=replace(self.memory, mask=mask))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, D) -> (N, H, L, D / H), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Queries and text attend to each other with the same weights.

    Args:
        width: D_q.
        heads: H.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def split(self, joint: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, L, 3 D_q) -> query, key, value, each (N, H, L, D_q / H)."""
        return tuple(split_heads(part, self.heads) for part in joint.chunk(3, dim=-1))


class CrossAttention(nn.Module):
    """Queries attend to the frames of their clip.

    Args:
        width: D_q.
        encoder_width: D_a.
        heads: H.
    """

    def __init__(self, width: int, encoder_width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(encoder_width, width)
        self.value = nn.Linear(encoder_width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def context(
        self, queries: Tensor, blocks: list[PairBlock], index: int, dropout: float
    ) -> Tensor:
        """(N, Q, D_q) -> (N, Q, D_q), before the output projection.

        Args:
            queries: pairs in the order of the blocks.
            blocks: which pairs look at which clips.
            index: number of this layer among the cross-attention layers.
            dropout: on the attention weights.
        """
        query = self.query(queries)
        parts = query.split([block.rows for block in blocks])
        contexts = []
        for block, part in zip(blocks, parts, strict=True):
            memory, repeats = block.memory, block.repeats
            # (R*B, Q, D) -> (B, R*Q, D): clip i answers all its pairs at once
            part = part.unflatten(0, (repeats, -1)).transpose(0, 1).flatten(1, 2)
            context = attend(
                split_heads(part, self.heads),
                memory.keys[index],
                memory.values[index],
                memory.mask,
                dropout,
            )
            context = context.unflatten(1, (repeats, -1)).transpose(0, 1)
            contexts.append(context.flatten(0, 1))
        return contexts[0] if len(contexts) == 1 else torch.cat(contexts)


class FeedForward(nn.Module):
    """BERT's feed-forward with its residual and norm.

    Args:
        width: D_q.
        feed_forward: inner width.
        dropout: on the output.
    """

    def __init__(self, width: int, feed_forward: int, dropout: float):
        super().__init__()
        self.up = nn.Linear(width, feed_forward)
        self.down = nn.Linear(feed_forward, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D_q) -> (..., D_q)."""
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class QFormerLayer(nn.Module):
    """One post-LN BERT layer for queries and text.

    Self-attention is shared; cross-attention follows it on queries only; each of the
    two has its own feed-forward.

    Args:
        width: D_q.
        encoder_width: D_a; None: a layer without cross-attention.
        heads: H.
        feed_forward: inner width of both feed-forwards.
        dropout: on outputs and attention weights.
        text_branch: with the text feed-forward.
    """

    def __init__(
        self,
        width: int,
        encoder_width: int | None,
        heads: int,
        feed_forward: int,
        dropout: float,
        text_branch: bool,
    ):
        super().__init__()
        self.self_attention = SelfAttention(width, heads)
        self.cross_attention = (
            None
            if encoder_width is None
            else CrossAttention(width, encoder_width, heads)
        )
        self.query_feed_forward = FeedForward(width, feed_forward, dropout)
        self.text_feed_forward = (
            FeedForward(width, feed_forward, dropout) if text_branch else None
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: Tensor | None,
        text: Tensor | None,
        layout: PackedText | None = None,
        mask: Tensor | None = None,
        prefix: tuple[Tensor, Tensor] | None = None,
        blocks: list[PairBlock] | None = None,
        cross_index: int = 0,
        text_rows: str = "all",
    ) -> tuple[Tensor | None, Tensor | None, tuple[Tensor, Tensor]]:
        """One layer over any mixture of queries and packed text.

        Args:
            queries: (N, Q, D_q) or None.
            text: (n, D_q) rows of `layout` or None.
            layout: places of the text rows.
            mask: broadcastable to (N, H, L_q, L_k), True = may look.
            prefix: keys and values before our own, (N, H, Q, D_q / H) each.
            blocks: audio of the pairs; needed if queries are given.
            cross_index: number of this layer among those with cross-attention.
            text_rows: "all"; "first": go on with the first token of each text, where
                there are no queries;
                "none": text only serves as keys and values. The last two save the
                work of rows that nobody reads after the last layer.

        Returns:
            queries, text, and (key, value) of this layer's self-attention.
        """
        attention = self.self_attention
        dropout_p = self.dropout.p if self.training else 0.0
        num_queries = 0 if queries is None else queries.size(1)
        goes_on = num_queries if text_rows == "none" else num_queries + 1
        if queries is None:
            joint = layout.pad(attention.query_key_value(text))
        elif text is None:
            joint = attention.query_key_value(queries)
        else:  # one product for both, here and after attention
            rows = layout.join(queries, text)
            joint = layout.spread(attention.query_key_value(rows), num_queries)
        query, key, value = attention.split(joint)
        own = key, value
        if prefix is not None:
            key = torch.cat((prefix[0], key), dim=2)
            value = torch.cat((prefix[1], value), dim=2)
        if text is not None and text_rows != "all":
            query = query[:, :, :goes_on]
        context = attend(query, key, value, mask, dropout_p)  # (N, Q + L, D_q)

        def residual(x: Tensor, context: Tensor) -> Tensor:
            return attention.norm(x + self.dropout(attention.output(context)))

        if queries is None and text_rows == "first":
            text = residual(layout.cls_rows(text), context[:, 0])
        elif queries is None:
            text = residual(text, layout.unpad(context))
        elif text is None or text_rows == "none":
            queries, text = residual(queries, context), None
        else:
            rows = residual(rows, layout.collect(context, num_queries))
            queries, text = layout.part(rows, num_queries)
        if queries is not None:
            if self.cross_attention is not None:
                cross = self.cross_attention
                seen = cross.context(queries, blocks, cross_index, dropout_p)
                queries = cross.norm(queries + self.dropout(cross.output(seen)))
            queries = self.query_feed_forward(queries)
        return queries, None if text is None else self.text_feed_forward(text), own


class TextEmbedding(nn.Module):
    """Word plus position embeddings; the norm and dropout are the queries' too.

    Args:
        vocab_size: V, [DEC] included.
        width: D_q.
        max_text_length: number of positions.
        pad_id: its embedding starts at zero and stays there.
    """

    def __init__(self, vocab_size: int, width: int, max_text_length: int, pad_id: int):
        super().__init__()
        self.word = nn.Embedding(vocab_size, width, padding_idx=pad_id)
        self.position = nn.Embedding(max_text_length, width)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(n,) ids and positions -> (n, D_q), before the norm."""
        return self.word(ids) + self.position(positions)


class LanguageHead(nn.Module):
    """BERT's prediction head; its last weight is the word embedding.

    Args:
        width: D_q.
        vocab_size: V.
    """

    def __init__(self, width: int, vocab_size: int):
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor, word_weight: Tensor) -> Tensor:
        """(n, D_q) -> (n, V)."""
        hidden = self.norm(F.gelu(self.transform(hidden)))
        return F.linear(hidden, word_weight, self.bias)


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """(T, D_a) sines and cosines of a frame's place, wavelengths 2 pi to 20,000 pi."""
    places = torch.arange(length, device=device, dtype=torch.float32)[:, None]
    steps = torch.arange(0, width, 2, device=device) / width
    angles = places * 10000.0**-steps
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :width]
