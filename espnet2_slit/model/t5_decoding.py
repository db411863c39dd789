"""Greedy and beam search with a T5, by transformers' modules and nothing between them.

A token of a small T5 costs Python, not arithmetic: masks, position biases and records
of outputs made anew at each step, and some hundred operators on tensors of ten numbers
that keep account of the beams. Here a step runs the layers alone, the account is kept
on the host, and all beams of a clip look at one copy of what the encoder has read.
Texts are those of transformers' `generate`; sampling stays with it. Imports nothing of
ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (N, L) tokens so far, the start included, and (N, V) scores -> (N, V) scores
Rule = Callable[[Tensor, Tensor], Tensor]
NOTHING_YET = -1e9  # the score that a beam has to beat while others are missing


def decodes_quickly(model: nn.Module) -> bool:
    """Whether this module can decode with the model."""
    # layers clamp what float16 cannot hold
    is_half = next(model.parameters()).dtype == torch.float16
    return type(model).__name__ == "T5ForConditionalGeneration" and not is_half


class TokenDecoder:
    """A T5's decoder with its cache, one token of each row at a time.

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
        self.device = states.device
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
        """Logits of the next token, float32.

        Args:
            ids: (N,) the last token of each row; N is a multiple of B, and the rows of
                a clip stand together.

        Returns:
            (N, V).
        """
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
        """Go on from these rows, of the same clips in the same order."""
        if rows == list(range(len(self.own[0][0]))):
            return
        index = torch.tensor(rows, device=self.own[0][0].device)
        self.own = [
            (key.index_select(0, index), value.index_select(0, index))
            for key, value in self.own
        ]


@dataclass(frozen=True)
class Search:
    """What a search has to keep to.

    Args:
        start_id: first token of the decoder, not in the result.
        stop_ids: tokens that end a text.
        max_new_tokens: longest text.
        min_new_tokens: shortest text before its end.
        num_beams: K; 1 for greedy search.
        length_penalty: a text's score is divided by its length to this power.
        rules: on scores, before a token is chosen.
    """

    start_id: int
    stop_ids: Sequence[int]
    max_new_tokens: int
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    rules: Sequence[Rule] = ()

    def run(self, model: Any, states: Tensor, used: Tensor) -> list[list[list[int]]]:
        """Texts for every clip.

        Args:
            model: T5ForConditionalGeneration in eval mode.
            states: (B, L, D_l) of its encoder.
            used: (B, L) True = real.

        Returns:
            For each clip K texts, the best first: ids with the stop.
        """
        decode = TokenDecoder(model, states, used, self.max_new_tokens)
        if self.num_beams > 1:
            return self._beams(decode, len(states))
        return [[ids] for ids in self._greedy(decode, len(states))]

    def _greedy(self, decode: TokenDecoder, clips: int) -> list[list[int]]:
        rows = [[self.start_id] for _ in range(clips)]
        lengths = [self.max_new_tokens] * clips
        for length in range(1, self.max_new_tokens + 1):
            scores = self._ruled(decode(_last(rows, decode)), rows, length)
            for i, token in enumerate(scores.argmax(dim=1).tolist()):
                rows[i].append(token)
                if token in self.stop_ids:
                    lengths[i] = min(lengths[i], length)
            if max(lengths) <= length:
                break
        return [ids[1 : n + 1] for ids, n in zip(rows, lengths, strict=True)]

    def _beams(self, decode: TokenDecoder, clips: int) -> list[list[list[int]]]:
        beams = [_Beams([(0.0, [self.start_id])]) for _ in range(clips)]
        # enough to go on with, even if every beam could stop in every way
        count = max(2, 1 + len(self.stop_ids)) * self.num_beams
        for length in range(1, self.max_new_tokens + 1):
            rows = [ids for clip in beams for _, ids in clip.running]
            totals = [score for clip in beams for score, _ in clip.running]
            scores = decode(_last(rows, decode)).log_softmax(dim=1)
            scores = self._ruled(scores, rows, length)
            scores = scores + torch.tensor(totals, device=scores.device)[:, None]
            best, places = scores.view(clips, -1).topk(count)
            vocabulary, first = scores.size(1), 0
            chosen: list[int] = []  # rows to go on from
            per_clip = zip(beams, best.tolist(), places.tolist(), strict=True)
            for clip, values, flat in per_clip:
                pairs = zip(values, flat, strict=True)
                found = [(score, *divmod(i, vocabulary)) for score, i in pairs]
                width = len(clip.running)
                chosen += [first + beam for beam in self._step(clip, found, length)]
                first += width
            if length == self.max_new_tokens or not any(x.can_improve for x in beams):
                break
            decode.take_rows(chosen)
        return [[ids[1:] for _, ids in clip.ended] for clip in beams]

    def _step(
        self, clip: _Beams, found: list[tuple[float, int, int]], length: int
    ) -> list[int]:
        """Let one clip's beams end or run on; the beam that each goes on from.

        Args:
            clip: changed.
            found: (score, beam, token), the best first.
            length: of the texts now, without the start.
        """
        before, clip.running, sources = clip.running, [], []
        scale = length**self.length_penalty
        for rank, (score, beam, token) in enumerate(found):
            ids = [*before[beam][1], token]
            if token in self.stop_ids or length == self.max_new_tokens:
                if rank < self.num_beams and clip.can_improve:
                    clip.ended.append((score / scale, ids))
            elif len(clip.running) < self.num_beams:
                clip.running.append((score, ids))
                sources.append(beam)
        clip.ended = sorted(clip.ended, key=lambda text: -text[0])[: self.num_beams]
        if clip.running:
            full = len(clip.ended) == self.num_beams
            worst = clip.ended[-1][0] if full else NOTHING_YET
            clip.can_improve &= clip.running[0][0] / scale > worst
        return sources

    def _ruled(self, scores: Tensor, rows: list[list[int]], length: int) -> Tensor:
        """Scores (N, V) of the token that makes texts `length` long, by the rules."""
        if self.rules:
            so_far = torch.tensor(rows, device=scores.device)
            for rule in self.rules:
                scores = rule(so_far, scores)
        if length <= self.min_new_tokens:
            stops = torch.tensor(self.stop_ids, device=scores.device)
            scores = scores.index_fill(1, stops, float("-inf"))
        return scores


@dataclass
class _Beams:
    """The beams of one clip: those that run, and the best that have ended."""

    running: list[tuple[float, list[int]]]  # score and ids, the best first
    ended: list[tuple[float, list[int]]] = field(default_factory=list)
    can_improve: bool = True


def _last(rows: list[list[int]], decode: TokenDecoder) -> Tensor:
    """(N,) last token of each row, where the decoder is."""
    return torch.tensor([ids[-1] for ids in rows], device=decode.device)
