"""`choices`: the options of questions that have their own, one JSON list a sample."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from espnet2_slit.common.templates import MAX_OPTIONS
from espnet2_slit.data.kaldi_dir import DataDirError, read_map


def read_choices(data_dir: Path, ids: Collection[str]) -> dict[str, list[str]]:
    """`choices` of a set: id -> options, of the questions that have them.

    Args:
        data_dir: of the set.
        ids: its samples.

    Returns:
        {} without such a file.

    Raises:
        DataDirError: a line is no JSON list of two or more texts, or of another sample.
    """
    path = data_dir / "choices"
    if not path.is_file():
        return {}
    found = {}
    for key, value in read_map(path).items():
        try:
            options = json.loads(value)
        except ValueError:
            options = None
        if (
            not isinstance(options, list)
            or not 2 <= len(options) <= MAX_OPTIONS
            or not all(isinstance(option, str) for option in options)
        ):
            raise DataDirError(
                f"{path}: expected an id and a JSON list of 2 to {MAX_OPTIONS} texts a"
                f" line, found {key} {value[:80]}"
            )
        found[key] = options
    unknown = sorted(set(found) - set(ids))
    if unknown:
        raise DataDirError(
            f"{path}: expected ids of {data_dir / 'text'}, found {len(unknown)} others"
            f" (e.g. {unknown[0]!r})"
        )
    return found


def rotated(options: Sequence[str], by: int) -> list[str]:
    """The options from number `by` on, then those before: as shown in another order."""
    by %= len(options)
    return [*options[by:], *options[:by]]


def rotated_files(folder: Path) -> list[Path]:
    """Answers to the options in other orders, `text.rotated<by>`, in this order."""
    found = Path(folder).glob("text.rotated*")
    return sorted(found, key=lambda p: int(p.suffix.removeprefix(".rotated")))
