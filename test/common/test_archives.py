"""Claims about archives: below one folder, or refused whole.

What packed systems and corpora must not hold is tested with them, too.
"""

import io
import os
import tarfile
import zipfile

import pytest

from espnet2_slit.common.archives import extract, size_shown


def make_zip(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"" if name.endswith("/") else b"x")
    return path


def make_tar(path, *names, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:xz") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, 0 if kind != tarfile.REGTYPE else 1
            info.mode = 0o644 if kind == tarfile.REGTYPE else 0o755
            archive.addfile(info, io.BytesIO(b"x"))
    return path


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_files_and_folders_are_extracted(tmp_path, make):
    (tmp_path / "out").mkdir()
    extract(make(tmp_path / "a", "x", "b/c d.wav"), tmp_path / "out")
    assert (tmp_path / "out" / "x").read_bytes() == b"x"
    assert (tmp_path / "out" / "b" / "c d.wav").read_bytes() == b"x"


def test_a_folder_may_be_named_before_what_is_in_it(tmp_path):
    (tmp_path / "out").mkdir()
    extract(make_zip(tmp_path / "a", "b/", "b/x", "b/"), tmp_path / "out")
    assert os.listdir(tmp_path / "out" / "b") == ["x"]


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("names", [("x", "x"), ("b/x", "./b/x"), ("b/x", "b//x")])
def test_two_entries_of_one_name_are_refused(tmp_path, make, names):
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyError, match="two entries have one name"):
        extract(make(tmp_path / "a", *names), tmp_path / "out", KeyError)
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="'x' is a link or device"):
        extract(make_tar(tmp_path / "a", "x", kind=kind), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize(
    "size, expected",
    [(0, "0 B"), (999, "999 B"), (1.28e6, "1.28 MB"), (2e10, "20.0 GB")],
)
def test_sizes_are_shown_in_units(size, expected):
    assert size_shown(size) == expected
