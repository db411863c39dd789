"""Clips and texts in one space, compared by cosine and by the matching head.

Owns what the representation part of a system computes. Arithmetic of rankings is in
`ranking`, labels are in `classification`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espnet2_slit.inference.clips import Clips, pad
from espnet2_slit.inference.engine import Component, Engine, computes
from espnet2_slit.inference.ranking import (
    pair_batches,
    rerank_rows,
    similarity,
    top_indices,
    wanted_pairs,
)
from espnet2_slit.inference.requests import InferenceError

RERANK = 128  # candidates that the matching head looks at, as in BLIP-2's evaluation
DIRECTIONS = ("text_to_audio", "audio_to_text")
TEXTS_PER_BATCH = 128

# Texts and, for each clip, the indices of those wanted -> logits for each clip.
Match = Callable[[Sequence[str], Sequence[np.ndarray]], list[np.ndarray] | None]


@computes
def embed_clips(engine: Engine, clips: Clips) -> np.ndarray:
    """Clips in the space they share with texts.

    Args:
        engine: with a representation part.
        clips: N clips.

    Returns:
        (N, Q, E) float32, unit length along E; with queries for each window Q of each,
        and where a clip has fewer than others its first one for the rest, which
        changes no maximum.
    """
    part = engine.require("representation")
    embedded: list[Any] = [None] * len(clips)
    for batch, arrays in engine.batches(clips):
        audio, _ = part.model.embed_audio(engine.frames(part, clips, arrays))
        for clip, rows in zip(batch, audio.float().cpu().numpy(), strict=True):
            embedded[clip] = rows
    if not embedded:
        raise InferenceError("expected clips to embed, found an empty list.")
    longest = max(len(rows) for rows in embedded)
    for clip, rows in enumerate(embedded):
        missing = rows[:1].repeat(longest - len(rows), axis=0)
        embedded[clip] = np.concatenate((rows, missing))
    return np.stack(embedded)


@computes
def read_queries(engine: Engine, clips: Clips) -> Tensor:
    """What the queries found: the Q-Former's output without text or instruction.

    Args:
        engine: its representation part is asked, else its generator.
        clips: N clips.

    Returns:
        (N, Q, D_q) float32; with queries for each window, those of a clip follow each
        other, then zeros.
    """
    part = engine.first
    hidden: list[Any] = [None] * len(clips)
    for batch, arrays in engine.batches(clips):
        memory = part.qformer.encode_frames(engine.frames(part, clips, arrays))
        found = part.qformer.forward_queries(memory).hidden
        for clip, rows, real in zip(batch, found.values, found.mask(), strict=True):
            hidden[clip] = rows[real].float().cpu()
    return torch.nn.utils.rnn.pad_sequence(hidden, batch_first=True)


@computes
def embed_texts(engine: Engine, texts: Sequence[str]) -> np.ndarray:
    """Texts in that space; equal ones are encoded once.

    Args:
        engine: with a representation part.
        texts: M texts.

    Returns:
        (M, E) float32, unit length.
    """
    part = engine.require("representation")
    if not texts:
        raise InferenceError("expected texts to embed, found an empty list.")
    unique = list(dict.fromkeys(texts))
    ids = [part.text_ids(text) for text in unique]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    embedded: Any = None
    for start in range(0, len(order), TEXTS_PER_BATCH):
        batch = order[start : start + TEXTS_PER_BATCH]
        padded = pad([ids[i] for i in batch])
        text = part.model.embed_text(padded.to(engine.device))
        if embedded is None:
            embedded = np.empty((len(unique), text.shape[-1]), np.float32)
        embedded[batch] = text.float().cpu().numpy()
    row = {text: i for i, text in enumerate(unique)}
    return embedded[[row[text] for text in texts]]


def rerank_scale_of(engine: Engine) -> float:
    """1 / temperature: a cosine times this is the contrastive side's logit.

    Matching is trained on negatives that are drawn by just this logit, so that its own
    says what the contrastive side does not know yet: the two add up. LAVIS adds the
    bare cosine, which hardly counts beside a logit.
    """
    return 1 / engine.require("representation").model.temperature


@computes
def match_pairs(
    engine: Engine, clips: Clips, texts: Sequence[str], wanted: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Matching logits of chosen pairs.

    A clip's keys and values are made once for all its texts, and a text's tokens once
    for all clips.

    Args:
        engine: with a representation part.
        clips: N clips.
        texts: M texts.
        wanted: for each clip, the indices of its texts.

    Returns:
        For each clip an array of logits in the order of its indices.
    """
    part = engine.require("representation")
    logits = [np.empty(len(rows), np.float32) for rows in wanted]
    chosen = [i for i, rows in enumerate(wanted) if len(rows)]
    for batch, arrays in engine.batches(clips, chosen):
        memory = part.model.qformer.encode_frames(engine.frames(part, clips, arrays))
        found = _match(engine, part, memory, [wanted[clip] for clip in batch], texts)
        for clip, values in zip(batch, found, strict=True):
            logits[clip] = values
    return logits


