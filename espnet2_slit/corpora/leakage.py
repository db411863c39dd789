"""Which test clips were trained on: compared by clip, by source and by file.

Corpora overlap where they took the same recordings from YouTube or Freesound
(AudioCaps and AudioSet; Clotho, ESC-50, FSD50K, UrbanSound8K and WavCaps). `utt2source`
holds "youtube:<id>" or "freesound:<id>", so recordings meet across corpora.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from espnet2_slit import data_dir

KINDS = ("clip", "source", "file")


@dataclass(frozen=True)
class Overlap:
    """Test clips of one set that one training set also has.

    Args:
        train, test: names of the data directories.
        kind: "clip" (same clip id), "source" (same YouTube or Freesound recording,
            maybe another part of it) or "file" (same audio path).
        clips: how many test clips; `of` all of the set.
        unknown: test and training samples without a source, which can't be compared.
        zero_shot: the test set claims that it was never trained on.
        examples: a few of the shared values.
    """

    train: str
    test: str
    kind: str
    clips: int
    of: int
    unknown: tuple[int, int]
    zero_shot: bool
    examples: tuple[str, ...]


@dataclass
class _Origins:
    """Per kind: value -> clip ids that have it."""

    values: dict[str, dict[str, set[str]]]
    clips: set[str]
    unknown: int


def _samples(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """(utterance, clip, source, file) of each sample, "" where not known.

    A clip id that stands in for the source counts as not known; so does the file where
    segments cut several clips from it.
    """
    clips = data_dir.clip_of(folder)
    paths = data_dir.read_map(folder / "wav.scp")
    has_sources = (folder / "utt2source").is_file()
    sources = data_dir.read_map(folder / "utt2source") if has_sources else {}
    whole = not (folder / "segments").is_file()
    for utterance in data_dir.sample_ids(folder):
        clip = clips.get(utterance, utterance)
        source = sources.get(utterance, "")
        path = paths[utterance] if whole else ""
        yield utterance, clip, "" if source == clip else source, path


def _origins(folder: Path) -> _Origins:
    values: dict[str, dict[str, set[str]]] = {kind: {} for kind in KINDS}
    clips, unknown = set(), 0
    for _, clip, source, path in _samples(folder):
        clips.add(clip)
        unknown += not source
        for kind, value in zip(KINDS, (clip, source, path), strict=True):
            if value:
                values[kind].setdefault(value, set()).add(clip)
    return _Origins(values, clips, unknown)


def find_overlaps(train: Iterable[Path], test: Iterable[Path]) -> list[Overlap]:
    """Compares every training set with every test set.

    Args:
        train: data directories that were trained on.
        test: data directories to score.

    Returns:
        One row a pair and kind, also where nothing overlaps (clips = 0).
    """
    train, test = [Path(d) for d in train], [Path(d) for d in test]
    tested = {folder: _origins(folder) for folder in test}
    rows = []
    for trained in train:
        known = _origins(trained)  # one training set in memory at a time
        for folder, origins in tested.items():
            claim = data_dir.read_set(folder)["zero_shot"]
            for kind in KINDS:
                shared = known.values[kind].keys() & origins.values[kind].keys()
                clips = set().union(*(origins.values[kind][v] for v in shared))
                rows.append(
                    Overlap(
                        train=trained.name,
                        test=folder.name,
                        kind=kind,
                        clips=len(clips),
                        of=len(origins.clips),
                        unknown=(known.unknown, origins.unknown),
                        zero_shot=bool(claim),
                        examples=tuple(sorted(shared)[:3]),
                    )
                )
    return rows


def leaking_utterances(train: Path, test: Iterable[Path]) -> Iterator[str]:
    """Training utterances that share a clip, a source or a file with a test set.

    Args:
        train: data directory that is trained on.
        test: data directories to score.

    Yields:
        Utterance ids, in the order of the training set.
    """
    tested = [_origins(Path(folder)) for folder in test]
    banned = {
        kind: set().union(*(origins.values[kind] for origins in tested))
        for kind in KINDS
    }
    for utterance, *found in _samples(Path(train)):
        pairs = zip(KINDS, found, strict=True)
        if any(value and value in banned[kind] for kind, value in pairs):
            yield utterance


def report(overlaps: Iterable[Overlap]) -> str:
    """The comparison as a table, claims that do not hold marked."""
    out = [f"{'train':<28}{'test':<28}{'same':<8}{'test clips':>16}  examples"]
    for row in overlaps:
        share = f"{row.clips:,} of {row.of:,}"
        line = f"{row.train:<28}{row.test:<28}{row.kind:<8}{share:>16}"
        line += f"  {', '.join(row.examples)}" if row.examples else ""
        if row.clips and row.zero_shot:
            line += "  <- NOT ZERO-SHOT"
        if row.kind == "source" and any(row.unknown):
            line += (
                f"  (no source known: {row.unknown[0]:,} training, "
                f"{row.unknown[1]:,} test samples)"
            )
        out.append(line)
    return "\n".join(out) + "\n"
