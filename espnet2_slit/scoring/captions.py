"""Scores of the captions of a set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from espnet2_slit.common.files import read_lines
from espnet2_slit.common.texts import named_labels, normalize_caption
from espnet2_slit.data.kaldi_dir import read_map
from espnet2_slit.scoring.metrics.bootstrap import Items, Score, mean_items
from espnet2_slit.scoring.metrics.captioning import CaptionOptions, score_captions
from espnet2_slit.scoring.read import (
    EXAMPLES,
    TaskOfSet,
    check_ids,
    read_references,
    spread,
)

TEXT_FORM = {
    "ptb_java": "NFC, Penn Treebank tokens",
    "python": "NFC, words of any script, Chinese and Japanese by character",
}
CHANCE = "a reference of another, random clip of the set"


def score(task: TaskOfSet) -> None:
    """Add the scores of `id caption` lines.

    Raises:
        ScoringError: ids differ from the data's.
    """
    path = task.file("text")
    found, references = read_map(path), read_references(task.data_dir)
    check_ids(references, found, task.data_dir, path)
    language = task.protocol.get("language") or "en"
    ids = sorted(references)
    hypotheses = [found[i] for i in ids]
    wanted = [references[i] for i in ids]
    result = score_captions(hypotheses, wanted, task.options, language)
    counts = Counter(len(r) for r in wanted)
    protocol = {
        "tokenizer": result.tokenizer,
        "text_form": TEXT_FORM[result.tokenizer],
        "references_per_clip": ", ".join(map(str, sorted(counts))),
        "empty_hypotheses": result.empty,
        "distinct_captions": len(set(map(normalize_caption, hypotheses))),
        "cider_d_document_frequency": "these references",
        "resampled": "clips",
        "chance": CHANCE,
    }
    if protocol["distinct_captions"] == 1:
        protocol["first_caption"] = hypotheses[0]
    chance = caption_chance(wanted, task.table.seed, task.options, language)
    task.add((), result.scores, protocol, len(ids), ids, chance)
    if (task.data_dir / "labels").is_file():
        _add_named_labels(task, ids, hypotheses, wanted)
    task.keep(_examples(ids, hypotheses, wanted, result.scores))


def _add_named_labels(
    task: TaskOfSet, ids: list[str], hypotheses: list[str], references: list[list[str]]
) -> None:
    """Add how many captions name the label that the references of their clip name."""
    labels = read_lines(task.data_dir / "labels")
    truth = [
        set().union(*(named_labels(text, labels) for text in texts))
        for texts in references
    ]
    asked = [i for i, names in enumerate(truth) if names]
    if not asked:
        return
    named = [named_labels(hypotheses[i], labels) == truth[i] for i in asked]
    commonest = Counter(frozenset(truth[i]) for i in asked).most_common(1)[0][1]
    protocol = {
        "right": "the caption names the labels that its references name, and no other",
        "chance": "always the commonest",
        "resampled": "clips",
    }
    score: dict[str, Score] = {"label_named": mean_items(named)}
    chance = {"label_named": commonest / len(asked)}
    task.add(("labels",), score, protocol, len(asked), [ids[i] for i in asked], chance)


def caption_chance(
    references: list[list[str]],
    seed: int,
    options: CaptionOptions,
    language: str = "en",
) -> dict[str, float]:
    """Scores of a system that captions each clip with a reference of another one.

    Args:
        references: N lists of captions.
        seed: of the choice.
        options: SPICE and FENSE are left out.
        language: of the captions.

    Returns:
        metric -> value; {} with fewer than two clips.
    """
    clips = len(references)
    if clips < 2:
        return {}
    generator = np.random.default_rng(seed)
    order = generator.permutation(clips)
    donor = np.empty(clips, dtype=np.int64)
    donor[order] = np.roll(order, 1)  # one cycle: no clip gets its own
    chosen = [
        references[d][generator.integers(len(references[d]))] for d in donor.tolist()
    ]
    result = score_captions(chosen, references, options.quick(), language)
    return {
        metric: score.value
        for metric, score in result.scores.items()
        if isinstance(score, Items)
    }


def _examples(
    ids: list[str],
    hypotheses: list[str],
    references: list[list[str]],
    scores: Mapping[str, Score],
) -> list[dict[str, Any]]:
    """The best, the middle and the worst by CIDEr-D (one clip: by ROUGE-L)."""
    ranked = scores["cider_d"]
    if not isinstance(ranked, Items):
        ranked = scores["rouge_l"]
    assert isinstance(ranked, Items)
    value = ranked.stats[:, 0]
    order = np.argsort(-value, kind="stable")
    return [
        {
            "id": ids[i],
            "hypothesis": hypotheses[i],
            "references": references[i],
            "score": float(value[i]),
        }
        for i in order[spread(len(order), EXAMPLES)].tolist()
    ]
