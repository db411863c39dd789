"""Archives whose author is not trusted: unpacked below one folder, or refused whole.

Owns what an entry may be. Where the files go in the end is the business of the caller.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# What the two modules raise for a damaged archive.
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,  # of zipfile: it has a password, or is packed in an unknown way
)


class Entry(NamedTuple):
    """One entry of an archive.

    Attributes:
        name: its path in the archive.
        size: bytes when unpacked.
        plain: a file or a folder, no link and no device.
    """

    name: str
    size: int
    plain: bool


def extract(
    archive: str | Path, folder: str | Path, error: type[Exception] = ValueError
) -> None:
    """Extract a zip or a tar archive, the latter also compressed.

    Args:
        archive: the file.
        folder: existing empty folder.
        error: kind of error to raise.

    Raises:
        error: no such archive, damaged or truncated; an entry leads outside the folder,
            is a link or a device, or has another one's name; or the disk is too small.
            What was written by then is for the caller to remove.
    """
    archive = Path(archive)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                check_entries(archive, folder, _zip_entries(opened), error)
                for info in opened.infolist():
                    opened.extract(info, folder)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                check_entries(archive, folder, _tar_entries(tar), error)
                tar.extractall(folder, filter="data")
        else:
            raise error(
                f"{archive}: damaged, or no archive: neither a zip nor a tar archive, "
                "or truncated. Copy it again."
            )
    except DAMAGED as problem:
        raise error(
            f"{archive}: damaged, or no {archive.suffix} archive: {problem}. It may be "
            "truncated: copy it again."
        ) from problem


def check_entries(
    archive: Path,
    folder: str | Path,
    entries: Iterable[Entry],
    error: type[Exception] = ValueError,
) -> None:
    """Refuse an archive that would write anything but files below a folder.

    Args:
        archive: named in the error.
        folder: where it is to be unpacked.
        entries: all of them.
        error: kind of error to raise.

    Raises:
        error: names the first entry that is refused.
    """
    total, seen = 0, set()
    for entry in entries:
        path = PurePosixPath(entry.name.replace("\\", "/"))
        first = path.parts[0] if path.parts else ""
        if path.is_absolute() or ".." in path.parts or ":" in first:
            raise error(
                f"{archive}: {entry.name!r} leads outside its folder, refused. Do not "
                "use this archive."
            )
        if not entry.plain:
            raise error(
                f"{archive}: {entry.name!r} is a link or device, refused. Do not use "
                "this archive."
            )
        if str(path) in seen and not entry.name.endswith("/"):
            raise error(
                f"{archive}: two entries have one name, {entry.name!r}, refused. Do "
                "not use this archive."
            )
        seen.add(str(path))
        total += entry.size
    free = shutil.disk_usage(folder).free
    if total > free:
        raise error(
            f"{archive}: unpacks to {size_shown(total)}, free are {size_shown(free)}"
        )


def _zip_entries(archive: zipfile.ZipFile) -> Iterable[Entry]:
    for info in archive.infolist():
        mode = info.external_attr >> 16  # 0 where it was not made on Unix
        regular = not stat.S_IFMT(mode) or stat.S_ISREG(mode)
        yield Entry(info.filename, info.file_size, regular or info.is_dir())


def _tar_entries(archive: tarfile.TarFile) -> Iterable[Entry]:
    for info in archive:
        name = f"{info.name}/" if info.isdir() else info.name
        yield Entry(name, info.size, info.isfile() or info.isdir())


def size_shown(size: float) -> str:
    """Bytes for people: 1.28 MB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
