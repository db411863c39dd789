"""What decoding and data directories hold, read for scoring and checked to agree.

Owns the file formats between decoding and scoring, for this package's systems and for
any other's predictions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_slit.common.files import read_json
from espnet2_slit.data.kaldi_dir import clip_of, read_pairs
from espnet2_slit.scoring.metrics.bootstrap import Score
from espnet2_slit.scoring.metrics.captioning import CaptionOptions
from espnet2_slit.scoring.metrics.score_table import ScoreTable

DECODE_SCHEMA = 1
EXAMPLES = 8  # of each task in the report


class ScoringError(ValueError):
    """Predictions and data do not fit; the message says what was expected."""


@dataclass(frozen=True)
class TaskOfSet:
    """One task of one set, on its way into the table.

    Attributes:
        table: to add to.
        data_dir: the set's data directory.
        task: what the predictions answer.
        path: a file (another system's) or the task's folder in a decode directory.
        external: the predictions are another system's.
        protocol: what is known before scoring, of data, model and decoding.
        options: of the caption metrics.
    """

    table: ScoreTable
    data_dir: Path
    task: str
    path: Path
    external: bool
    protocol: dict[str, Any]
    options: CaptionOptions = field(default_factory=CaptionOptions)

    def add(
        self,
        where: tuple[str, ...],
        scores: Mapping[str, Score],
        protocol: dict[str, Any],
        n: int,
        units: Collection[str],
        chance: Mapping[str, float] | None = None,
    ) -> None:
        """Add a group of scores as `ScoreTable.add`; `protocol` is the group's own."""
        self.table.add(
            self.data_dir.name,
            self.task,
            where,
            scores,
            self.protocol | protocol,
            n,
            units,
            chance,
        )

    def keep(self, details: Any) -> None:
        """What the report shows of this task beside its scores."""
        self.table.details.setdefault(self.data_dir.name, {})[self.task] = details

    def file(self, name: str) -> Path:
        """The file of predictions: another system's, or `name` in the task's folder.

        Raises:
            ScoringError: it is not there.
        """
        path = self.path if self.external else self.path / name
        if not path.is_file():
            raise ScoringError(f"{path}: expected this file; decode the set again")
        return path


def read_decode(folder: Path) -> dict[str, Any]:
    """decode.json of a set.

    Args:
        folder: `<decode directory>/<set>`.

    Returns:
        Its content.

    Raises:
        ScoringError: the folder or decode.json is missing (decoding did not end), or
            its schema is another.
    """
    path = Path(folder) / "decode.json"
    if not path.is_file():
        found = sorted(p.name for p in Path(folder).glob("*"))
        raise ScoringError(
            f"{path}: expected decode.json, which decoding writes last; found "
            f"{', '.join(found) or 'nothing'}. Decoding of this set is not complete: "
            "run it again, it continues."
        )
    remedy = "Delete it and decode again with this version."
    return read_json(path, DECODE_SCHEMA, remedy, ScoringError)


def decoded_sets(decode_dir: Path) -> list[str]:
    """Names of the sets below a decode directory, complete or not.

    Raises:
        ScoringError: no such directory.
    """
    decode_dir = Path(decode_dir)
    if not decode_dir.is_dir():
        raise ScoringError(
            f"{decode_dir}: expected a decode directory (slit_inference writes it), "
            "found none"
        )
    skipped = re.compile(r"^(report|logdir|log|control_.*|\..*)$")
    return sorted(
        p.name for p in decode_dir.iterdir() if p.is_dir() and not skipped.match(p.name)
    )


def read_references(data_dir: Path) -> dict[str, list[str]]:
    """clip id -> its reference texts: from `references`, else from `text`."""
    data_dir = Path(data_dir)
    references: dict[str, list[str]] = {}
    if (data_dir / "references").is_file():
        for clip, text in read_pairs(data_dir / "references"):
            references.setdefault(clip, []).append(text)
        return references
    clips = clip_of(data_dir)
    for sample, text in read_pairs(data_dir / "text"):
        references.setdefault(clips.get(sample, sample), []).append(text)
    return references


def check_ids(
    expected: Iterable[str], found: Iterable[str], expected_in: object, found_in: object
) -> None:
    """Refuse predictions for other items than the data's.

    Args:
        expected: ids of the data.
        found: ids of the predictions.
        expected_in: the data's file or folder, for the message.
        found_in: the predictions' file, for the message.

    Raises:
        ScoringError: counts of both sides and examples of what is missing or too much.
    """
    expected, found = set(expected), set(found)
    if expected == found:
        return
    parts = []
    for what, ids in (
        ("missing", expected - found),
        ("not in the data", found - expected),
    ):
        if ids:
            shown = ", ".join(repr(i) for i in sorted(ids)[:3])
            parts.append(f"{len(ids)} {what} (e.g. {shown})")
    raise ScoringError(
        f"{found_in}: expected the {len(expected)} ids of {expected_in}, found "
        f"{len(found)}: {'; '.join(parts)}. Decode the set again, or score against the "
        "data it was decoded from (--data_dir)."
    )


def load_arrays(path: Path, known: list[tuple[str, ...]]) -> dict[str, np.ndarray]:
    """Arrays of an .npz file, without pickles.

    Args:
        path: of the file.
        known: the arrays of one of these tuples must be there.

    Returns:
        {name: array}.

    Raises:
        ScoringError: not an .npz file, or none of the tuples is complete.
    """
    path = Path(path)
    if not path.is_file():
        raise ScoringError(f"{path}: expected this file; decode the set again")
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except Exception as error:  # a truncated zip raises one of several
        raise ScoringError(
            f"{path}: expected an .npz file without pickled objects, found "
            f"{type(error).__name__}: {error}"
        ) from error
    if not any(set(names) <= set(arrays) for names in known):
        options = " or ".join("(" + ", ".join(names) + ")" for names in known)
        raise ScoringError(f"{path}: expected {options}, found {sorted(arrays)}")
    return arrays


def strings(array: np.ndarray) -> list[str]:
    """An array of names as a list."""
    return [str(v) for v in np.asarray(array).reshape(-1)]


def unit_length(array: np.ndarray, name: str) -> np.ndarray:
    """(N, E) embeddings divided by their lengths, float32.

    Raises:
        ScoringError: another shape, or embeddings that are zero or not finite.
    """
    if array.ndim != 2:
        raise ScoringError(f"{name}: expected (items, width), found {array.shape}")
    array = array.astype(np.float32)
    norm = np.linalg.norm(array, axis=1, keepdims=True)
    if not np.isfinite(norm).all() or (norm == 0).any():
        raise ScoringError(
            f"{name}: expected embeddings of a length, found "
            f"{int((~(norm > 0)).sum())} that are zero or not finite"
        )
    return array / norm


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of the numbers below `count`, evenly from first to last."""
    return np.unique(np.linspace(0, count - 1, wanted).astype(int)).tolist()
