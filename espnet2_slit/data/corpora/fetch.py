"""Fetching a corpus' archives from a mirror: resumed, checked, safely unpacked.

Only files with a published checksum are fetched. A file that is interrupted goes on
where it stopped; one whose checksum is another is thrown away. Archives are unpacked to
a folder of their own, which appears when it is complete.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from espnet2_slit.common.archives import (
    DAMAGED,
    Entry,
    check_entries,
    extract,
    size_shown,
)
from espnet2_slit.data.corpora.tables import CorpusError

BLOCK = 1 << 20
TIMEOUT_S = 60
ATTEMPTS = 5  # of one file, each going on where the last one stopped
WAIT_S = 2.0  # before the second attempt; doubled for each one after
LOST = (  # what a network does; a full disk is none of it
    urllib.error.URLError,
    ConnectionError,
    TimeoutError,
    http.client.HTTPException,
)
ARCHIVES = (".zip", ".7z", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Mirror:
    """Where a corpus can be had.

    Attributes:
        base_url: http(s) or file address of a folder, or a folder; "{name}" in it
            stands for the file, else the file's name is added behind a "/".
        md5: file name -> MD5 as published, 32 hexadecimal digits.
    """

    base_url: str
    md5: Mapping[str, str]

    def __post_init__(self):
        for name, digest in self.md5.items():
            if "/" in name or name.startswith(".") or not name.isprintable():
                raise CorpusError(f"expected plain file names to fetch, found {name!r}")
            if not re.fullmatch(r"[0-9a-f]{32}", digest):
                raise CorpusError(
                    f"{name}: expected an MD5 of 32 digits, found {digest!r}"
                )

    def url(self, name: str) -> str:
        """Address of a file."""
        base = self.base_url
        if urlsplit(base).scheme not in ("http", "https", "file"):
            if not os.path.isdir(base):
                raise CorpusError(
                    f"expected an http(s) or file address, or a folder; found {base}"
                )
            base = Path(base).resolve().as_uri()
        if "{name}" in base:
            return base.replace("{name}", quote(name))
        return f"{base.rstrip('/')}/{quote(name)}"


def read_md5(path: Path) -> dict[str, str]:
    """File name -> MD5 of a list as md5sum writes it, `<md5>  <name>` a line.

    Args:
        path: the list.

    Returns:
        At least one entry, in the list's order.

    Raises:
        CorpusError: a line is of another form; names file and line.
    """
    found = {}
    for number, line in enumerate(Path(path).read_text("utf-8").split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{32}) [ *](.+)", line.rstrip("\r"))
        if match is None:
            raise CorpusError(
                f"{path} line {number}: expected `<md5>  <name>` as md5sum writes it, "
                f"found {line!r}"
            )
        found[match[2].removeprefix("./")] = match[1].lower()
    if not found:
        raise CorpusError(f"{path}: expected lines `<md5>  <name>`, found none")
    return found


def fetch(mirror: Mirror, out: Path, unpack: bool = True, keep: bool = True) -> None:
    """Fetches and unpacks all files of a mirror; what is there already is left alone.

    Args:
        mirror: where from, what, and its checksums.
        out: folder of the files; each archive is unpacked to a folder beside it that is
            named after it.
        unpack: False leaves archives as they are.
        keep: False removes archives that are unpacked.

    Raises:
        CorpusError: a file can't be had, has another checksum, or an archive would
            write outside its folder.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    open_files = [
        name for name in mirror.md5 if not _is_done(out, name, mirror, unpack)
    ]
    for name in mirror.md5.keys() - set(open_files):
        logging.info("%s is there", out / name)
    _announce({name: mirror.url(name) for name in open_files}, out)
    for name in open_files:
        path, digest = out / name, mirror.md5[name]
        if not (path.is_file() and md5_of(path) == digest):
            download(mirror.url(name), path, digest)
        if unpack and _stem(name) != name:
            unpack_archive(path, out / _stem(name))
            if not keep:
                path.unlink()
        (out / f".{name}.md5").write_text(f"{digest}\n", encoding="utf-8")


def _is_done(out: Path, name: str, mirror: Mirror, unpack: bool) -> bool:
    """Whether an earlier run fetched just this file, to the end."""
    marker, unpacked = out / f".{name}.md5", out / _stem(name)
    if not marker.is_file() or marker.read_text("utf-8").strip() != mirror.md5[name]:
        return False
    return unpacked.exists() if unpack else (out / name).is_file()


def _stem(name: str) -> str:
    """An archive's name without its suffix; other names are returned as they are."""
    for suffix in ARCHIVES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _announce(urls: Mapping[str, str], out: Path) -> None:
    """Says what will be fetched and how large it is; refuses what does not fit.

    Raises:
        CorpusError: the disk has less room than the files' sizes.
    """
    total = 0
    for name, url in urls.items():
        size = _size(url)
        logging.info(
            "%s: %s", url, "size unknown" if size is None else size_shown(size)
        )
        total += max((size or 0) - _size_of(out / f".{name}.part"), 0)
    free = shutil.disk_usage(out).free
    if urls:
        logging.info(
            "%s to fetch, %s free in %s", size_shown(total), size_shown(free), out
        )
    if total > free:
        raise CorpusError(
            f"{out}: {size_shown(total)} to fetch, {size_shown(free)} free. Give "
            "another --out."
        )