def _match(
    engine: Engine,
    part: Component,
    memory: object,
    wanted: Sequence[np.ndarray | Sequence[int]],
    texts: Sequence[str],
) -> list[np.ndarray]:
    """Matching logits of the clips of a memory with the wanted rows of `texts`."""
    logits = [np.empty(len(rows), np.float32) for rows in wanted]
    for pairs in pair_batches(wanted):
        rows, places, texts_of = pairs.T
        used, columns = np.unique(texts_of, return_inverse=True)
        padded = pad([part.text_ids(texts[t]) for t in used])
        found = part.model.match(
            memory,
            padded.to(engine.device),
            torch.from_numpy(rows).to(engine.device),
            torch.from_numpy(columns).to(engine.device),
        )
        values = found.float().cpu().numpy()
        for row, place, value in zip(rows, places, values, strict=True):
            logits[row][place] = value
    return logits


def retrieve(
    engine: Engine,
    clips: Clips,
    texts: Sequence[str],
    rerank: int = RERANK,
    directions: Sequence[str] = DIRECTIONS,
    audio_embeddings: np.ndarray | None = None,
    match: Match | None = None,
    rerank_scale: float | None = None,
) -> dict[str, np.ndarray]:
    """Scores of every text with every clip.

    Args:
        engine: with a representation part.
        clips: N clips.
        texts: M texts.
        rerank: candidates of each query that the matching head looks at; 0: none.
        directions: which re-ranked scores are wanted.
        audio_embeddings: (N, Q, E) if they are known.
        match: stands in for `match_pairs`: takes texts, and the wanted ones of each
            clip; None as its result leaves the re-ranked scores out.
        rerank_scale: of the cosine in a re-ranked score; None: 1 / temperature.

    Returns:
        {"contrastive": (M, N) cosines, "reranked_text_to_audio": (M, N),
        "reranked_audio_to_text": (M, N)}, float32. A re-ranked score is the scaled
        cosine plus the matching logit; what was not looked at stands below what was,
        in its contrastive order. Equal texts have equal scores: they are compared once.
    """
    engine.require("representation")
    unique = list(dict.fromkeys(texts))
    row = {text: i for i, text in enumerate(unique)}
    twice = bool(rerank) and audio_embeddings is None
    with engine.several_passes(clips, twice) as kept:
        if audio_embeddings is None:
            audio_embeddings = embed_clips(engine, kept)
        scores = similarity(audio_embeddings, embed_texts(engine, unique))  # (M,N)
        found = {"contrastive": scores}
        if rerank:
            best = {}
            if "text_to_audio" in directions:
                best["text_to_audio"] = top_indices(scores, rerank)  # (M,k) clips
            if "audio_to_text" in directions:
                best["audio_to_text"] = top_indices(scores.T, rerank)  # (N,k) texts
            wanted = wanted_pairs(best, len(clips))
            compare = match or functools.partial(match_pairs, engine, kept)
            logits = compare(unique, wanted)
            if logits is not None:
                scale = rerank_scale or rerank_scale_of(engine)
                found |= _reranked(scores, wanted, logits, best, scale)
    index = [row[text] for text in texts]
    return {name: array[index] for name, array in found.items()}


def _reranked(
    scores: np.ndarray,
    wanted: Sequence[np.ndarray],
    logits: Sequence[np.ndarray],
    best: dict[str, np.ndarray],
    scale: float,
) -> dict[str, np.ndarray]:
    """Re-ranked scores (M, N) of the directions in `best`."""
    table = np.full(scores.shape, np.nan, np.float32)
    for clip, (rows, values) in enumerate(zip(wanted, logits, strict=True)):
        table[rows, clip] = values
    found = {}
    if "text_to_audio" in best:
        found["reranked_text_to_audio"] = rerank_rows(
            scores, table, best["text_to_audio"], scale
        )
    if "audio_to_text" in best:
        found["reranked_audio_to_text"] = rerank_rows(
            scores.T, table.T, best["audio_to_text"], scale
        ).T
    return found


@computes
def rerank_captions(
    engine: Engine,
    clips: Clips,
    owners: Sequence[int],
    candidates: Sequence[Sequence[str]],
) -> list[str]:
    """Of some texts for a clip the one that retrieval would rank first.

    Args:
        engine: with a representation part.
        clips: what is described.
        owners: N indices of clips.
        candidates: N lists of texts.

    Returns:
        N texts, those of the highest scaled cosine + matching logit; of equal ones the
        first.

    Source: BLIP's filter (arXiv 2201.12086 section 3.3) judges captions by its
        matching head; ours judges those of one clip against each other.
    """
    part = engine.require("representation")
    scale = rerank_scale_of(engine)
    texts = list(dict.fromkeys(text for row in candidates for text in row))
    row_of = {text: row for row, text in enumerate(texts)}
    embedded = embed_texts(engine, texts)
    fit: dict[int, dict[str, float]] = {}  # of each clip's texts
    for clip, row in zip(owners, candidates, strict=True):
        fit.setdefault(clip, {}).update(dict.fromkeys(row, 0.0))
    for batch, arrays in engine.batches(clips, list(fit)):
        audio, memory = part.model.embed_audio(engine.frames(part, clips, arrays))
        vectors = audio.float().cpu().numpy()
        rows = [[row_of[text] for text in fit[clip]] for clip in batch]
        logits = _match(engine, part, memory, rows, texts)
        for k, clip in enumerate(batch):
            cosines = similarity(vectors[k : k + 1], embedded[rows[k]])[:, 0]
            values = (scale * cosines + logits[k]).tolist()
            fit[clip] = dict(zip(fit[clip], values, strict=True))
    return [
        max(row, key=fit[clip].__getitem__)
        for clip, row in zip(owners, candidates, strict=True)
    ]
