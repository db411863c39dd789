"""Reading what publishers ship: CSV of any age, large JSON; and their text, tidied."""

from __future__ import annotations

import codecs
import csv
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espnet2_slit.data.kaldi_dir import DataDirError, one_line

clean = one_line
CorpusError = DataDirError  # one kind of error for data, wherever it comes from


def spell(label: str) -> str:
    """A label as words: `crackling_fire` -> `crackling fire`."""
    return clean(label.replace("_", " "))


def encoding_of(path: Path) -> str:
    """utf-8-sig where the whole file decodes, else iso-8859-1 (older metadata)."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open(path, "rb") as source:
            while block := source.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        logging.info("%s is not UTF-8, read as ISO-8859-1", path)
        return "iso-8859-1"
    return "utf-8-sig"


def read_table(
    path: Path,
    columns: tuple[str, ...],
    header: bool = True,
    delimiter: str = ",",
    tally: Counter | None = None,
) -> Iterator[dict[str, str]]:
    """Rows of a CSV file as dicts, streamed.

    Args:
        path: the file.
        columns: with a header: names it must have; without: names of the columns.
        header: whether the first line names the columns.
        delimiter: "," or tab.
        tally: its "rows" is counted up.

    Yields:
        One dict a row; rows shorter than the table are an error.

    Raises:
        CorpusError: a column is missing or a row is short; names file and line.
    """
    with open(path, encoding=encoding_of(path), newline="") as source:
        rows = csv.reader(source, delimiter=delimiter)
        names = [n.strip() for n in next(rows, [])] if header else list(columns)
        absent = [c for c in columns if c not in names]
        if absent:
            raise CorpusError(
                f"{path}: expected the columns {', '.join(columns)}; "
                f"found {', '.join(names) or 'an empty file'}."
            )
        needed = 1 + max(map(names.index, columns), default=-1)
        for row in rows:
            if not row:
                continue
            if len(row) < needed:
                raise CorpusError(
                    f"{path} line {rows.line_num}: expected {len(names)} columns, "
                    f"found {len(row)}: {row}"
                )
            if tally is not None:
                tally["rows"] += 1
            yield dict(zip(names, row, strict=False))


def number(value: object, where: str) -> float:
    """A finite number that a table must have.

    Args:
        value: as read.
        where: file and row, for the message.

    Returns:
        The number.

    Raises:
        CorpusError: it is none.
    """
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise CorpusError(f"{where}: expected a number, found {value!r}")
    return found


def read_json(path: Path, kind: type) -> Any:
    """A whole JSON file, an object (dict) or an array (list).

    Args:
        path: the file.
        kind: dict or list.

    Returns:
        Its content.

    Raises:
        CorpusError: it is not JSON, or of another kind.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as problem:
        raise CorpusError(f"{path}: expected JSON ({problem})") from None
    if not isinstance(found, kind):
        raise CorpusError(
            f"{path}: expected a JSON {kind.__name__}, found a {type(found).__name__}"
        )
    return found


def check_fields(record: object, fields: tuple[str, ...], where: str) -> None:
    """Refuses a record without some fields, or with something else than text in them.

    Args:
        record: one entry of a JSON or YAML file.
        fields: names it must have; their values are text or whole numbers.
        where: the file and place, for the message.

    Raises:
        CorpusError: names the field.
    """
    if not isinstance(record, dict):
        raise CorpusError(
            f"{where}: expected {', '.join(fields)}; found {record!r:.80}"
        )
    for name in fields:
        if not isinstance(record.get(name), str | int):
            raise CorpusError(
                f"{where}: expected text as {name}, found {record.get(name)!r:.80} in "
                f"{record!r:.200}"
            )


def read_json_array(path: Path, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Members of a JSON list, of which a file may hold millions.

    Args:
        path: the file.
        fields: what each must have, see check_fields.

    Yields:
        The members.

    Raises:
        CorpusError: as for read_json_items.
    """
    for _, value in read_json_items(path, fields, ""):
        yield value


def read_json_items(
    path: Path, fields: tuple[str, ...], key: str | None = None
) -> Iterator[tuple[str, dict]]:
    """Members of a large JSON array or object, one at a time, in bounded memory.

    Args:
        path: the file.
        fields: what each member must have, see check_fields.
        key: where the array is, `{"data": [...]}` -> "data"; "": the file is the
            array; None: it is one object whose members are wanted.

    Yields:
        (member name, value); the name is "" in an array.

    Raises:
        CorpusError: the file is a Git LFS pointer or not such JSON.
    """
    decode = json.JSONDecoder().raw_decode
    with open(path, encoding="utf-8-sig") as source:
        buffer = source.read(1 << 20)
        if buffer.startswith("version https://git-lfs"):
            raise CorpusError(
                f"{path} is a Git LFS pointer, not the data. Fetch it with `git lfs "
                "pull`, or take the JSON file from the publisher's archive."
            )
        begin = {None: r"\s*\{", "": r"\A\s*\["}.get(key, rf'"{key}"\s*:\s*\[')
        start = re.compile(begin).search(buffer)
        if start is None:
            kinds = {None: "an object {...}", "": "a list [...]"}
            expected = kinds.get(key, f'{{"{key}": [...]}}')
            raise CorpusError(f"{path}: expected {expected}, found {buffer[:40]!r}")
        buffer, at, count = buffer[start.end() :], 0, 0
        while True:
            at = _skip(buffer, at)
            name, next_at = "", at
            try:
                if buffer[at : at + 1] in ("]", "}"):
                    return
                if key is None:
                    name, next_at = decode(buffer, at)
                    next_at = _skip(buffer, next_at, ":")
                value, next_at = decode(buffer, next_at)
            except (json.JSONDecodeError, IndexError):
                block = source.read(1 << 20)
                if not block:
                    raise CorpusError(
                        f"{path}: the JSON ends in the middle of a record "
                        f"({buffer[at : at + 80]!r}...); is the download complete?"
                    ) from None
                buffer, at = buffer[at:] + block, 0
                continue
            at, count = next_at, count + 1
            check_fields(value, fields, f"{path} record {count} {name}".rstrip())
            yield name, value


def _skip(buffer: str, at: int, also: str = ",") -> int:
    """The next position that is neither blank nor the given separator."""
    while at < len(buffer) and (buffer[at].isspace() or buffer[at] == also):
        at += 1
    return at
