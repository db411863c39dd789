"""BLIP-2's Q-Former for audio: learned queries read frames and share BERT with text.

Owns the passes and everything that is shared between them: the frames' keys and
values, and the queries' own keys and values. The layers are in `qformer_layers`, the
losses in `objectives`, pretrained weights in `qformer_weights`.

A step of the representation model needs four passes (see `espnet_model`):
`forward_queries`, `forward_text`, `forward_matching`, `forward_generation`.

Shape letters as in the package: B clips, S texts, T frames, Q queries, L tokens,
D_a encoder width, D_q Q-Former width, H heads, V vocabulary, N audio-text pairs; W
query windows of the longest clip, which then has W Q queries instead of Q.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from espnet2_slit.common.padded import IGNORED, Padded, is_on_host, lengthen
from espnet2_slit.model.cpu_attention import as_bias
from espnet2_slit.model.packed_text import PackedText
from espnet2_slit.model.qformer_layers import (
    NORM_EPS,
    FrameKV,
    LanguageHead,
    PairBlock,
    QFormerLayer,
    TextEmbedding,
    sinusoids,
    split_heads,
)
from espnet2_slit.model.shared_weights import two_passes

FRAME_NORM_EPS = 1e-5  # LayerNorm on encoder frames


@dataclass
class QueryOutput:
    """Result of `QFormer.forward_queries`.

    Attributes:
        hidden: (B, W Q, D_q) outputs of the queries, window after window; lengths are
            None with one window.
        past_key_values: for each layer the queries' self-attention keys and values,
            (B, H, W Q, D_q / H) each, for `forward_generation`; None if an instruction
            took part, because the queries have then seen text.
    """

    hidden: Padded
    past_key_values: list[tuple[Tensor, Tensor]] | None


class CaptionOutput(NamedTuple):
    """Result of `QFormer.forward_captions`.

    Attributes:
        hidden: (B, Q, D_q) outputs of the queries.
        cls: (B, D_q) as of `forward_text`.
        logits: (N_pred, V) as of `forward_generation`.
        targets: (N_pred,) likewise.
    """

    hidden: Padded
    cls: Tensor
    logits: Tensor
    targets: Tensor


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
        pad_id: padding token; only its embedding is special, masks are from lengths.
        bos_id: [DEC], which replaces the first token in generation.
        max_windows: windows a clip may have; above 1 frames get a learned window
            position after their norm (zero at the start).
        frames_per_window: frames of one encoder window; needed if max_windows > 1.
        frame_position: scale of sinusoids that tell the place of each frame in its
            clip, added after the frames' norm; 0: none, as in BLIP-2. Attention sees
            frames as a set: what came first is lost unless the encoder's frames say.
        query_window_s: seconds of audio that one set of queries reads; longer clips are
            read window by window, each by the same queries, and places of frames count
            from the start of their window. 0: one set reads the whole clip.
        max_query_windows: windows that a clip may have at once; bounds memory.
        frames_per_second: of the encoder; needed for windows.
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
        pad_id: int = 0,
        bos_id: int | None = None,
        max_windows: int = 1,
        frames_per_window: int = 0,
        frame_position: float = 0.0,
        query_window_s: float = 0.0,
        max_query_windows: int = 16,
        frames_per_second: float = 0.0,
        text_branch: bool = True,
        language_head: bool | None = None,
        gradient_checkpointing: bool = False,
        initial_std: float = 0.02,
    ):
        super().__init__()
        if language_head is None:
            language_head = text_branch
        _check_sizes(width, heads, initial_std, max_windows, frames_per_window)
        _check_vocabulary(vocab_size, bos_id, text_branch, language_head)
        self.encoder_width, self.vocab_size = encoder_width, vocab_size
        self.width, self.heads, self.feed_forward = width, heads, feed_forward
        self.num_queries, self.max_text_length = num_queries, max_text_length
        self.cross_attention_every = cross_attention_every
        self.pad_id, self.bos_id = pad_id, bos_id
        self.max_windows, self.frames_per_window = max_windows, frames_per_window
        self.max_query_windows = max_query_windows
        self.query_window_frames = _frames_of_window(
            query_window_s, frames_per_second, max_query_windows
        )
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
        self.embedding_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.embedding_dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            QFormerLayer(
                width,
                encoder_width if i % cross_attention_every == 0 else None,
                heads,
                feed_forward,
                dropout,
                text_branch,
            )
            for i in range(layers)
        )
        self.language_head = LanguageHead(width, vocab_size) if language_head else None
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

    def encode_frames(self, frames: Padded) -> FrameKV:
        """Normalise the frames and project them to keys and values, once per layer.

        The norm's gain and shift (and the window position) are folded into the
        projections, so that backward never forms a gradient for the frames.

        Args:
            frames: (B, T, D_a) from the frozen encoder, at least 1 of each clip.

        Returns:
            Keys and values for every cross-attention layer.

        Raises:
            ValueError: the width or the number of frames does not fit.
        """
        if frames.values.size(-1) != self.encoder_width:
            raise ValueError(
                f"frames are {frames.values.size(-1)} wide, but this Q-Former was "
                f"built for encoder_width {self.encoder_width}. Use the encoder or "
                "cache that belongs to it."
            )
        frames, windows, counts = self._query_windows(frames)
        longest = frames.values.size(1)
        mask = None
        lengths = frames.lengths
        if lengths is not None and not (
            is_on_host(lengths) and bool((lengths == longest).all())
        ):
            mask = frames.mask()[:, None, None]
        normalised = self._normalised(frames.values)
        window = self._encoder_windows(longest)
        readers = [x.cross_attention for x in self.layers if x.cross_attention]
        linears = [x.key for x in readers] + [x.value for x in readers]
        projected = []
        for weight, shift in self._on_normalised(linears):
            if window is None:
                rows = F.linear(normalised, weight, shift[0])
            else:
                rows = F.linear(normalised, weight) + shift[window]
            parts = split_heads(rows, self.heads)
            # A CPU's products want them head by head: no pass rearranges them again.
            projected.append(parts.contiguous() if is_on_host(parts) else parts)
        keys, values = projected[: len(readers)], projected[len(readers) :]
        return FrameKV(keys, values, mask, windows, counts)

    def forward_queries(
        self, memory: FrameKV, instruction: Padded | None = None
    ) -> QueryOutput:
        """Queries read the audio, optionally together with an instruction.

        Args:
            memory: B clips.
            instruction: (B, L) ids that join the queries' self-attention in every
                window.

        Returns:
            The queries' outputs and their keys and values; see `QueryOutput`.
        """
        blocks = [PairBlock(memory)]
        if instruction is not None:
            queries = self._read_pairs(blocks, [instruction])[0]
            return QueryOutput(queries, None)
        queries, _, past = self._run(
            self._embed_queries(blocks[0].rows), None, blocks=blocks
        )
        if memory.windows > 1:
            past = [tuple(_join_windows(x, memory.windows) for x in kv) for kv in past]
        return QueryOutput(self._of_clips(queries, blocks[0]), past)

    def forward_text(self, text: Padded) -> Tensor:
        """Text alone, both directions: (S, L) ids -> (S, D_q), the [CLS] row."""
        layout, rows = self._embed_text(text)
        mask = None if layout.key_mask is None else layout.key_mask[:, None, None]
        _, rows, _ = self._run(None, rows, layout, mask, text_rows="first")
        return rows

    def forward_pairs(
        self, memory: FrameKV, text: Padded, audio_index: Tensor, text_index: Tensor
    ) -> Padded:
        """Any pairs of audio and text, seeing each other, for matching.

        Where every clip of `audio_index` occurs equally often (re-ranking the best k
        texts of each clip), its keys and values are not copied.

        Args:
            memory: B clips.
            text: (S, L) ids.
            audio_index: (N,) clip of each pair.
            text_index: (N,) text of each pair.

        Returns:
            (N, W Q, D_q) outputs of the queries, in the order of the pairs.
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
            ordered = [text.select(text_index[order])]
            queries = self._read_pairs([PairBlock(used, repeats)], ordered)[0]
            return queries.select(order.argsort())
        blocks = [PairBlock(memory.select(audio_index))]
        return self._read_pairs(blocks, [text.select(text_index)])[0]

    def forward_matching(
        self,
        memory: FrameKV,
        text: Padded,
        negative_memory: FrameKV,
        negative_text: Padded,
    ) -> Padded:
        """The 3 B pairs of one training step, for matching.

        Equal to `forward_pairs` on the same pairs; keys and values of the batch's own
        clips serve the positives and the negative texts without a copy.

        Args:
            memory: B clips.
            text: (B, L) ids; text i belongs to clip i.
            negative_memory: B clips that do not belong to the texts.
            negative_text: (B, L') ids that do not belong to the clips.

        Returns:
            (3 B, W Q, D_q): positives, negative audio, negative text.
        """
        blocks = [PairBlock(memory, 2), PairBlock(negative_memory)]
        texts = [Padded.cat([text, negative_text]), text]
        own_audio, other_audio = self._read_pairs(blocks, texts)
        index = torch.arange(2 * len(memory), device=text.values.device)
        positive, other_text = (own_audio.select(i) for i in index.chunk(2))
        return Padded.cat([positive, other_audio, other_text])

    def forward_generation(
        self, queries: QueryOutput, text: Padded
    ) -> tuple[Tensor, Tensor]:
        """Predict each text from its clip's queries, left to right.

        The first token is replaced by [DEC]. The last real token predicts nothing and
        nobody looks back at it, so it is no input. On a CPU the logits cover exactly
        the positions that predict a real token; elsewhere that would be a wait, and
        positions that predict padding have the target IGNORED.

        Args:
            queries: of `forward_queries`, B clips.
            text: (B, L) ids, [CLS] ... [SEP], at least 2 of each text.

        Returns:
            logits (N_pred, V) and targets (N_pred,), N_pred >= sum of lengths - 1.

        Raises:
            ValueError: without language head, or with queries that have seen an
                instruction.
        """
        if self.language_head is None:
            raise ValueError("forward_generation needs language_head: true")
        past = queries.past_key_values
        if past is None:
            raise ValueError(
                "forward_generation: these queries have seen an instruction, so they "
                "have no past_key_values. Run forward_queries without instruction."
            )
        inputs = text.values[:, :-1].clone()
        inputs[:, 0] = self.bos_id
        lengths = None if text.lengths is None else text.lengths - 1
        layout, rows = self._embed_text(Padded(inputs, lengths))
        targets, _ = layout.ids_and_positions(text.values[:, 1:])
        if layout.tokens is None and layout.key_mask is not None:
            targets = targets.masked_fill(~layout.key_mask.flatten(), IGNORED)
        shape = layout.longest, layout.longest
        causal = torch.ones(shape, dtype=torch.bool, device=inputs.device).tril()
        # padding comes after the text, so the causal mask hides it as well
        mask = F.pad(causal, (past[0][0].size(2), 0), value=True)
        if queries.hidden.lengths is not None:  # clips with fewer windows
            seen = F.pad(queries.hidden.mask(), (0, layout.longest), value=True)
            mask = mask & seen[:, None, None]
        _, rows, _ = self._run(None, rows, layout, mask, past=past)
        logits = self.language_head(rows, self.embedding.word.weight)
        return logits[: layout.tokens], targets[: layout.tokens]

    def forward_captions(self, memory: FrameKV, text: Padded) -> CaptionOutput:
        """`forward_queries`, `forward_text` and `forward_generation` in one pass.

        One sequence a clip holds its queries, the text that is written from them and
        the text that is read alone; the mask says who sees whom, as in UniLM. Each
        weight is used once, where three passes use it up to three times.

        Args:
            memory: B clips, without query windows.
            text: (B, L) ids, [CLS] ... [SEP], at least 2 of each text.

        Returns:
            What the three give.
        """
        ids, lengths = text.values, text.lengths
        if lengths is None:
            lengths = torch.full((len(ids),), ids.size(1), device=ids.device)
        written = ids.clone()
        written[:, 0] = self.bos_id
        # the last token predicts nothing
        both = (torch.stack((written, ids), 1), torch.stack((lengths - 1, lengths), 1))
        texts = Padded(*(x.flatten(0, 1) for x in both))
        layout, rows = self._embed_text(texts, together=2)
        hidden, rows, _ = self._run(
            self._embed_queries(len(ids)),
            rows,
            layout,
            self._caption_mask(layout),
            blocks=[PairBlock(memory)],
        )
        cls = layout.cls_rows(rows)[1::2]
        targets = ids[:, 1 : layout.longest]
        predicts = torch.arange(targets.size(1), device=ids.device)
        predicts = predicts < (lengths - 1)[:, None]
        if layout.index is None:
            rows = rows.view(len(ids), 2, layout.longest, -1)[:, 0, :-1].flatten(0, 1)
            targets = targets.masked_fill(~predicts, IGNORED).flatten()
        else:
            places = layout.index[: layout.tokens]
            is_written = places // layout.longest % 2 == 0
            rows = rows.index_select(0, is_written.nonzero().squeeze(1))
            targets = targets[predicts]
        logits = self.language_head(rows, self.embedding.word.weight)
        return CaptionOutput(Padded(hidden), cls, logits, targets)

    def two_passes(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Contexts for a step's first and second pass, which may share weights.

        See `shared_weights`: where a pass waits for kernels, and nothing waits for
        single gradients (as other ranks do).
        """
        waits = (
            is_on_host(self.query_tokens)
            or torch.distributed.is_initialized()
            or self.gradient_checkpointing
        )
        if waits or not torch.is_grad_enabled():
            return nullcontext(), nullcontext()
        before = {  # the passes: they project frames
            part
            for layer in self.layers
            if (cross := layer.cross_attention) is not None
            for part in (cross.key, cross.value)
        }
        modules = [part for part in self.layers.modules() if part not in before]
        return two_passes(modules, self._product_dtype())

    # -- parts ------------------------------------------------------------------

    def _read_pairs(self, blocks: list[PairBlock], texts: list[Padded]) -> list[Padded]:
        """Queries and text of pairs see each other: (pairs, W Q, D_q) of each block.

        Every window of a clip reads a copy of the pair's text.
        """
        pairs = zip(blocks, texts, strict=True)
        text = Padded.cat([x.repeat_each(b.memory.windows) for b, x in pairs])
        layout, rows = self._embed_text(text)
        mask = self._joint_mask(layout)
        queries = self._embed_queries(len(text.values))
        queries, _, _ = self._run(
            queries, rows, layout, mask, blocks=blocks, text_rows="none"
        )
        parts = queries.split([block.rows for block in blocks])
        return [self._of_clips(x, b) for x, b in zip(parts, blocks, strict=True)]

    def _of_clips(self, queries: Tensor, block: PairBlock) -> Padded:
        """(pairs W, Q, D_q) -> (pairs, W Q, D_q)."""
        counts = block.memory.counts
        if counts is None:
            return Padded(queries)
        joined = queries.view(-1, block.memory.windows * self.num_queries, self.width)
        return Padded(joined, counts.repeat(block.repeats) * self.num_queries)

    def _run(
        self,
        queries: Tensor | None,
        text: Tensor | None,
        layout: PackedText | None = None,
        mask: Tensor | None = None,
        past: list[tuple[Tensor, Tensor]] | None = None,
        blocks: list[PairBlock] | None = None,
        text_rows: str = "all",
    ) -> tuple[Tensor | None, Tensor | None, list[tuple[Tensor, Tensor]]]:
        """All layers; `text_rows` says what is needed after the last one."""
        own = []
        cross_index = 0
        if not is_on_host(self.query_tokens):
            dtype = self._product_dtype()
            mask = as_bias(mask, dtype)
            blocks = blocks and [x.with_bias(dtype) for x in blocks]
        for i, layer in enumerate(self.layers):
            is_last = i == len(self.layers) - 1
            arguments = (
                queries,
                text,
                layout,
                mask,
                None if past is None else past[i],
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

    def _embed_text(self, text: Padded, together: int = 1) -> tuple[PackedText, Tensor]:
        """(S, L) ids -> layout and (n, D_q) rows; see `PackedText`."""
        ids = text.values
        if self.embedding is None:
            raise ValueError(
                "this Q-Former has no text branch, but got text. Build it with "
                "text_branch: true."
            )
        if ids.size(1) > self.max_text_length:
            raise ValueError(
                f"text has {ids.size(1)} tokens, but the Q-Former knows only "
                f"{self.max_text_length} positions. Truncate in the preprocessor or "
                "raise qformer_conf.max_text_length."
            )
        lengths = text.lengths
        if lengths is None:
            lengths = torch.full((len(ids),), ids.size(1), device=ids.device)
        layout = PackedText(lengths, ids.size(1), together=together)
        rows = self.embedding_norm(self.embedding(*layout.ids_and_positions(ids)))
        return layout, self.embedding_dropout(rows)

    def _joint_mask(self, layout: PackedText) -> Tensor | None:
        """(N, 1, 1, Q + L): every row sees the queries and the real tokens."""
        if layout.key_mask is None:
            return None
        return F.pad(layout.key_mask, (self.num_queries, 0), value=True)[:, None, None]

    def _caption_mask(self, layout: PackedText) -> Tensor:
        """(B, 1, Q + 2 L, Q + 2 L) of `forward_captions`."""
        queries, longest = self.num_queries, layout.longest
        places = torch.arange(queries + 2 * longest, device=layout.device)
        # 0: a query, 1: in the text that is written, 2: in the text that is read
        kind = (places >= queries).long() + (places >= queries + longest)
        looks, seen = kind[:, None], kind
        mask = (looks == seen) | ((looks == 1) & (seen == 0))
        mask &= (looks != 1) | (places <= places[:, None])
        real = layout.key_mask
        if real is None:
            return mask[None, None]
        real = real[1::2]  # padding is hidden from the written one already
        return mask & F.pad(real, (queries + longest, 0), value=True)[:, None, None]

    def _query_windows(self, frames: Padded) -> tuple[Padded, int, Tensor | None]:
        """Cut clips into query windows: (B, T, D_a) -> (B W, T_w, D_a), W, counts (B,).

        Clips with fewer windows than the longest get windows of one frame of padding,
        which their counts leave out.
        """
        size, (values, lengths) = self.query_window_frames, frames
        longest = values.size(1)
        if not size:
            return frames, 1, None
        windows = -(-longest // size)
        if windows > self.max_query_windows:
            raise ValueError(
                f"{longest} frames are {windows} query windows of {size}, but "
                f"max_query_windows is {self.max_query_windows}. Raise "
                "qformer_conf.max_query_windows, or read the audio in parts."
            )
        if lengths is None:
            lengths = torch.full((len(values),), longest, device=values.device)
        counts = (lengths + size - 1) // size
        if windows == 1:
            return frames, 1, counts
        values = lengthen(values, windows * size).unflatten(1, (windows, size))
        starts = torch.arange(windows, device=lengths.device) * size
        left = (lengths[:, None] - starts).clamp(1, size)
        return Padded(values.flatten(0, 1), left.flatten()), windows, counts

    def _normalised(self, frames: Tensor) -> Tensor:
        """(N, T, D_a) normalised without gain and shift, with the frames' places."""
        dtype = self.frame_norm.weight.dtype
        exact = torch.promote_types(dtype, torch.float32)  # half is too coarse here
        normalised = F.layer_norm(
            frames.to(exact), (self.encoder_width,), eps=FRAME_NORM_EPS
        )
        if self.frame_position is not None:
            places = sinusoids(frames.size(1), self.encoder_width, frames.device)
            normalised = normalised + (self.frame_position * places).to(exact)
        return normalised.to(self._product_dtype())  # once instead of once per layer

    def _product_dtype(self) -> torch.dtype:
        """What autocast makes of the operands of a product, here and now."""
        weight = self.frame_norm.weight
        kind = weight.device.type
        is_cast = torch.is_autocast_enabled(kind)
        return torch.get_autocast_dtype(kind) if is_cast else weight.dtype

    def _on_normalised(self, linears: list[nn.Linear]) -> list[tuple[Tensor, Tensor]]:
        """Projections of frames, as those of frames normalised without gain and shift.

        W (g x + b + p) + c = (W g) x + (W (b + p) + c), p the window's position.

        Args:
            linears: of cross-attentions, with bias; folded all at once.

        Returns:
            For each (D_q, D_a) weight and (1 or max_windows, D_q) shift of a window.
        """
        shift = self.frame_norm.bias[None]
        if self.window_position is not None:
            shift = shift + self.window_position
        weights = torch.cat([linear.weight for linear in linears])
        shift = F.linear(shift, weights, torch.cat([linear.bias for linear in linears]))
        weights = (weights * self.frame_norm.weight).to(self._product_dtype())
        parts = weights.chunk(len(linears)), shift.chunk(len(linears), dim=1)
        return list(zip(*parts, strict=True))

    def _encoder_windows(self, longest: int) -> Tensor | None:
        """(T,) number of each frame's encoder window; None with a single one."""
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


def _join_windows(x: Tensor, windows: int) -> Tensor:
    """Keys or values (B W, H, Q, D_q / H) -> (B, H, W Q, D_q / H)."""
    return x.unflatten(0, (-1, windows)).transpose(1, 2).flatten(2, 3)


def _check_sizes(
    width: int, heads: int, initial_std: float, max_windows: int, frames_per_window: int
) -> None:
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of heads {heads}")
    if not initial_std > 0:
        raise ValueError(f"initial_std must be above 0, found {initial_std}")
    if max_windows > 1 and frames_per_window < 1:
        raise ValueError(
            f"max_windows is {max_windows}, so frames_per_window must be the "
            f"encoder's frames per window; found {frames_per_window}"
        )


def _check_vocabulary(
    vocab_size: int, bos_id: int | None, text_branch: bool, language_head: bool
) -> None:
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


def _frames_of_window(
    query_window_s: float, frames_per_second: float, max_query_windows: int
) -> int:
    """Frames of a query window; 0 without windows."""
    if not query_window_s:
        return 0
    frames = round(query_window_s * frames_per_second)
    if frames < 1 or max_query_windows < 1:
        raise ValueError(
            "qformer_conf: expected a query_window_s of at least one frame and "
            f"max_query_windows of at least 1; found {query_window_s} s at "
            f"{frames_per_second:g} frames a second, and {max_query_windows}"
        )
    return frames
