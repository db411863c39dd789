"""Labels ranked for clips in three ways: by similarity, matching, language model.

Owns how a label becomes texts or answers, and the scores; what is computed is in
`retrieval` and `generation`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from espnet2_slit.inference.clips import Clips
from espnet2_slit.inference.engine import Engine
from espnet2_slit.inference.generation import candidate_ids, score_candidates
from espnet2_slit.inference.ranking import similarity
from espnet2_slit.inference.requests import (
    LABEL_TEMPLATES,
    label_texts,
    label_words,
)
from espnet2_slit.inference.retrieval import embed_clips, embed_texts, match_pairs


def label_similarities(
    engine: Engine,
    clips: Clips,
    labels: Sequence[str],
    label_templates: Sequence[str] = LABEL_TEMPLATES,
) -> np.ndarray:
    """Cosines with labels; a label is the mean direction of its texts.

    Args:
        engine: with a representation part.
        clips: N clips.
        labels: C labels.
        label_templates: texts with "{}" for the label.

    Returns:
        (N, C) float32.
    """
    texts = label_texts(labels, label_templates)  # C x P
    text = embed_texts(engine, [t for group in texts for t in group])
    text = text.reshape(len(labels), -1, text.shape[-1]).mean(axis=1)  # (C,E)
    text /= np.linalg.norm(text, axis=-1, keepdims=True)
    return similarity(embed_clips(engine, clips), text).T


def label_matches(
    engine: Engine,
    clips: Clips,
    labels: Sequence[str],
    label_templates: Sequence[str] = LABEL_TEMPLATES,
) -> np.ndarray:
    """Matching logits of labels, mean over a label's texts.

    Args:
        engine: with a representation part.
        clips: N clips.
        labels: C labels.
        label_templates: texts with "{}" for the label.

    Returns:
        (N, C) float32.
    """
    texts = label_texts(labels, label_templates)
    flat = [t for group in texts for t in group]
    every = np.arange(len(flat))
    logits = match_pairs(engine, clips, flat, [every] * len(clips))
    return np.stack(logits).reshape(len(clips), len(labels), -1).mean(axis=2)


def label_likelihoods(
    engine: Engine,
    clips: Clips,
    labels: Sequence[str],
    instruction: str | Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Likelihoods of labels as answers, by the language model.

    Args:
        engine: with a generator part.
        clips: N clips.
        labels: C labels.
        instruction: one for all clips, or one for each; None for the default.

    Returns:
        (N, C) log-likelihood sums in nats, and (C,) token counts.
    """
    instruction = instruction or engine.wording("classification")
    if isinstance(instruction, str):
        instruction = [instruction] * len(clips)
    defaults = engine.defaults["classification"]
    words = [defaults.label.replace("{}", label_words(label)) for label in labels]
    requests = list(enumerate(instruction))
    sums = score_candidates(engine, clips, requests, words, defaults.end)
    ids = candidate_ids(engine, words, defaults.end)
    return sums, ids.mask().sum(dim=1).cpu().numpy()
