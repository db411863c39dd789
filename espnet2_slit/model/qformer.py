"""BLIP-2's Q-Former for audio: learned queries read frames and share BERT with text.

Owns the network and everything that is shared between its passes: the frames' keys
and values, the queries' own keys and values, and the layout of packed text. The
losses are in `objectives`, pretrained weights in `qformer_weights`.

One training step of the representation model needs four passes, each a method:

    memory = qformer.read_frames(frames, frame_lengths)        # keys, values: once
    queries = qformer.forward_queries(memory)                  # contrastive, cache
    summary = qformer.forward_text(text, text_lengths)         # contrastive
    logits, targets = qformer.forward_generation(queries.cache, text, text_lengths)
    pairs = qformer.forward_triplets(memory, text, text_lengths, negatives...)

Shape letters as in the package: B clips, S texts, T frames, Q queries, L tokens,
D_a encoder width, D_q Q-Former width, H heads, V vocabulary, N audio-text pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from espnet2_slit.model.cpu_attention import Dropout, attend

FRAME_NORM_EPS = 1e-5  # LayerNorm on encoder frames; BERT's own norms use 1e-12
ROW_MULTIPLE = 32  # of packed rows in bfloat16, see _fills_rows


class _Pad(torch.autograd.Function):
    """Rows to their places in a zero-filled block; no zero-fill in backward."""

    @staticmethod
    def forward(ctx, rows: Tensor, index: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(index)
        padded = rows.new_zeros(total, rows.size(1))
        return padded.index_copy_(0, index, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (index,) = ctx.saved_tensors
        return grad.index_select(0, index), None, None


class _Unpad(torch.autograd.Function):
    """The inverse of `_Pad`: each place is read once, so backward is a copy."""

    @staticmethod
    def forward(ctx, padded: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.total = padded.size(0)
        return padded.index_select(0, index)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (index,) = ctx.saved_tensors
        padded = grad.new_zeros(ctx.total, grad.size(1))
        return padded.index_copy_(0, index, grad), None


def _fills_rows() -> bool:
    """oneDNN, which multiplies bfloat16, compiles anew for every number of rows.

    Without this a step of the mini stage 1 takes 1.25 to 1.37 times as long.
    """
    return torch.is_autocast_enabled("cpu")


class TextLayout:
    """Where the real tokens of a padded (S, L) batch are.

    On a CPU text is packed: linear layers see only the real tokens, attention sees
    (S, L) again. On an accelerator text stays padded, because packing needs the
    lengths on the host, a wait in the middle of the step.

    In bfloat16 some padding is packed as well, behind the tokens, until the rows are a
    multiple of ROW_MULTIPLE.

    Args:
        lengths: (S,) tokens of each text.
        width: L of the padded ids.
        pack: pack the rows; None: where the lengths are on the CPU.
    """

    def __init__(self, lengths: Tensor, width: int, pack: bool | None = None):
        self.sequences = lengths.size(0)
        self.device = lengths.device
        self.index: Tensor | None = None  # (n,) rows of the padded block that we keep
        self.tokens: int | None = None  # how many of them are real; None: all
        self.key_mask: Tensor | None = None  # (S, L) True = real
        if pack is None:
            pack = lengths.device.type == "cpu"
        if not pack:
            self.longest = width
            self.key_mask = torch.arange(width, device=self.device) < lengths[:, None]
            return
        host = lengths.cpu()
        self.longest = int(host.max()) if self.sequences else 0
        if self.longest > width:
            raise ValueError(
                f"text_lengths: longest is {self.longest}, but the ids have only "
                f"{width} columns. Pass the lengths that belong to these ids."
            )
        if int(host.min()) < self.longest:
            keep = torch.arange(self.longest) < host[:, None]
            index = keep.flatten().nonzero().squeeze(1)
            self.tokens = len(index)
            if _fills_rows():
                padding = (~keep).flatten().nonzero().squeeze(1)
                index = torch.cat((index, padding[: -len(index) % ROW_MULTIPLE]))
            self.index = index.to(self.device)
            self.key_mask = keep.to(self.device)

    def ids_and_positions(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """(S, L) ids -> (n,) ids and their positions in their own text."""
        ids = text[:, : self.longest].flatten()
        positions = torch.arange(self.longest, device=self.device)
        positions = positions.expand(self.sequences, -1).flatten()
        if self.index is None:
            return ids, positions
        return ids[self.index], positions[self.index]

    def pad(self, rows: Tensor) -> Tensor:
        """(n, C) -> (S, L, C), zeros where there is no token."""
        if self.index is not None:
            rows = _Pad.apply(rows, self.index, self.sequences * self.longest)
        return rows.reshape(self.sequences, self.longest, rows.size(-1))

    def unpad(self, padded: Tensor) -> Tensor:
        """(S, L, C) -> (n, C)."""
        rows = padded.flatten(0, 1)
        return rows if self.index is None else _Unpad.apply(rows, self.index)

    def first_rows(self, rows: Tensor) -> Tensor:
        """(n, C) -> (S, C), the first token of each text."""
        if self.index is None:
            return rows.view(self.sequences, self.longest, -1)[:, 0]
        counts = self.key_mask.sum(1)
        return rows.index_select(0, counts.cumsum(0) - counts)


@dataclass
class AudioMemory:
    """What the queries may look at: one entry per clip, ready for every pass.

    Attributes:
        keys: for each cross-attention layer (B, H, T, D_q / H); with `frames` the
            layer's projection instead, (H, D_q / H, A).
        values: the same shapes.
        mask: (B, 1, 1, T), True = frame of the clip; None: no clip is padded.
        frames: (B, T, A) that the queries read through the projections (see
            `_read_folded`), or None.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor | None
    frames: Tensor | None = None

    def __len__(self) -> int:
        return (self.keys[0] if self.frames is None else self.frames).size(0)

    def select(self, index: Tensor) -> AudioMemory:
        """Clips `index` (N,) of this memory; nothing is projected again."""

        def rows(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.index_select(0, index)

        if self.frames is not None:
            frames = rows(self.frames)
            return AudioMemory(self.keys, self.values, rows(self.mask), frames)
        keys = [rows(keys) for keys in self.keys]
        return AudioMemory(keys, [rows(v) for v in self.values], rows(self.mask))


@dataclass
class QueryOutput:
    """Result of `QFormer.forward_queries`.

    Attributes:
        hidden: (B, Q, D_q) outputs of the queries.
        cache: for each layer the queries' self-attention keys and values,
            (B, H, Q, D_q / H) each, for `forward_generation`; None if an instruction
            took part, because the queries have then seen text.
    """

    hidden: Tensor
    cache: list[tuple[Tensor, Tensor]] | None


@dataclass
class _AudioBlock:
    """`repeats * len(memory)` consecutive pairs that look at one memory.

    Pair `r * len(memory) + i` looks at clip i. The queries of all repeats are stacked
    along the query axis, so keys and values are never copied for them.
    """

    memory: AudioMemory
    repeats: int = 1


def _heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, D) -> (N, H, L, D / H), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _read_folded(
    query: Tensor, memory: AudioMemory, index: int, dropout: float
) -> Tensor:
    """Attention to frames that nobody projected: (B, L, D_q) -> (B, L, D_q).

    q (W x) = (q W) x: the key projection of each head moves over to the queries, and
    the value projection to what they have read. All heads then read the same frames.
    """
    frames, keys, values = memory.frames, memory.keys[index], memory.values[index]
    clips, rows = query.shape[:2]
    heads, size, width = keys.shape
    # `attend` divides by sqrt(A), but the heads have D_q / H
    query = query * (width / size) ** 0.5
    folded = torch.bmm(query.reshape(-1, heads, size).transpose(0, 1), keys)
    folded = folded.view(heads, clips, rows, width).transpose(0, 1).flatten(1, 2)
    seen = attend(
        folded[:, None], frames[:, None], frames[:, None], memory.mask, dropout
    )  # (B, H * L, A)
    seen = seen.view(clips, heads, rows, width).transpose(0, 1).flatten(1, 2)
    context = torch.bmm(seen, values.transpose(1, 2))  # (H, B * L, D_q / H)
    return context.transpose(0, 1).reshape(clips, rows, -1)


