"""Rows of a table of one's own: CSV, TSV or JSONL, as people really have them.

Owns the columns, the encodings and the quoting; what a row is for is `manifest`'s
business. Whatever cannot be meant (a number as text, two columns of one name, ...) is
an error that names file and line.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from espnet2_slit.data.kaldi_dir import DataDirError

COLUMNS = (
    *("audio", "text", "instruction", "task", "split", "start", "end", "category"),
    *("source", "choices", "text_variants"),
)
LISTS = {"choices": 2, "text_variants": 1}  # fewest texts
TIMES = ("start", "end")
NAMES = ("category", "source")  # may be numbers: ids of a publisher
BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}

Row = dict[str, str]


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number, columns) of every sample of a manifest.

    A row of JSONL whose text is a list is one sample for each of its captions.

    Args:
        path: .csv, .tsv or .jsonl file in UTF-8 or, with a byte order mark, UTF-16.

    Yields:
        Rows with all COLUMNS, "" where there is none; LISTS as JSON.

    Raises:
        DataDirError: not such a file; the message gives file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataDirError(
            f"{path}: no such manifest. Expected a CSV or JSONL file with"
            f" {','.join(COLUMNS[:2])}[,{','.join(COLUMNS[2:])}]"
        )
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl", ".json"):
        raise DataDirError(f"{path}: expected .csv, .tsv or .jsonl, found {suffix!r}")
    reader = _json_rows if suffix.startswith(".json") else _table_rows
    encoding = _encoding(path)
    try:
        with open(path, encoding=encoding, newline="") as stream:
            yield from reader(path, stream)
    except UnicodeError as error:
        where = getattr(error, "start", 0)
        raise DataDirError(
            f"{path}: is not UTF-8 ({getattr(error, 'reason', error)} at byte {where})."
            f" Convert it: iconv -f ISO-8859-1 -t UTF-8 {path.name}"
        ) from error


def _encoding(path: Path) -> str:
    with open(path, "rb") as stream:
        head = stream.read(64)
    for mark, encoding in BOMS.items():
        if head.startswith(mark):
            if encoding == "utf-16":
                logging.warning("%s: read as UTF-16", path)
            return encoding
    if b"\0" in head:
        raise DataDirError(
            f"{path}: is not UTF-8 (zero bytes, as UTF-16 has them). Convert it: iconv"
            f" -f UTF-16LE -t UTF-8 {path.name}"
        )
    return "utf-8"


def _check_columns(path: Path, found: list[str], line: int) -> None:
    missing = [name for name in ("audio", "text") if name not in found]
    unknown = [name for name in found if name not in COLUMNS]
    twice = sorted({name for name in found if found.count(name) > 1})
    wrong = [f"lacks {', '.join(missing)}"] if missing else []
    wrong += [f"does not know {', '.join(map(repr, unknown))}"] if unknown else []
    wrong += [f"has {', '.join(map(repr, twice))} twice"] if twice else []
    if wrong:
        raise DataDirError(
            f"{path} line {line}: {' and '.join(wrong)}. Expected columns audio,text"
            f" and any of {','.join(COLUMNS[2:])}; found {','.join(found) or 'none'}"
        )


# ------------------------------------------------------------------------- CSV, TSV


def _table_rows(path: Path, stream: TextIO) -> Iterator[tuple[int, Row]]:
    is_tsv = path.suffix.lower() == ".tsv"
    # Tabs need no quotes: in a TSV a quote is a sign like others, mostly.
    if is_tsv:
        rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        rows = csv.reader(stream, strict=True)
    try:
        names = [name.strip().lower() for name in next(rows, [])]
        _check_columns(path, names, 1)
        for cells in rows:
            if not cells:
                continue
            if len(cells) != len(names):
                advice = "A text holds no tab" if is_tsv else "Put quotes around text"
                raise DataDirError(
                    f"{path} line {rows.line_num}: expected {len(names)} columns"
                    f" ({','.join(names)}), found {len(cells)}. {advice} that holds a"
                    f" {'line end' if is_tsv else 'comma'}."
                )
            if is_tsv:
                cells = [_unquoted(cell) for cell in cells]
            row = {**dict.fromkeys(COLUMNS, ""), **dict(zip(names, cells, strict=True))}
            for name in LISTS:
                row[name] = _list_of_cell(path, rows.line_num, name, row[name])
            yield rows.line_num, row
    except csv.Error as error:
        raise DataDirError(f"{path} line {rows.line_num}: {error}") from error


def _unquoted(cell: str) -> str:
    """A cell of a spreadsheet's TSV without the quotes that it has put around."""
    inner = cell[1:-1]
    is_quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    if is_quoted and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell


def _list_of_cell(path: Path, line: int, name: str, cell: str) -> str:
    """Texts in a cell: a JSON list, or with | between them."""
    if not cell.strip():
        return ""
    options: Any = [option.strip() for option in cell.split("|")]
    if cell.lstrip().startswith("["):
        try:
            options = json.loads(cell)
        except json.JSONDecodeError:
            options = None
    return _list(path, line, name, options)


# ------------------------------------------------------------------------------ JSONL


def _json_rows(path: Path, stream: TextIO) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            pairs = json.loads(line, object_pairs_hook=_Pairs)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataDirError(
                f"{path} line {number}: is not JSON ({getattr(error, 'msg', error)})."
                ' Expected one object a line, as {"audio": "a.wav", "text": "a dog"}'
            ) from error
        if not isinstance(pairs, _Pairs):
            raise DataDirError(
                f"{path} line {number}: expected an object, found"
                f" {type(pairs).__name__}"
            )
        _check_columns(path, [name for name, _ in pairs], number)
        values = {name: _plain(value) for name, value in pairs}
        texts = values.pop("text")
        row = {**dict.fromkeys(COLUMNS, "")}
        for name, value in values.items():
            if name in LISTS:
                row[name] = "" if value is None else _list(path, number, name, value)
            else:
                row[name] = _text(path, number, name, value)
        for text in (texts or [""]) if isinstance(texts, list) else [texts]:
            yield number, {**row, "text": _text(path, number, "text", text)}


class _Pairs(list[tuple[str, Any]]):
    """The members of an object, also those of one name."""


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, _Pairs) else value


def _text(path: Path, line: int, name: str, value: Any) -> str:
    if value is None:
        return ""
    kinds: tuple[type, ...] = (str,)
    if name in TIMES:
        kinds = (str, int, float)
    elif name in NAMES:
        kinds = (str, int)
    if not isinstance(value, kinds) or isinstance(value, bool):
        also = " or a list of texts" if name == "text" else ""
        wanted = "seconds" if name in TIMES else f"a text{also}"
        raise DataDirError(
            f"{path} line {line}: {name} is {value!r:.60}, expected {wanted}. Put"
            " quotes around it where it is meant as text."
        )
    return str(value)


def _list(path: Path, line: int, name: str, texts: Any) -> str:
    is_list = isinstance(texts, list) and len(texts) >= LISTS[name]
    if not is_list or not all(isinstance(t, str) and t.strip() for t in texts):
        raise DataDirError(
            f"{path} line {line}: {name} is {texts!r:.60}, expected a list of"
            f" {'two or more' if LISTS[name] > 1 else 'one or more'} texts."
        )
    return json.dumps(texts, ensure_ascii=False)