def _size(url: str) -> int | None:
    """Bytes behind an address, None where its server does not say."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, TypeError, ValueError, http.client.HTTPException):
        return None  # the download itself tells what is wrong


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def md5_of(path: Path) -> str:
    """MD5 of a file, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(
            stream, lambda: hashlib.md5(usedforsecurity=False)
        ).hexdigest()


# --------------------------------------------------------------------------- download


def download(url: str, path: Path, md5: str) -> None:
    """Fetches one file; it gets its name when its checksum is right.

    Args:
        url: http, https or file address.
        path: where it goes; `.<name>.part` beside it holds what is there so far.
        md5: what it must be, hexadecimal.

    Raises:
        CorpusError: it can't be had, or is another file than expected.
    """
    part = path.with_name(f".{path.name}.part")
    for attempt in range(1, ATTEMPTS + 1):
        is_fresh = not part.exists()
        try:
            _download_rest(url, part, path.name)
        except LOST as problem:
            if _is_final(problem):
                raise CorpusError(f"{url}: {problem}") from problem
            if getattr(problem, "code", None) != 416:  # 416: there is no more of it
                _wait(attempt, url, problem)
                continue
        found = md5_of(part)
        if found == md5:
            os.replace(part, path)
            logging.info("%s: %s, MD5 as published", path, size_shown(_size_of(path)))
            return
        part.unlink()
        if is_fresh:
            raise CorpusError(
                f"{url}: expected MD5 {md5}, found {found}. The file was changed, or "
                "something between here and there answers in its place; it was removed."
            )
        logging.warning("%s: the part from before is of another file, again", url)
    raise CorpusError(f"{url}: not complete after {ATTEMPTS} attempts. Run it again.")


def _is_final(problem: Exception) -> bool:
    """Whether another attempt would fail as well."""
    if isinstance(problem, urllib.error.HTTPError):
        return problem.code < 500 and problem.code not in (408, 416, 429)
    return isinstance(getattr(problem, "reason", None), FileNotFoundError)


def _wait(attempt: int, url: str, problem: Exception) -> None:
    """Sleeps before the next attempt.

    Raises:
        CorpusError: there is none.
    """
    if attempt == ATTEMPTS:
        raise CorpusError(
            f"{url}: {problem} ({ATTEMPTS} attempts). What arrived is kept: the same "
            "command goes on from there."
        ) from problem
    seconds = WAIT_S * 2 ** (attempt - 1)
    logging.warning("%s: %s; again in %g s", url, problem, seconds)
    time.sleep(seconds)


def _download_rest(url: str, part: Path, name: str) -> None:
    """Adds to `part` what it lacks of the file, or writes it anew where it must."""
    begin = _size_of(part)
    request = urllib.request.Request(url)
    if begin:
        request.add_header("Range", f"bytes={begin}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        if begin and not _goes_on(answer, begin):
            begin = 0  # the server sends all of it
        length = answer.headers.get("Content-Length")
        total = begin + int(length) if length else None
        with (
            open(part, "ab" if begin else "wb") as out,
            _bar(name, total, begin) as bar,
        ):
            while block := answer.read(BLOCK):
                out.write(block)
                bar.update(len(block))
    if total is not None and _size_of(part) < total:
        raise http.client.IncompleteRead(b"", total - _size_of(part))


def _goes_on(answer, begin: int) -> bool:
    """Whether an answer is the rest of the file that was asked for."""
    said = answer.headers.get("Content-Range") or ""
    return getattr(answer, "status", None) == 206 and said.startswith(f"bytes {begin}-")


def _bar(name: str, total: int | None, begin: int):
    from tqdm import tqdm

    return tqdm(
        desc=name,
        total=total,
        initial=begin,
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        disable=None,  # on a terminal only
    )


# ----------------------------------------------------------------------------- unpack


def unpack_archive(path: Path, folder: Path) -> None:
    """Unpacks an archive; nothing of it is written where something is not as it must.

    Args:
        path: .zip, .7z or .tar, the latter also compressed.
        folder: gets the content, whole or not at all; replaced if it is there.

    Raises:
        CorpusError: it is no such archive, or is damaged; it holds a link, a device or
            a path outside the folder; or its content does not fit on the disk.
    """
    path, folder = Path(path), Path(folder)
    fresh = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        _extract(path, fresh)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    logging.info("%s: unpacked to %s", path, folder)


def _extract(path: Path, folder: Path) -> None:
    suffix = path.name[len(_stem(path.name)) :].lower()
    if suffix == ".7z":
        _extract_7z(path, folder)
    elif suffix:
        extract(path, folder, CorpusError)
    else:
        raise CorpusError(f"{path}: expected one of {', '.join(ARCHIVES)}")


def _extract_7z(path: Path, folder: Path) -> None:
    try:
        import py7zr
    except ImportError:
        raise CorpusError(
            f"{path}: unpacking .7z needs py7zr: pip install py7zr (or "
            f"unpack it yourself: 7z x {path.name})"
        ) from None
    try:
        with py7zr.SevenZipFile(path) as archive:
            check_entries(path, folder, _7z_entries(archive), CorpusError)
            archive.extract(folder)
    except (py7zr.exceptions.ArchiveError, *DAMAGED) as problem:
        raise CorpusError(f"{path}: damaged, or no .7z archive: {problem}") from None


def _7z_entries(archive) -> Iterator[Entry]:
    for info in archive.files:
        odd = info.is_symlink or info.is_junction or info.is_socket
        name = f"{info.filename}/" if info.is_directory else info.filename
        yield Entry(name, info.uncompressed or 0, not odd)