class SelfAttention(nn.Module):
    """Queries and text attend to each other with the same weights.

    Args:
        width: D_q.
        heads: H.
        eps: of the LayerNorm.
    """

    def __init__(self, width: int, heads: int, eps: float):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def split(self, joint: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, L, 3 D_q) -> query, key, value, each (N, H, L, D_q / H)."""
        parts = joint.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return parts.contiguous().unbind(0)


class CrossAttention(nn.Module):
    """Queries attend to the frames of their clip.

    Args:
        width: D_q.
        encoder_width: D_a.
        heads: H.
        eps: of the LayerNorm.
    """

    def __init__(self, width: int, encoder_width: int, heads: int, eps: float):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(encoder_width, width)
        self.value = nn.Linear(encoder_width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def context(
        self, queries: Tensor, blocks: list[_AudioBlock], index: int, dropout: float
    ) -> Tensor:
        """(N, Q, D_q) -> (N, Q, D_q), before the output projection.

        Args:
            queries: pairs in the order of the blocks.
            blocks: which pairs look at which clips.
            index: number of this layer among the cross-attention layers.
            dropout: on the attention weights.
        """
        query = self.query(queries)
        parts = query.split([b.repeats * len(b.memory) for b in blocks])
        contexts = []
        for block, part in zip(blocks, parts, strict=True):
            clips, memory = len(block.memory), block.memory
            # (R*B, Q, D) -> (B, R*Q, D): clip i answers all its pairs at once
            part = (
                part.unflatten(0, (block.repeats, clips)).transpose(0, 1).flatten(1, 2)
            )
            if memory.frames is not None:
                context = _read_folded(part, memory, index, dropout)
            else:
                context = attend(
                    _heads(part, self.heads),
                    memory.keys[index],
                    memory.values[index],
                    memory.mask,
                    dropout,
                )
            context = context.unflatten(1, (block.repeats, -1)).transpose(0, 1)
            contexts.append(context.flatten(0, 1))
        return contexts[0] if len(contexts) == 1 else torch.cat(contexts)


class FeedForward(nn.Module):
    """BERT's feed-forward with its residual and norm.

    Args:
        width: D_q.
        feed_forward: inner width.
        dropout: on the output.
        eps: of the LayerNorm.
    """

    def __init__(self, width: int, feed_forward: int, dropout: float, eps: float):
        super().__init__()
        self.up = nn.Linear(width, feed_forward)
        self.down = nn.Linear(feed_forward, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.dropout = Dropout(dropout)

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
        eps: of the LayerNorms.
        text_branch: with the text feed-forward.
    """

    def __init__(
        self,
        width: int,
        encoder_width: int | None,
        heads: int,
        feed_forward: int,
        dropout: float,
        eps: float,
        text_branch: bool,
    ):
        super().__init__()
        self.self_attention = SelfAttention(width, heads, eps)
        self.cross_attention = (
            None
            if encoder_width is None
            else CrossAttention(width, encoder_width, heads, eps)
        )
        self.query_feed_forward = FeedForward(width, feed_forward, dropout, eps)
        self.text_feed_forward = (
            FeedForward(width, feed_forward, dropout, eps) if text_branch else None
        )
        self.dropout = Dropout(dropout)

    def forward(
        self,
        queries: Tensor | None,
        text: Tensor | None,
        layout: TextLayout | None = None,
        mask: Tensor | None = None,
        prefix: tuple[Tensor, Tensor] | None = None,
        blocks: list[_AudioBlock] | None = None,
        cross_index: int = 0,
        text_rows: str = "all",
    ):
        """One layer over any mixture of queries and packed text.

        Args:
            queries: (N, Q, D_q) or None.
            text: (n, D_q) rows of `layout` or None.
            layout: places of the text rows.
            mask: broadcastable to (N, H, L_q, L_k), True = may look.
            prefix: keys and values before our own, (N, H, Q, D_q / H) each.
            blocks: audio of the pairs; needed if queries are given.
            cross_index: number of this layer among those with cross-attention.
            text_rows: "all"; "first": go on with the first token of each text;
                "none": text only serves as keys and values. The last two save the
                work of rows that nobody reads after the last layer.

        Returns:
            queries, text, and (key, value) of this layer's self-attention.
        """
        attention = self.self_attention
        probability = self.dropout.p if self.training else 0.0
        parts = []
        if queries is not None:
            parts.append(attention.query_key_value(queries))
        if text is not None:
            parts.append(layout.pad(attention.query_key_value(text)))
        joint = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        query, key, value = attention.split(joint)
        own = key, value
        if prefix is not None:
            key = torch.cat((prefix[0], key), dim=2)
            value = torch.cat((prefix[1], value), dim=2)

        num_queries = 0 if queries is None else queries.size(1)
        if text is not None and text_rows != "all":
            query = query[:, :, : num_queries + (text_rows == "first")]
        context = attend(query, key, value, mask, probability)  # (N, Q + L, D_q)
        query_context, text_context = context.split(
            (num_queries, context.size(1) - num_queries), dim=1
        )

        def residual(x: Tensor, context: Tensor) -> Tensor:
            return attention.norm(x + self.dropout(attention.output(context)))

        if queries is not None:
            queries = residual(queries, query_context)
            if self.cross_attention is not None:
                cross = self.cross_attention
                seen = cross.context(queries, blocks, cross_index, probability)
                queries = cross.norm(queries + self.dropout(cross.output(seen)))
            queries = self.query_feed_forward(queries)
        if text is None or text_rows == "none":
            return queries, None, own
        if text_rows == "first":
            text = residual(layout.first_rows(text), text_context[:, 0])
        else:
            text = residual(text, layout.unpad(text_context))
        return queries, self.text_feed_forward(text), own


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
        eps: of the LayerNorm.
    """

    def __init__(self, width: int, vocab_size: int, eps: float):
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor, word_weight: Tensor) -> Tensor:
        """(n, D_q) -> (n, V)."""
        hidden = self.norm(F.gelu(self.transform(hidden)))
        return F.linear(hidden, word_weight, self.bias)


class QFormer(nn.Module):
    """Q-Former of BLIP-2 and InstructBLIP.

    No output depends on padding or on other clips of the batch, no pass needs a
    process group, and all run under bfloat16 autocast.

    Args:
        encoder_width: D_a of the frozen encoder's frames.
        vocab_size: V of the Q-Former's tokenizer, [DEC] included; 0 without text.
        width: D_q.
        layers: number of layers.
        heads: H.
        feed_forward: inner width of the feed-forwards.
        num_queries: Q.
        cross_attention_every: cross-attention in layers 0, n, 2n, ...
        max_text_length: positions of the text (captions or instructions), tokens.
        dropout: on embeddings, outputs and attention weights.
        layer_norm_eps: of BERT's norms.
        pad_id: padding token; only its embedding is special, masks are from lengths.
        bos_id: [DEC], which replaces the first token in generation.
        max_windows: windows a clip may have; above 1 frames get a learned window
            position after their norm (zero at the start).
        frames_per_window: frames of one encoder window; needed if max_windows > 1.
        frame_position: scale of sinusoids that tell the place of each frame in its
            clip, added after the frames' norm; 0: none, as in BLIP-2. Attention sees
            frames as a set: what came first is lost unless the encoder's frames say.
        query_window_s: seconds of audio that one set of queries reads, the next set
            the next; 0: one set reads the whole clip. See `query_windows`.
        frames_per_second: of the encoder; needed if query_window_s is given.
        text_branch: text embeddings and text feed-forwards. Off for queries alone
            (generative training); instructions need it.
        language_head: vocabulary prediction for `forward_generation`; None: as
            `text_branch`. Off when text is only read beside the queries (instruction
            training); the last text feed-forward, which nothing reads then, is frozen.
        gradient_checkpointing: recompute layers in backward; works in all passes.
        initial_std: of random weights. BERT's 0.02 is meant for a width of 768; narrow
            models learn sooner from about 0.02 * sqrt(768 / width).

    Source: BLIP-2 (arXiv 2301.12597) section 3.1, InstructBLIP (2305.06500) section
        2.3; salesforce/LAVIS@506965b Qformer.py. Differs: frames are masked by their
        lengths, keys and values of the frames are projected once for all passes, text
        rows that nobody reads are not computed.
    """

    def __init__(
        self,
        encoder_width: int,
        vocab_size: int,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        feed_forward: int = 3072,
        num_queries: int = 32,
        cross_attention_every: int = 2,
        max_text_length: int = 512,
        dropout: float = 0.1,
        layer_norm_eps: float = 1e-12,
        pad_id: int = 0,
        bos_id: int | None = None,
        max_windows: int = 1,
        frames_per_window: int = 0,
        frame_position: float = 0.0,
        query_window_s: float = 0.0,
        frames_per_second: float = 0.0,
        text_branch: bool = True,
        language_head: bool | None = None,
        gradient_checkpointing: bool = False,
        initial_std: float = 0.02,
    ):
        super().__init__()
        if language_head is None:
            language_head = text_branch
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        if not initial_std > 0:
            raise ValueError(f"initial_std must be above 0, found {initial_std}")
        if max_windows > 1 and frames_per_window < 1:
            raise ValueError(
                f"max_windows is {max_windows}, so frames_per_window must be the "
                f"encoder's frames per window; found {frames_per_window}"
            )
        if query_window_s and query_window_s * frames_per_second < 1:
            raise ValueError(
                f"query_window_s is {query_window_s}, which must hold a frame or more; "
                f"found {frames_per_second} frames_per_second of the encoder"
            )
        if language_head and not text_branch:
            raise ValueError("language_head needs text_branch: true")
        if text_branch and vocab_size < 1:
            raise ValueError(
                f"text_branch needs the tokenizer's vocab_size; found {vocab_size}"
            )
        if language_head and (bos_id is None or not 0 <= bos_id < vocab_size):
            raise ValueError(
                f"bos_id must be the id of [DEC] in a vocabulary of {vocab_size}; "
                f"found {bos_id}. Take it from the Q-Former's tokenizer."
            )
        self.encoder_width = encoder_width
        self.vocab_size = vocab_size
        self.width = width
        self.heads = heads
        self.feed_forward = feed_forward
        self.num_queries = num_queries
        self.cross_attention_every = cross_attention_every
        self.max_text_length = max_text_length
        self.layer_norm_eps = layer_norm_eps
        self.pad_id = pad_id
        self.bos_id = bos_id
        self.max_windows = max_windows
        self.frames_per_window = frames_per_window
        self.query_window = round(query_window_s * frames_per_second)  # frames; 0: all
        self.gradient_checkpointing = gradient_checkpointing
        self.initial_std = initial_std

        self.query_tokens = nn.Parameter(torch.empty(num_queries, width))
        self.frame_norm = nn.LayerNorm(encoder_width, eps=FRAME_NORM_EPS)
        self.window_position = (
            nn.Parameter(torch.zeros(max_windows, encoder_width))
            if max_windows > 1
            else None
        )
        # part of the weights, so that no stage goes on from them without it
        self.register_buffer(
            "frame_position",
            torch.tensor(float(frame_position)) if frame_position else None,
        )
        self.embedding = (
            TextEmbedding(vocab_size, width, max_text_length, pad_id)
            if text_branch
            else None
        )
        self.embedding_norm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.embedding_dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            QFormerLayer(
                width,
                encoder_width if i % cross_attention_every == 0 else None,
                heads,
                feed_forward,
                dropout,
                layer_norm_eps,
                text_branch,
            )
            for i in range(layers)
        )
        self.language_head = (
            LanguageHead(width, vocab_size, layer_norm_eps) if language_head else None
        )
        if text_branch and not language_head:
            # no loss reaches it, and DDP waits for every trainable parameter
            self.layers[-1].text_feed_forward.requires_grad_(False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """BERT's initialisation: weights N(0, initial_std), biases 0, norms 1."""
        nn.init.normal_(self.query_tokens, std=self.initial_std)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=self.initial_std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx].detach())

    # -- passes -----------------------------------------------------------------

    def read_frames(
        self, frames: Tensor, frame_lengths: Tensor, single_pass: bool = False
    ) -> AudioMemory:
        """Normalise the frames and project them to keys and values, once per layer.

        The norm's gain and shift (and the window position) are folded into the
        projections, so that backward never forms a gradient for the frames.

        Args:
            frames: (B, T, D_a) from the frozen encoder.
            frame_lengths: (B,) frames of each clip, at least 1.
            single_pass: one pass of the queries will read them; then the projections
                move to the queries where that is less work. Changes no result.

        Returns:
            Keys and values for every cross-attention layer.

        Raises:
            ValueError: the width or the number of frames does not fit.
        """
        if frames.size(-1) != self.encoder_width:
            raise ValueError(
                f"frames are {frames.size(-1)} wide, but this Q-Former was built for "
                f"encoder_width {self.encoder_width}. Use the encoder or cache that "
                "belongs to it."
            )
        longest = frames.size(1)
        mask = None
        if not bool((frame_lengths == longest).all()):
            positions = torch.arange(longest, device=frames.device)
            mask = (positions < frame_lengths[:, None])[:, None, None]
        dtype = self.frame_norm.weight.dtype
        exact = torch.promote_types(dtype, torch.float32)  # half is too coarse here
        normalised = F.layer_norm(
            frames.to(exact), (self.encoder_width,), eps=FRAME_NORM_EPS
        )
        if self.frame_position is not None:
            places = sinusoids(longest, self.encoder_width, frames.device)
            normalised = normalised + (self.frame_position * places).to(exact)
        kind = frames.device.type
        if torch.is_autocast_enabled(kind):  # cast once instead of once per layer
            dtype = torch.get_autocast_dtype(kind)
        normalised = normalised.to(dtype)
        window = self._windows(longest)
        projections = [
            (self._on_normalised(cross.key), self._on_normalised(cross.value))
            for cross in (layer.cross_attention for layer in self.layers)
            if cross is not None
        ]
        if single_pass and kind == "cpu" and self._folding_pays(longest):
            normalised = _append_window(normalised, window, self.max_windows)

            def by_head(weight: Tensor, shift: Tensor) -> Tensor:
                joint = torch.cat((weight, shift.t()), dim=1)
                joint = F.pad(joint, (0, normalised.size(-1) - joint.size(1)))
                return joint.unflatten(0, (self.heads, -1))  # (H, D_q / H, A)

            keys = [by_head(*key) for key, _ in projections]
            values = [by_head(*value) for _, value in projections]
            return AudioMemory(keys, values, mask, normalised)

        def project(weight: Tensor, shift: Tensor) -> Tensor:
            if window is None:
                projected = F.linear(normalised, weight, shift[0])
            else:
                projected = F.linear(normalised, weight) + shift[window]
            # Head by head in memory: no pass has to rearrange them again.
            return _heads(projected, self.heads).contiguous()

        keys = [project(*key) for key, _ in projections]
        values = [project(*value) for _, value in projections]
        return AudioMemory(keys, values, mask)

    def forward_queries(
        self,
        memory: AudioMemory,
        instruction: Tensor | None = None,
        instruction_lengths: Tensor | None = None,
    ) -> QueryOutput:
        """Queries read the audio, optionally together with an instruction.

        Args:
            memory: B clips.
            instruction: (B, L) ids that join the queries' self-attention.
            instruction_lengths: (B,) tokens.

        Returns:
            The queries' outputs and their cache; see `QueryOutput`.
        """
        queries = self._embed_queries(len(memory))
        blocks = [_AudioBlock(memory)]
        if instruction is None:
            queries, _, cache = self._run(queries, None, blocks=blocks)
            return QueryOutput(queries, cache)
        layout, text = self._embed_text(instruction, instruction_lengths)
        mask = self._joint_mask(layout)
        queries, _, _ = self._run(
            queries, text, layout, mask, blocks=blocks, text_rows="none"
        )
        return QueryOutput(queries, None)

    def forward_text(self, text: Tensor, text_lengths: Tensor) -> Tensor:
        """Text alone, both directions: (S, L) ids -> (S, D_q), the [CLS] row."""
        layout, rows = self._embed_text(text, text_lengths)
        mask = None if layout.key_mask is None else layout.key_mask[:, None, None]
        _, rows, _ = self._run(None, rows, layout, mask, text_rows="first")
        return rows

    def forward_pairs(
        self,
        memory: AudioMemory,
        text: Tensor,
        text_lengths: Tensor,
        audio_index: Tensor,
        text_index: Tensor,
    ) -> Tensor:
        """Any pairs of audio and text, seeing each other, for matching.

        Where every clip of `audio_index` occurs equally often (re-ranking the best k
        texts of each clip), its keys and values are not copied.

        Args:
            memory: B clips.
            text: (S, L) ids.
            text_lengths: (S,) tokens.
            audio_index: (N,) clip of each pair.
            text_index: (N,) text of each pair.

        Returns:
            (N, Q, D_q) outputs of the queries, in the order of the pairs.
        """
        clips, counts = torch.unique(audio_index, return_counts=True)
        pairs = audio_index.numel()
        repeats = pairs // max(len(clips), 1)
        if pairs and repeats > 1 and bool((counts == repeats).all()):
            # sort by (repeat, clip): pair r * B + i looks at clip i
            order = audio_index.argsort(stable=True)
            order = order.view(len(clips), repeats).t().flatten()
            used = memory
            if len(clips) != len(memory):
                used = memory.select(clips)
            index = text_index[order]
            queries = self._pairs(
                [_AudioBlock(used, repeats)], text[index], text_lengths[index]
            )
            return queries[order.argsort()]
        blocks = [_AudioBlock(memory.select(audio_index))]
        return self._pairs(blocks, text[text_index], text_lengths[text_index])

    def forward_triplets(
        self,
        memory: AudioMemory,
        text: Tensor,
        text_lengths: Tensor,
        negative_memory: AudioMemory,
        negative_text: Tensor,
        negative_text_lengths: Tensor,
    ) -> Tensor:
        """The 3 B pairs of one training step, for matching.

        Equal to `forward_pairs` on the same pairs; keys and values of the batch's own
        clips serve the positives and the negative texts without a copy.

        Args:
            memory: B clips.
            text: (B, L) ids; text i belongs to clip i.
            text_lengths: (B,) tokens.
            negative_memory: B clips that do not belong to the texts.
            negative_text: (B, L') ids that do not belong to the clips.
            negative_text_lengths: (B,) tokens.

        Returns:
            (3 B, Q, D_q): positives, negative audio, negative text.
        """
        batch = len(memory)
        columns = max(text.size(1), negative_text.size(1))
        text = F.pad(text, (0, columns - text.size(1)))
        negative_text = F.pad(negative_text, (0, columns - negative_text.size(1)))
        queries = self._pairs(
            [_AudioBlock(memory, 2), _AudioBlock(negative_memory)],
            torch.cat((text, negative_text, text)),
            torch.cat((text_lengths, negative_text_lengths, text_lengths)),
        )
        positive, other_text, other_audio = queries.split(batch)
        return torch.cat((positive, other_audio, other_text))

    def forward_generation(
        self, cache: list[tuple[Tensor, Tensor]], text: Tensor, text_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict each text from its clip's queries, left to right.

        The first token is replaced by [DEC]. The last real token predicts nothing and
        nobody looks back at it, so it is no input, and the logits cover exactly the
        positions that predict a real token.

        Args:
            cache: of `forward_queries`, B clips.
            text: (B, L) ids, [CLS] ... [SEP].
            text_lengths: (B,) tokens, at least 2.

        Returns:
            logits (N_pred, V) and targets (N_pred,), N_pred = sum of lengths - 1.

        Raises:
            ValueError: without language head, or without cache (queries that have
                seen an instruction cannot serve generation).
        """
        if self.language_head is None:
            raise ValueError("forward_generation needs language_head: true")
        if cache is None:
            raise ValueError(
                "forward_generation: the queries' cache is None, so they have seen an "
                "instruction. Run forward_queries without instruction."
            )
        inputs = text[:, :-1].clone()
        inputs[:, 0] = self.bos_id
        layout, rows = self._embed_text(inputs, text_lengths - 1, pack=True)
        targets, _ = layout.ids_and_positions(text[:, 1:])
        causal = torch.ones(
            layout.longest, layout.longest, dtype=torch.bool, device=text.device
        ).tril()
        # padding comes after the text, so the causal mask hides it as well
        mask = F.pad(causal, (self.num_queries, 0), value=True)
        _, rows, _ = self._run(None, rows, layout, mask, prefix=cache)
        logits = self.language_head(rows, self.embedding.word.weight)
        return logits[: layout.tokens], targets[: layout.tokens]

    # -- parts ------------------------------------------------------------------

    def _pairs(
        self, blocks: list[_AudioBlock], text: Tensor, text_lengths: Tensor
    ) -> Tensor:
        layout, rows = self._embed_text(text, text_lengths)
        queries = self._embed_queries(text.size(0))
        queries, _, _ = self._run(
            queries,
            rows,
            layout,
            self._joint_mask(layout),
            blocks=blocks,
            text_rows="none",
        )
        return queries

    def _run(
        self,
        queries: Tensor | None,
        text: Tensor | None,
        layout: TextLayout | None = None,
        mask: Tensor | None = None,
        prefix: list[tuple[Tensor, Tensor]] | None = None,
        blocks: list[_AudioBlock] | None = None,
        text_rows: str = "all",
    ):
        """All layers; `text_rows` says what is needed after the last one."""
        own = []
        cross_index = 0
        for i, layer in enumerate(self.layers):
            is_last = i == len(self.layers) - 1
            arguments = (
                queries,
                text,
                layout,
                mask,
                None if prefix is None else prefix[i],
                blocks,
                cross_index,
                text_rows if is_last else "all",
            )
            if self.gradient_checkpointing and self.training:
                out = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                out = layer(*arguments)
            queries, text, key_value = out
            own.append(key_value)
            cross_index += layer.cross_attention is not None
        return queries, text, own

    def _embed_queries(self, count: int) -> Tensor:
        """(N, Q, D_q): the query tokens, normalised, with their own dropout."""
        tokens = self.embedding_norm(self.query_tokens)
        return self.embedding_dropout(tokens.expand(count, -1, -1))

    def _embed_text(
        self, text: Tensor, lengths: Tensor, pack: bool | None = None
    ) -> tuple[TextLayout, Tensor]:
        """(S, L) ids -> layout and (n, D_q) rows."""
        if self.embedding is None:
            raise ValueError(
                "this Q-Former has no text branch, but got text. Build it with "
                "text_branch: true."
            )
        if text.size(1) > self.max_text_length:
            raise ValueError(
                f"text has {text.size(1)} tokens, but the Q-Former knows only "
                f"{self.max_text_length} positions. Truncate in the preprocessor or "
                "raise qformer_conf.max_text_length."
            )
        layout = TextLayout(lengths, text.size(1), pack)
        rows = self.embedding_norm(self.embedding(*layout.ids_and_positions(text)))
        return layout, self.embedding_dropout(rows)

    def _joint_mask(self, layout: TextLayout) -> Tensor | None:
        """(N, 1, 1, Q + L): everybody sees the queries and the real tokens."""
        if layout.key_mask is None:
            return None
        return F.pad(layout.key_mask, (self.num_queries, 0), value=True)[:, None, None]

    def _on_normalised(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """A projection of frames, as one of frames normalised without gain and shift.

        W (g x + b + p) + c = (W g) x + (W (b + p) + c), p the window's position.

        Args:
            linear: of a cross-attention, with bias.

        Returns:
            (D_q, D_a) weight and (1 or max_windows, D_q) shift of each window.
        """
        shift = self.frame_norm.bias[None]
        if self.window_position is not None:
            shift = shift + self.window_position
        weight = linear.weight * self.frame_norm.weight
        return weight, F.linear(shift, linear.weight, linear.bias)

    def _folding_pays(self, longest: int) -> bool:
        """Whether one pass costs less with the projections moved to the queries.

        D_q - H Q multiplications less for each number of a frame, against those of
        moving the projections; measured break-even on a CPU at the factor 4 (about
        250 frames at BERT-base size). At 496 frames cross-attention and all else of
        the Q-Former take 0.87 of the time, a step with T5 base 0.94.
        """
        saved = longest * (self.width - self.heads * self.num_queries)
        return saved > 4 * self.num_queries * self.width

    def _windows(self, longest: int) -> Tensor | None:
        """(T,) number of each frame's window; None with a single window."""
        if self.window_position is None:
            return None
        limit = self.max_windows * self.frames_per_window
        if longest > limit:
            raise ValueError(
                f"{longest} frames, but max_windows {self.max_windows} of "
                f"{self.frames_per_window} frames hold {limit}. Raise "
                "qformer_conf.max_windows or cut the audio."
            )
        device = self.window_position.device
        return torch.arange(longest, device=device) // self.frames_per_window


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """(T, D_a) sines and cosines of a frame's place, wavelengths 2 pi to 20,000 pi."""
    places = torch.arange(length, device=device, dtype=torch.float32)[:, None]
    steps = torch.arange(0, width, 2, device=device) / width
    angles = places * 10000.0**-steps
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :width]


def _append_window(frames: Tensor, window: Tensor | None, windows: int) -> Tensor:
    """(B, T, D_a) -> (B, T, A): a 1 in the column of the frame's window, else 0.

    A projection of this can add a shift for each window. A is a multiple of 32, at
    which matrix products are fast.
    """
    clips, longest, width = frames.shape
    appended = frames.new_zeros(clips, longest, -(-(width + windows) // 32) * 32)
    appended[..., :width] = frames
    if window is None:
        appended[..., width] = 1
    else:
        appended[:, torch.arange(longest, device=frames.device), width + window] = 1
    return appended
