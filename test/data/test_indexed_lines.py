"""Claims about lists that stay on disk: what ESPnet reads, without its dictionaries."""

import os
import pickle
import threading
import zlib

import numpy as np
import pytest

from espnet2_slit.common.compat import is_installed
from espnet2_slit.data import indexed_lines, kaldi_matrix
from espnet2_slit.data.indexed_lines import IndexedText, by_index
from espnet2_slit.data.kaldi_dir import DataDirError

from espnet2.fileio.read_text import read_2columns_text  # isort: skip
from espnet2.train.dataset import ESPnetDataset  # isort: skip

LISTS = {
    "plain": "b two words\na one\nc three\n",
    "no newline at the end": "b two words\na one",
    "Windows' line ends": "b two words\r\na one\r\n",
    "line ends of old": "b two words\ra one\r",
    "tabs and blanks": "b\ttwo\t words \t\n  a   one  \nc \n",
    "an id alone": "b\na one\n",
    "other scripts": "ключ собака лает\n鳥 鳥の声\u3000が\né\u00a0e\u0301 \U0001f426\n",
    "separators of texts": "a one\x0btwo\x0cthree\x1cfour\u2028five\x85six\nb \x85\n",
    "byte order mark": "\ufeffb two\na one\n",
}


def written(path, content):
    path.write_bytes(content.encode())
    return path


@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("poor", [False, True], ids=["crc32", "all sums equal"])
def test_a_list_is_read_as_espnet_reads_it(tmp_path, monkeypatch, content, poor):
    if poor:
        monkeypatch.setattr(indexed_lines, "crc32", lambda key: 7)
    path = written(tmp_path / "text", content)
    expected, found = read_2columns_text(path), IndexedText(path)
    assert list(found.items()) == list(expected.items())  # in this order
    assert len(found) == len(expected) and "a\n" not in found and "" not in found


def test_two_ids_of_one_checksum_are_told_apart(tmp_path):
    ids = [f"clip_{i}" for i in range(300)] + ["plumless", "buckeroo"]
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    path = written(tmp_path / "text", "".join(f"{k} {k}!\n" for k in ids))
    assert dict(IndexedText(path)) == {key: f"{key}!" for key in ids}


def test_an_absent_id_names_the_file(tmp_path):
    path = written(tmp_path / "text", "a one\n")
    with pytest.raises(KeyError, match=f"b: no such id in {path}"):
        IndexedText(path)["b"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("a one\nb two\na three\nb four\n", ":3: expected each id once, found 'a'"),
        ("a one\n\nb two\n", ":2: expected an id, found '\\\\n'"),
        (" \n", ":1: expected an id"),
    ],
)
def test_a_list_that_espnet_refuses_is_refused_with_its_line(tmp_path, content, match):
    path = written(tmp_path / "text", content)
    with pytest.raises((RuntimeError, ValueError)):
        read_2columns_text(path)
    with pytest.raises(DataDirError, match=f"{path}{match}"):
        IndexedText(path)


def test_files_that_cannot_be_read_are_refused_as_espnet_refuses_them(tmp_path):
    (tmp_path / "latin").write_bytes(b"a caf\xe9\n")
    (tmp_path / "empty").touch()
    for name, error in (("absent", FileNotFoundError), ("latin", UnicodeDecodeError)):
        for read in (read_2columns_text, IndexedText):
            with pytest.raises(error):
                read(tmp_path / name)
    row = by_index(str(tmp_path / "empty"), "text", "text")
    with pytest.raises(RuntimeError, match="has no samples"):
        ESPnetDataset([row])


def test_a_copy_reads_the_file_again_unless_it_has_changed(tmp_path):
    path = written(tmp_path / "text", "b two words\na one\n")
    first = IndexedText(path)
    packed = pickle.dumps(first)
    assert dict(pickle.loads(packed)) == dict(first)
    written(tmp_path / "new", "a one\nb two other words\n").replace(path)
    assert first["b"] == "two words"  # goes on reading what it has open
    with pytest.raises(DataDirError, match="expected the file that was indexed"):
        pickle.loads(packed)


def test_readers_side_by_side_share_no_place(tmp_path):
    ids = [f"clip_{i}" for i in range(2000)]
    found = IndexedText(written(tmp_path / "t", "".join(f"{k} {k}!\n" for k in ids)))
    wrong = []

    def read(step):
        wrong.extend(key for key in ids[::step] if found[key] != f"{key}!")

    child = os.fork()
    if child == 0:  # a forked worker, while this process reads, too
        read(1)
        os._exit(len(wrong) > 0)
    threads = [threading.Thread(target=read, args=(step,)) for step in (1, 1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.waitpid(child, 0)[1] == 0 and not wrong


@pytest.fixture
def arks(tmp_path):
    """An scp over three arks of both kinds of matrix, a command and maybe a range."""
    random, lines = np.random.default_rng(0), []
    for name in "cab":
        path = tmp_path / f"{name}.ark"
        with path.open("wb") as stream:
            for i in range(3):
                frames, kind = random.random((6, 4)), {"tolerance": i % 2}
                place = kaldi_matrix.write_matrix(stream, f"{name}{i}", frames, **kind)
                lines.append(f"{name}{i} {path}:{place}")
    lines.append(f"command tail -c +{place + 1} {path} |")
    if is_installed("kaldiio"):  # the reader of ESPnet 202511; 202611's has no ranges
        lines.append(f"range {lines[0].split()[1]}[1:3]")
    return written(tmp_path / "feats.scp", "".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("open_arks", [0, 1, 32])
def test_frames_are_those_that_espnet_reads(arks, open_arks):
    row = str(arks), "feats", "kaldi_ark"
    assert by_index(*row)[2] == "indexed_kaldi_ark"
    expected, found = (
        ESPnetDataset([one], max_cache_fd=open_arks) for one in (row, by_index(*row))
    )
    keys = list(expected)
    assert list(found) == keys and "command" in keys
    for key in [*keys, *keys[::-1]]:
        _, wanted = expected[key]
        np.testing.assert_array_equal(found[key][1]["feats"], wanted["feats"])
    copied = pickle.loads(pickle.dumps(found.loader_dict["feats"]))
    np.testing.assert_array_equal(copied[keys[0]], expected[keys[0]][1]["feats"])
    assert len(found.loader_dict["feats"].loader.arks) == min(open_arks, 3)


def test_frames_without_a_place_are_refused(tmp_path):
    path = written(tmp_path / "feats.scp", "a x.ark:2\nb\n")
    with pytest.raises(DataDirError, match=":2: expected an id and a value, found 'b"):
        ESPnetDataset([by_index(str(path), "feats", "kaldi_ark")])


def test_what_is_no_file_and_other_types_are_left_to_espnet(tmp_path):
    path = str(written(tmp_path / "wav.scp", "a a.wav\n"))
    rows = [(path, "speech", "sound"), (f"cat {path} |", "feats", "kaldi_ark")]
    assert [by_index(*row) for row in rows] == rows
    assert by_index(str(tmp_path), "text", "text")[2] == "indexed_text"  # of splits
