"""Shards of webdataset in their exact layout, and what is wrong with real ones."""

import io
import json
import tarfile

import odd_audio
import pytest
import soundfile

from espnet2_slit.bin import slit_corpus
from espnet2_slit.data import kaldi_dir
from espnet2_slit.data.corpora import webdataset
from espnet2_slit.data.corpora.tables import CorpusError
from espnet2_slit.data.validate import validate

WAV = odd_audio.encode(odd_audio.X)
FLAC = odd_audio.encode(odd_audio.X, format="FLAC")


def shard(path, members, mode="w"):
    """A tar of (name, bytes) in this order; a bare TarInfo goes in as it is."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def texts(**content):
    return json.dumps(content).encode()


def test_a_set_of_two_shards(tmp_path):
    shard(tmp_path / "00.tar", [
        ("dog.flac", FLAC), ("dog.json", texts(text=["A dog barks", "barking"])),
        ("in/rain.wav", WAV), ("in/rain.txt", b"rain  falls\n"),
    ])  # fmt: skip
    shard(tmp_path / "01.tar", [
        ("dog.json", texts(caption="another dog", text=None)), ("dog.wav", WAV),
        ("x.y.json", texts(captions=["both", "both", " "])), ("x.y.wav", WAV),
    ])  # fmt: skip
    pattern = str(tmp_path / "{00..01}.tar")
    report = webdataset.make_set([pattern], tmp_path / "data/web", tmp_path / "audio")
    assert (report.rows, report.kept, report.dropped) == (4, 4, {})
    found = sorted(kaldi_dir.read_map(tmp_path / "data/web/text").values())
    assert found == ["A dog barks", "another dog", "barking", "both", "rain falls"]
    for path in kaldi_dir.read_map(tmp_path / "data/web/wav.scp").values():
        assert soundfile.info(path).frames == len(odd_audio.X)
    assert validate(tmp_path / "data/web") == 5
    assert kaldi_dir.read_set(tmp_path / "data/web")["split"] == "train"


def test_a_test_set_has_a_line_a_clip_and_references(tmp_path):
    shard(tmp_path / "a.tar", [("d.json", texts(text=["one", "two"])), ("d.wav", WAV)])
    slit_corpus.main([
        "webdataset", str(tmp_path / "*.tar"), "--out", str(tmp_path / "data/test"),
        "--audio_dir", str(tmp_path / "audio"), "--split", "test", "--corpus", "mine",
    ])  # fmt: skip
    folder = tmp_path / "data/test"
    assert list(kaldi_dir.read_map(folder / "text").values()) == ["one"]
    told = [text for _, text in kaldi_dir.read_pairs(folder / "references")]
    assert told == ["one", "two"]
    assert kaldi_dir.read_set(folder)["tasks"] == ["caption", "retrieval"]


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_compressed_shards_are_read(mode, tmp_path):
    shard(tmp_path / "a.tar", [("d.txt", b"one"), ("d.wav", WAV)], mode)
    report = webdataset.make_set([str(tmp_path / "a.tar")], tmp_path / "d", tmp_path)
    assert report.kept == 1


def test_what_cannot_be_used_is_counted_and_the_others_come(tmp_path):
    link = tarfile.TarInfo("evil.wav")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = [
        ("good.wav", WAV), ("good.txt", b"good"),
        ("silent_text.wav", WAV), ("silent_text.txt", b" \n"),
        ("no_text.wav", WAV), ("no_audio.txt", b"words"),
        ("noise.wav", b"no audio"), ("noise.txt", b"words"),
        ("broken.wav", WAV), ("broken.json", b"{"),
        ("good.wav", WAV), ("good.txt", b"again"),
        ("long.wav", WAV), ("long.txt", bytes(2 << 20)),
        ("tagged.wav", WAV), ("tagged.cls", b"3"), ("tagged.txt", b"tagged"),
        link, ("evil.txt", b"evil"),
        ("../../outside.wav", WAV), ("../../outside.txt", b"outside"),
    ]  # fmt: skip
    path = shard(tmp_path / "a.tar", members)
    out = tmp_path / "data" / "web"
    report = webdataset.make_set([path], out, tmp_path / "in" / "audio")
    kept = sorted(kaldi_dir.read_map(out / "text").values())
    assert kept == ["good", "outside", "tagged"]
    assert report.dropped == {
        "no text in the sample": 4, "no audio in the sample": 2, "key twice": 1,
        "unreadable audio": 1, "text is broken": 1, "text above a megabyte": 1,
        "link or device in a shard": 1,
    }  # fmt: skip
    assert report.notes == {"members passed over: .cls": 1}
    inside = {path.parent for path in tmp_path.rglob("*.wav")}
    assert inside == {tmp_path / "in" / "audio" / "a"}
    assert (out / "report.json").is_file()


def test_a_shard_that_breaks_off_gives_what_came_before(tmp_path):
    whole = shard(tmp_path / "a.tar", [
        ("one.wav", WAV), ("one.txt", b"one"), ("two.wav", WAV), ("two.txt", b"two"),
    ])  # fmt: skip
    content = open(whole, "rb").read()
    (tmp_path / "a.tar").write_bytes(content[: len(WAV) + 3000])
    shard(tmp_path / "b.tar", [("three.wav", WAV), ("three.txt", b"three")])
    report = webdataset.make_set(
        [str(tmp_path / "{a,b}.tar")], tmp_path / "d", tmp_path / "audio"
    )
    assert sorted(kaldi_dir.read_map(tmp_path / "d/text").values()) == ["one", "three"]
    assert report.dropped["shard breaks off"] == 1
    assert "a.tar" in report.examples["shard breaks off"][0]


def test_patterns_are_counted_out_or_refused(tmp_path):
    for name in ("s-008.tar", "s-009.tar", "s-010.tar", "t.tar"):
        shard(tmp_path / name, [])
    found = webdataset.expand([str(tmp_path / "s-{008..010}.tar")])
    assert [path[-7:] for path in found] == ["008.tar", "009.tar", "010.tar"]
    assert len(webdataset.expand([str(tmp_path / "?.tar")])) == 1
    for pattern, says in (
        (str(tmp_path / "{1..2}.tar"), "no such shard"),
        (str(tmp_path / "z*.tar"), "no such shard"),
        ("pipe:curl x", "not opened"),
        ("https://x/0.tar", "not opened"),
    ):
        with pytest.raises(CorpusError, match=says):
            webdataset.expand([pattern])
    with pytest.raises(CorpusError, match="no usable sample"):
        webdataset.make_set([str(tmp_path / "t.tar")], tmp_path / "d", tmp_path)
    assert not (tmp_path / "d").exists()
