"""Files: written whole or not at all, read with errors that say what is wrong.

Owns the one way to write a file, its checksum, and reading YAML, JSON and lists of
lines. What is in the files is the business of the rooms above.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

UNFINISHED = ".*.tmp"  # glob of what a killed `atomic` leaves behind


@contextlib.contextmanager
def atomic(path: str | Path, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a binary file that appears under its name only when it is whole.

    Args:
        path: file to make or replace; its folder is made.
        durable: wait until the bytes are on the disk, so that even a crash of the
            machine leaves the old file or the new one; costs milliseconds.

    Yields:
        The stream.

    Raises:
        OSError: names `path`; the file is then as it was before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not of tempfile: its files are private to the user, and the umask, which says how
    # they should be, cannot be read without changing it for all threads.
    part = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(part, "xb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.filename in (None, str(part)):
            error.filename = str(path)  # a full disk does not say of which file
        raise
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: str | Path, lines: Iterable[str]) -> None:
    """Write lines, given without their ends, as UTF-8; see `atomic`."""
    with atomic(path) as stream:
        stream.writelines(f"{line}\n".encode() for line in lines)


def write_text(path: str | Path, text: str) -> None:
    """Write text as it is, as UTF-8; see `atomic`."""
    with atomic(path) as stream:
        stream.write(text.encode())


def write_json(path: str | Path, content: Any, **options: Any) -> None:
    """Write JSON, keys in the order given; see `atomic`.

    Args:
        path: file to make or replace.
        content: plain values.
        **options: of json.dumps.
    """
    text = json.dumps(content, **{"indent": 1, "ensure_ascii": False, **options})
    write_text(path, text + "\n")


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_lines(path: str | Path) -> list[str]:
    r"""Lines of a list without ids, such as `labels`, once each; empty ones left out.

    Only "\n" ends a line: a label may hold U+2028 or U+0085, at which str.splitlines
    would cut it.

    Args:
        path: file with one entry a line.

    Returns:
        Entries in the file's order, blanks around them removed.
    """
    with open(path, encoding="utf-8-sig", newline="\n") as stream:
        stripped = (line.strip(" \t\r\n") for line in stream)
        return list(dict.fromkeys(line for line in stripped if line))


def read_yaml(
    path: str | Path, remedy: str, error: type[Exception] = ValueError
) -> dict:
    """A YAML file of `key: value`, plain values only.

    Args:
        path: of the file.
        remedy: last sentence of an error: what to do.
        error: kind of error to raise.

    Returns:
        The content; {} of an empty file.

    Raises:
        error: missing, not YAML, of other than plain values, not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise error(f"{path}: no such file. {remedy}")
    try:
        with open(path, encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise error(
            f"{path}: expected YAML of plain values, found {problem}. {remedy}"
        ) from problem
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise error(
            f"{path}: expected lines `key: value`, found {type(content).__name__}."
            f" {remedy}"
        )
    return content


def read_json(
    path: str | Path, schema: int, remedy: str, error: type[Exception] = ValueError
) -> dict:
    """A JSON file of one of our schemas.

    Args:
        path: of the file.
        schema: its number, under the key "schema".
        remedy: last sentence of an error: what to do.
        error: kind of error to raise.

    Returns:
        The content.

    Raises:
        error: missing, not JSON, or of another schema.
    """
    path = Path(path)
    if not path.is_file():
        raise error(f"{path}: no such file. {remedy}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise error(f"{path}: expected JSON, found {problem}. {remedy}") from problem
    found = content.get("schema") if isinstance(content, dict) else content
    if found != schema:
        raise error(f"{path}: expected schema {schema}, found {found!r}. {remedy}")
    return content
