"""The sets a recipe trains and tests on, from any choice of corpora.

    train_caption, valid_caption          stages 1 and 2
    train_instruction, valid_instruction  instruction tuning
    <corpus>_<split>                      one a test set

Training samples whose clip or recording is in a test set are left out: AudioCaps' test
clips are in AudioSet, Clotho and ESC-50 share recordings with WavCaps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet2_slit import data_dir
from espnet2_slit.corpora import instruction, leakage
from espnet2_slit.corpora.base import (
    CAPTION,
    Corpus,
    CorpusError,
    Limits,
    build_sets,
    role,
)


@dataclass(frozen=True)
class Recipe:
    """What to make.

    Args:
        corpora: readers of the corpora to train, validate and test on.
        zero_shot: readers of the corpora to test on only, all of their clips.
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


def make(recipe: Recipe, out: Path) -> dict[str, int]:
    """Writes all sets of a recipe.

    Args:
        recipe: what to make.
        out: parent of the sets; what they are made of goes to `out/parts`.

    Returns:
        Samples by set.

    Raises:
        CorpusError: there is nothing to train, to validate or to caption on.
    """
    out = Path(out)
    tests = list(_tests(recipe, out))
    made = {path.name: len(data_dir.sample_ids(path)) for path in tests}
    for part in ("train", "valid"):
        parts = [p for corpus in recipe.corpora for p in _parts(corpus, part, recipe, out)]
        if not parts:
            names = ", ".join(corpus.name for corpus in recipe.corpora) or "no corpus"
            raise CorpusError(f"{names}: no {part} split. Add a corpus that has one.")
        leaking: set[str] = set()
        if recipe.drop_leaking and part == "train":
            for source in parts:
                found = set(leakage.leaking_utterances(source, tests))
                if found:
                    logging.warning(
                        "%s: %d samples left out, a test set has their recordings",
                        *(source.name, len(found)),
                    )
                leaking |= found
        made[f"{part}_caption"] = instruction.join(
            _captioned(parts, recipe, out), out / f"{part}_caption", leaking
        )
        counts = instruction.mix(
            parts,
            out / f"{part}_instruction",
            recipe.wording,
            recipe.alpha if part == "train" else None,
            skip=leaking,
        )
        made[f"{part}_instruction"] = sum(counts.values())
    return made


def _tests(recipe: Recipe, out: Path) -> Iterable[Path]:
    for corpus in recipe.corpora:
        splits = [s for s in corpus.evaluation_splits if s != "all"]
        yield from _build(corpus, splits, recipe, out)
    for corpus in recipe.zero_shot:
        names = corpus.evaluation_splits
        splits = ["all"] if "all" in names else list(names)
        yield from _build(corpus, splits, recipe, out, zero_shot=True)


def _parts(corpus: Corpus, part: str, recipe: Recipe, out: Path) -> Iterable[Path]:
    splits = corpus.train_splits
    if part == "valid":
        splits = [s for s in corpus.splits if role(s, False) == "valid"]
    return _build(corpus, splits, recipe, out / "parts")


def _build(
    corpus: Corpus,
    splits: Sequence[str],
    recipe: Recipe,
    out: Path,
    zero_shot: bool | None = None,
) -> Iterable[Path]:
    if not splits:
        return []
    reports = build_sets(
        corpus, out, splits, limits=recipe.limits, zero_shot=zero_shot
    )
    return [out / report.name for report in reports]


def _captioned(parts: Sequence[Path], recipe: Recipe, out: Path) -> list[Path]:
    """The parts with captions, or captions made of labels."""
    tasks = {part: _tasks(part) for part in parts}
    captions = [part for part in parts if CAPTION in tasks[part]]
    if recipe.label_captions or (recipe.label_captions is None and not captions):
        for part in parts:
            if tasks[part] == {"classification"}:
                captions.append(out / "parts" / f"{part.name}_caption")
                instruction.caption_labels(part, captions[-1], seed=recipe.wording.seed)
    if not captions:
        names = ", ".join(part.name for part in parts)
        raise CorpusError(f"{names}: neither captions nor labels to learn from.")
    return captions


def _tasks(part: Path) -> set[str]:
    return {task for _, task in data_dir.read_pairs(part / "utt2task")}
