"""Claims about files: whole or not at all, with errors that say what is wrong."""

import os
import stat
import threading

import pytest

from espnet2_slit.common.files import (
    atomic,
    read_json,
    read_lines,
    read_yaml,
    sha256,
    write_atomically,
    write_json,
    write_text,
)


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_appears_whole_and_alone(tmp_path, durable):
    path = tmp_path / "new" / "folder" / "x"
    with atomic(path, durable) as stream:
        stream.write(b"one")
        assert not path.exists()
        stream.write(b"two")
    assert path.read_bytes() == b"onetwo"
    assert [p.name for p in path.parent.iterdir()] == ["x"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(error), atomic(path) as stream:
        stream.write(b"new")
        raise error
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_is_an_error_of_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(OSError) as caught, atomic(path):
        raise OSError(28, os.strerror(28))
    assert caught.value.filename == str(path)


def test_a_folder_that_cannot_be_written_names_the_file(tmp_path):
    path = tmp_path / "file" / "x"
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), atomic(path):
        pass


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "x", "")
        assert os.umask(mask) == mask  # nothing has changed it
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~mask


def test_no_thread_sees_another_umask(tmp_path, monkeypatch):
    """Asking for the umask sets it, for all threads, for a moment."""

    def refuse(mask):
        raise AssertionError("os.umask")

    monkeypatch.setattr(os, "umask", refuse)
    write_text(tmp_path / "x", "")


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path, count = tmp_path / "x", 8

    def write(number):
        for _ in range(20):
            write_text(path, f"{number}" * 5000)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = path.read_text()
    assert len(text) == 5000 and set(text) in [{str(n)} for n in range(count)]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_lines_and_json_are_read_as_written(tmp_path):
    write_atomically(tmp_path / "x", ["a b", "ä\u2028c", "a b", ""])
    assert (tmp_path / "x").read_bytes() == "a b\nä\u2028c\na b\n\n".encode()
    assert read_lines(tmp_path / "x") == ["a b", "ä\u2028c"]
    content = {"schema": 3, "b": ["ä", 1.5], "a": None}
    write_json(tmp_path / "x", content)
    found = read_json(tmp_path / "x", 3, "")
    assert found == content and list(found) == list(content)


def test_the_checksum_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223")


class Problem(ValueError):
    """As a module of its own kind has."""


@pytest.mark.parametrize(
    "text, expected",
    [
        (None, "x: no such file. Do this."),
        ("[1, 2]", "x: expected lines `key: value`, found list. Do this."),
        (
            "a: !!python/name:os.system",
            "expected YAML of plain values, found .*Do this",
        ),
        ("a: [", "expected YAML of plain values"),
        (b"a: \xff", "expected YAML of plain values"),
    ],
)
def test_yaml_that_cannot_be_used_is_named(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "x").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Problem, match=f"(?s){expected}"):
        read_yaml(tmp_path / "x", "Do this.", Problem)


def test_empty_yaml_has_no_keys(tmp_path):
    (tmp_path / "x").write_text("# nothing\n")
    assert read_yaml(tmp_path / "x", "") == {}


@pytest.mark.parametrize(
    "text, expected",
    [
        (None, "x: no such file. Do this."),
        ("{", "x: expected JSON, found .*Do this."),
        (b"\xff", "x: expected JSON, found .*Do this."),
        ('{"schema": 2}', "x: expected schema 1, found 2. Do this."),
        ("{}", "x: expected schema 1, found None. Do this."),
        ("[1]", r"x: expected schema 1, found \[1\]. Do this."),
    ],
)
def test_json_that_cannot_be_used_is_named(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "x").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Problem, match=f"(?s){expected}"):
        read_json(tmp_path / "x", 1, "Do this.", Problem)
