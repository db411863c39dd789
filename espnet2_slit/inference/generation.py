"""Texts written, and candidates ranked, by the language model that reads the queries.

Owns the soft prompts of requests in batches. Options are in `requests`; the choice
among captions is made in `retrieval`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from espnet2_slit.common.padded import Padded
from espnet2_slit.inference.clips import Clips, pad
from espnet2_slit.inference.engine import Component, Engine, computes
from espnet2_slit.inference.requests import (
    InferenceError,
    Options,
    generation_options,
)
from espnet2_slit.inference.retrieval import rerank_captions

Request = tuple[int, str]  # index of a clip, instruction


@computes
def generate(
    engine: Engine,
    clips: Clips,
    requests: Sequence[Request],
    options: Options = None,
) -> list[str]:
    """A text for each pair of clip and instruction.

    Args:
        engine: with a generator part.
        clips: what the requests are about.
        requests: N pairs.
        options: with `rerank`, the text is taken that `rerank_captions` chooses.

    Returns:
        N texts.
    """
    texts, _ = generate_and_score(engine, clips, requests, options, None)
    return texts


@computes
def score_candidates(
    engine: Engine,
    clips: Clips,
    requests: Sequence[Request],
    candidates: Sequence[str],
    end: bool = True,
) -> np.ndarray:
    """Likelihoods of texts as the answer to each pair of clip and instruction.

    Args:
        engine: with a generator part.
        clips: what the requests are about.
        requests: N pairs.
        candidates: C texts.
        end: a candidate's end counts as a token of it.

    Returns:
        (N, C) float32, log-likelihood sums over a candidate's tokens, nats.
    """
    part = engine.require("generator")
    ids = candidate_ids(engine, candidates, end)
    scores = np.zeros((len(requests), len(candidates)), np.float32)
    for batch, *inputs in prefixes(engine, part, clips, requests):
        found = part.model.language_model.score_candidates(*inputs, ids)
        scores[batch] = found.cpu().numpy()
    return scores


@computes
def generate_and_score(
    engine: Engine,
    clips: Clips,
    requests: Sequence[Request],
    options: Options = None,
    candidates: Sequence[str] | None = None,
) -> tuple[list[str], np.ndarray | None]:
    """`generate` and `score_candidates` in one pass over the clips.

    Args:
        engine: with a generator part.
        clips: what the requests are about.
        requests: N pairs.
        options: of `generate`.
        candidates: C texts, or None: no scores.

    Returns:
        (N texts, (N, C) scores or None).
    """
    part = engine.require("generator")
    options = generation_options(options)
    if options.rerank:
        engine.require("representation")
    written: list[list[str]] = [[]] * len(requests)
    scores = None
    if candidates is not None:
        ids = candidate_ids(engine, candidates)
        scores = np.zeros((len(requests), len(candidates)), np.float32)
    language_model = part.model.language_model
    with engine.several_passes(clips, bool(options.rerank)) as kept:
        for batch, *inputs in prefixes(engine, part, kept, requests):
            found = language_model.generate_several(*inputs, options)
            for i, texts in zip(batch, found, strict=True):
                written[i] = texts
            if scores is not None:
                found = language_model.score_candidates(*inputs, ids)
                scores[batch] = found.cpu().numpy()
        if not options.rerank:
            return [row[0] for row in written], scores
        owners = [clip for clip, _ in requests]
        return rerank_captions(engine, kept, owners, written), scores


def candidate_ids(
    engine: Engine, candidates: Sequence[str], end: bool = True
) -> Padded:
    """Candidate texts -> ids (C, L).

    Args:
        engine: with a generator part.
        candidates: C texts.
        end: count the end-of-sequence token.

    Raises:
        InferenceError: no candidates.
    """
    part = engine.require("generator")
    if not candidates:
        raise InferenceError("expected candidates to rank, found an empty list.")
    encode = part.model.language_model.encode_target
    ids = pad([encode(text) for text in candidates])
    lengths = ids.mask().sum(dim=1) - (0 if end else 1)
    return Padded(ids.values, lengths).to(engine.device)


def prefixes(
    engine: Engine, part: Component, clips: Clips, requests: Sequence[Request]
) -> Iterator[tuple[list[int], Padded, Padded | None]]:
    """The language model's inputs in batches.

    Requests for one clip stand together, so that its frames are made once. A batch has
    prompts of one kind: a caption may have none where a question has one.

    Args:
        engine: whose device and batch size.
        part: the generator.
        clips: what the requests are about.
        requests: N pairs.

    Yields:
        (indices of requests, prefix (B, N, D_l), ids of the prompt (B, L) or None).
    """
    of_clip: dict[int, list[int]] = {}
    for i, (clip, _) in enumerate(requests):
        of_clip.setdefault(clip, []).append(i)
    for chosen, arrays in engine.batches(clips, list(of_clip)):
        frames = engine.frames(part, clips, arrays)
        kinds: dict[tuple, list] = {}  # a prompt's fields -> [(row, request)]
        for row, clip in enumerate(chosen):
            for i in of_clip[clip]:
                names = tuple(part.prompt(requests[i][1]))
                kinds.setdefault(names, []).append((row, i))
        for names, rows in kinds.items():
            for start in range(0, len(rows), engine.batch_size):
                some = rows[start : start + engine.batch_size]
                index = torch.tensor([row for row, _ in some], device=engine.device)
                batch = [i for _, i in some]
                fields = _prompts(engine, part, names, [requests[i][1] for i in batch])
                instruction = fields.get("qformer_instruction")
                prefix = part.model.prefix(frames.select(index), instruction)
                yield batch, prefix, fields.get("llm_prompt")


def _prompts(
    engine: Engine, part: Component, names: Sequence[str], instructions: Sequence[str]
) -> dict[str, Padded]:
    """{field: ids (B, L)} of prompts that have these fields."""
    prompts = [part.prompt(instruction) for instruction in instructions]
    return {
        name: pad([prompt[name] for prompt in prompts]).to(engine.device)
        for name in names
    }
