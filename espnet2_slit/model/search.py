"""Greedy and beam search over whatever tells the scores of the next token.

The account of the beams is kept on the host: on tensors of ten numbers it would be some
hundred operators a token. Texts are those of transformers' `generate`; sampling stays
with it. Imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

# (N, L) tokens so far, the start included, and (N, V) scores -> (N, V) scores
Rule = Callable[[Tensor, Tensor], Tensor]
NOTHING_YET = -1e9  # the score that a beam has to beat while others are missing


class TokenDecoder(Protocol):
    """A decoder that remembers what it has read.

    Attributes:
        rows: clips B, whose rows stand together.
        device: where it computes.
    """

    rows: int
    device: torch.device

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits of the next token.

        Args:
            ids: (N,) the last token of each row, N a multiple of B; (B, 0) at the
                start of a text without a start token.

        Returns:
            (N, V) float32.
        """

    def take_rows(self, rows: list[int]) -> None:
        """Go on from these rows, of the same clips in the same order."""


@dataclass(frozen=True)
class Search:
    """What a search has to keep to.

    Args:
        start: ids that every text begins with, not in the result: that of a T5's
            decoder, or none.
        stop_ids: tokens that end a text.
        max_new_tokens: longest text.
        min_new_tokens: shortest text before its end.
        num_beams: K; 1 for greedy search.
        length_penalty: a text's score is divided by its length to this power.
        rules: on scores, before a token is chosen.
    """

    start: Sequence[int]
    stop_ids: Sequence[int]
    max_new_tokens: int
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    rules: Sequence[Rule] = ()

    def run(self, decode: TokenDecoder) -> list[list[list[int]]]:
        """Texts for every clip.

        Args:
            decode: that has read the clips and written nothing.

        Returns:
            For each clip K texts, the best first: ids with the stop.
        """
        if self.num_beams > 1:
            return self._beams(decode)
        return [[ids] for ids in self._greedy(decode)]

    def _greedy(self, decode: TokenDecoder) -> list[list[int]]:
        rows = [[*self.start] for _ in range(decode.rows)]
        lengths = [self.max_new_tokens] * decode.rows
        for length in range(1, self.max_new_tokens + 1):
            scores = self._ruled(decode(_last(rows, decode)), rows, length)
            for i, token in enumerate(scores.argmax(dim=1).tolist()):
                rows[i].append(token)
                if token in self.stop_ids:
                    lengths[i] = min(lengths[i], length)
            if max(lengths) <= length:
                break
        start = len(self.start)
        return [ids[start:][:n] for ids, n in zip(rows, lengths, strict=True)]

    def _beams(self, decode: TokenDecoder) -> list[list[list[int]]]:
        beams = [_Beams([(0.0, [*self.start])]) for _ in range(decode.rows)]
        # enough to go on with, even if every beam could stop in every way
        count = max(2, 1 + len(self.stop_ids)) * self.num_beams
        for length in range(1, self.max_new_tokens + 1):
            rows = [ids for clip in beams for _, ids in clip.running]
            totals = [score for clip in beams for score, _ in clip.running]
            scores = decode(_last(rows, decode)).log_softmax(dim=1)
            scores = self._ruled(scores, rows, length)
            scores = scores + torch.tensor(totals, device=scores.device)[:, None]
            best, places = scores.view(decode.rows, -1).topk(count)
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
        start = len(self.start)
        return [[ids[start:] for _, ids in clip.ended] for clip in beams]

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
            so_far = torch.tensor(rows, dtype=torch.long, device=scores.device)
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
    """(N,) last token of each row, (N, 0) before the first, where the decoder is."""
    last = [ids[-1] if ids else [] for ids in rows]
    return torch.tensor(last, dtype=torch.long, device=decode.device)
