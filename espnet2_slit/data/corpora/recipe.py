"""The sets a recipe trains and tests on, from any choice of corpora.

    train_caption, valid_caption          representation, generative
    train_instruction, valid_instruction  instruction tuning
    <corpus>_<split>                      one a test set

Training samples whose clip or recording is in a test set are left out: AudioCaps' test
clips are in AudioSet, Clotho and ESC-50 share recordings with WavCaps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet2_slit.data import kaldi_dir, writer
from espnet2_slit.data.corpora import instruction, leakage
from espnet2_slit.data.corpora.base import (
    CAPTION,
    Corpus,
    Limits,
    Report,
    build_sets,
    role,
)
from espnet2_slit.data.corpora.tables import CorpusError


@dataclass(frozen=True)
class Recipe:
    """What to make.

    Args:
        corpora: readers of the corpora to train, validate and test on.
        zero_shot: readers of the corpora to test on only: all folds, or the test split.
        wording: how instructions are worded.
        alpha: see `instruction.mix`.
        label_captions: make captions of labels for the caption sets; None: only where
            no corpus has captions.
        drop_leaking: leave out training samples that a test set has, too.
        limits: what audio to accept.
    """

    corpora: Sequence[Corpus]
    zero_shot: Sequence[Corpus]
    wording: instruction.Wording
    alpha: float | None = None
    label_captions: bool | None = None
    drop_leaking: bool = True
    limits: Limits = field(default_factory=Limits)


def make(recipe: Recipe, out: Path) -> tuple[dict[str, int], list[Report]]:
    """Writes all sets of a recipe.

    Args:
        recipe: what to make.
        out: parent of the sets; what they are made of goes to `out/parts`.

    Returns:
        Samples by set, and a report for each set of a corpus.

    Raises:
        CorpusError: there is nothing to train, to validate or to caption on.
    """
    out = Path(out)
    reports: list[Report] = []
    tests = _tests(recipe, out, reports)
    made = {path.name: len(kaldi_dir.sample_ids(path)) for path in tests}
    for part in ("train", "valid"):
        parts: list[Path] = []
        for corpus in recipe.corpora:
            splits = corpus.train_splits if part == "train" else _valid_splits(corpus)
            parts += _build(corpus, splits, recipe, out / "parts", reports)
        if not parts:
            names = ", ".join(corpus.name for corpus in recipe.corpora) or "no corpus"
            raise CorpusError(f"{names}: no {part} split. Add a corpus that has one.")
        leaking: set[str] = set()
        if recipe.drop_leaking and part == "train":
            for source in parts:
                found = leakage.leaking_samples(source, tests)
                if found:
                    logging.warning(
                        "%s: %d samples left out, a test set has their recordings",
                        *(source.name, len(found)),
                    )
                leaking |= found
        captioned = _captioned(parts, recipe, out)
        made[f"{part}_caption"] = instruction.join(
            captioned, out / f"{part}_caption", leaking
        )
        # captions of labels, too: instruction tuning unlearns what it never asks for
        counts = instruction.mix(
            list(dict.fromkeys([*parts, *captioned])),
            out / f"{part}_instruction",
            recipe.wording,
            recipe.alpha if part == "train" else None,
            skip=leaking,
        )
        made[f"{part}_instruction"] = sum(counts.values())
    for path in tests:
        writer.write_set(path, made_by="recipe")
    for name in writer.remove_sets(out, made, made_by="recipe"):
        logging.warning("%s: removed, an earlier recipe made it", out / name)
    return made, reports


def _tests(recipe: Recipe, out: Path, reports: list[Report]) -> list[Path]:
    tests = []
    for corpus in recipe.corpora:
        published = corpus.default_splits or corpus.splits
        splits = [s for s in corpus.evaluation_splits if s in published]
        tests += _build(corpus, splits, recipe, out, reports)
    for corpus in recipe.zero_shot:
        splits = list(corpus.evaluation_splits)
        splits = ["all"] if "all" in splits else splits
        tests += _build(corpus, splits, recipe, out, reports, zero_shot=True)
    return tests


def _valid_splits(corpus: Corpus) -> list[str]:
    return [split for split in corpus.splits if role(split, False) == "valid"]


def _build(
    corpus: Corpus,
    splits: Sequence[str],
    recipe: Recipe,
    out: Path,
    reports: list[Report],
    zero_shot: bool | None = None,
) -> list[Path]:
    """Folders of the splits' sets; their reports are added to `reports`."""
    if not splits:  # build_sets would take the default splits
        return []
    made = build_sets(corpus, out, splits, limits=recipe.limits, zero_shot=zero_shot)
    reports += made
    return [out / report.name for report in made]


def _captioned(parts: Sequence[Path], recipe: Recipe, out: Path) -> list[Path]:
    """The parts with captions, or captions made of labels."""
    tasks = {part: _tasks(part) for part in parts}
    captions = [part for part in parts if CAPTION in tasks[part]]
    if recipe.label_captions or (recipe.label_captions is None and not captions):
        for part in parts:
            if tasks[part] == {"classification"}:
                captions.append(out / "parts" / f"{part.name}_caption")
                instruction.caption_labels(part, captions[-1])
    if not captions:
        names = ", ".join(part.name for part in parts)
        raise CorpusError(f"{names}: neither captions nor labels to learn from.")
    return captions


def _tasks(part: Path) -> set[str]:
    return {task for _, task in kaldi_dir.read_pairs(part / "utt2task")}
