"""Every odd file of `odd_audio` in Python and through the commands, all at once.

The files lie in one folder and one table, so each is also every other one's neighbour:
what can be read must come out whatever lies beside it.
"""

import contextlib
import csv
import io
import json
import shutil
import subprocess
from collections import Counter

import numpy as np
import odd_audio
import pytest
import soundfile
import tiny_system

from espnet2_slit.bin import shared
from espnet2_slit.bin import slit as command
from espnet2_slit.bin import slit_data
from espnet2_slit.data import audio as reader
from espnet2_slit.data import kaldi_dir, other_decoders, prepare
from espnet2_slit.inference.search_index import SearchIndex, find_audio
from espnet2_slit.inference.slit import SLIT

CASES = {case.name: case for case in odd_audio.all_cases()}
GOOD = {name for name, case in CASES.items() if case.audio is not None}
RATE = odd_audio.RATE
X = odd_audio.X


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    odd_audio.write_all(folder, list(CASES.values()))
    return folder


@pytest.fixture(scope="module")
def prepared(files, tmp_path_factory):
    """A table of all files, from_manifest, prepare: (report, {name: wav})."""
    root = tmp_path_factory.mktemp("prepared")
    table = root / "table.csv"
    with open(table, "w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["audio", "text", "split"])
        for name in CASES:
            rows.writerow([files / name, f"the sound of {name}", "train"])
    with contextlib.redirect_stdout(io.StringIO()):
        words = ["from_manifest", str(table), str(root / "data")]
        assert slit_data.main(words) == 0
        source, target = root / "data" / "train_caption", root / "dump" / "train"
        words = ["prepare", str(source), str(target), "--nj", "1"]
        assert slit_data.main(words) == 0
    report = json.loads((target / "report.json").read_text(encoding="utf-8"))
    texts = kaldi_dir.read_map(target / "text")
    wavs = kaldi_dir.read_map(target / "wav.scp")
    prefix = "the sound of "
    return report, {texts[key].removeprefix(prefix): wavs[key] for key in wavs}


@pytest.fixture(scope="module")
def slit(tmp_path_factory, tiny_parts):
    folder = tmp_path_factory.mktemp("exp")
    return SLIT.from_pretrained(str(tiny_system.system(folder, tiny_parts)))


def same(case, audio):
    """The samples are the case's; lossy and uncounted ones by their length."""
    slack = 2500 if case.tolerance == 1 else 1
    assert abs(len(audio) - len(case.audio)) <= slack
    if case.tolerance < 1:
        size = min(len(audio), len(case.audio))
        found, wanted = audio[:size], case.audio[:size]
        np.testing.assert_allclose(found, wanted, atol=case.tolerance)


def test_there_are_at_least_120_cases_of_every_kind():
    assert len(CASES) >= 120 and len(GOOD) >= 60 and len(CASES) - len(GOOD) >= 60


@pytest.mark.parametrize("name", CASES)
def test_python_reads_it_or_names_it(name, files):
    case, path = CASES[name], files / name
    if case.audio is None:
        with pytest.raises(reader.AudioError) as caught:
            reader.read(path, RATE)
        message = str(caught.value)
        assert str(path) in message and case.says in message
        return
    found = reader.read(path, RATE)
    same(case, found.samples)
    assert np.abs(found.samples).max() <= 1.0
    assert bool(case.says) == bool(found.notes) and case.says in str(found.notes)
    # Its length is known before it is decoded: batches are made by it.
    assert abs(reader.probe(path).duration_s * RATE - len(found.samples)) <= 2


@pytest.mark.parametrize("name", CASES)
def test_data_preparation_keeps_it_or_counts_it(name, files, prepared):
    report, kept = prepared
    case = CASES[name]
    if case.audio is None:
        assert name not in kept and case.counted in report["dropped"]
        return
    audio, rate = soundfile.read(kept[name], dtype="float32")
    assert rate == RATE and audio.ndim == 1
    same(case, audio)
    # What is trained on is what a system hears of the same file later.
    in_use = reader.read_audio(files / name, RATE)
    np.testing.assert_allclose(audio, in_use, atol=2.0**-15)


def test_data_preparation_counts_every_kind(prepared):
    report, kept = prepared
    assert set(kept) == GOOD and report["rows"] == len(CASES)
    expected = Counter(case.counted for case in CASES.values() if case.audio is None)
    assert report["dropped"] == dict(expected)
    for note in (odd_audio.CHAIN, odd_audio.ABOVE, odd_audio.CANCEL, odd_audio.LENGTH):
        count = sum(case.says == note for case in CASES.values())
        assert report["notes"][note] >= count > 0


def test_captions_come_for_all_that_can_be_read_and_the_others_are_named(
    files, slit, monkeypatch, capsys
):
    monkeypatch.setattr(shared, "load", lambda args: slit)
    names = [name for name in CASES if not (files / name).is_dir()]
    words = [str(files / name) for name in names]
    status = command.main(
        ["caption", *words, "--num_beams", "1", "--max_new_tokens", "2"]
    )
    out, err = capsys.readouterr()
    captioned = {line.split("\t")[0] for line in out.splitlines()}
    assert captioned == {str(files / name) for name in names if name in GOOD}
    for name in set(names) - GOOD:
        assert CASES[name].says in err and f"slit: {files / name}:" in err
    assert status == 1


def test_an_index_holds_all_that_can_be_read_and_the_others_are_named(
    files, slit, tmp_path
):
    report = SearchIndex(tmp_path / "index").update(slit, files)
    indexed = set()
    for part in SearchIndex(tmp_path / "index").parts:
        with np.load(part) as content:
            indexed |= set(map(str, content["files"]))
    assert indexed == GOOD and report.added == len(GOOD)
    folders = {name for name in CASES if (files / name).is_dir()}
    assert set(report.skipped) | folders == set(CASES) - GOOD
    for name, fault in report.skipped.items():
        assert CASES[name].says in fault


# ------------------------------------------------------- what the encoder refuses


@pytest.fixture
def long_and_good(tmp_path):
    """A file longer than the encoder's eight windows, between two good ones."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, seconds in (("a.wav", 0.4), ("long.wav", 121), ("z.wav", 0.5)):
        soundfile.write(folder / name, np.resize(X, int(seconds * RATE)), RATE)
    return folder


def call(slit, monkeypatch, capsys, *words):
    monkeypatch.setattr(shared, "load", lambda args: slit)
    status = command.main([str(word) for word in words])
    return status, *capsys.readouterr()


def test_audio_beyond_the_encoders_windows_is_named_before_anything_is_computed(
    long_and_good, slit, monkeypatch, capsys, tmp_path
):
    paths = sorted(map(str, long_and_good.iterdir()))
    encoded = []
    encoder = slit.encoder.forward
    monkeypatch.setattr(
        slit.encoder,
        "forward",
        lambda *a: encoded.append(len(a[0])) or encoder(*a),
    )
    with pytest.raises(reader.AudioError, match=r"long.wav: lasts 121.0 s"):
        slit.caption(paths)
    with pytest.raises(reader.AudioError, match=r"clip 0: lasts 121.0 s"):
        slit.caption(np.zeros(121 * RATE), sample_rate=RATE)
    assert not encoded
    fast = ("--num_beams", "1", "--max_new_tokens", "2")
    status, out, err = call(slit, monkeypatch, capsys, "caption", *paths, *fast)
    assert status == 1 and "long.wav: lasts 121.0 s" in err and "cut it" in err
    served = [line.split("\t")[0] for line in out.splitlines()]
    assert served == [paths[0], paths[2]]


def test_a_cache_leaves_out_what_the_encoder_cannot_read(
    long_and_good, tmp_path, tiny_parts, monkeypatch
):
    from espnet2_slit.data import feature_cache
    from espnet2_slit.model.audio_encoder import build_audio_encoder

    broken = long_and_good / "broken.flac"
    content = odd_audio.encode(np.resize(X, RATE), format="FLAC")
    broken.write_bytes(odd_audio.cut(content))
    lines = [f"{path.stem} {path}" for path in sorted(long_and_good.iterdir())]
    source = tmp_path / "data"
    source.mkdir()
    (source / "wav.scp").write_text("".join(f"{line}\n" for line in lines))
    (source / "text").write_text("".join(f"{line}\n" for line in lines))
    encoder = build_audio_encoder("beats", path=str(tiny_parts.beats))
    whole = encoder.forward

    def picky(speech, lengths):
        if int(lengths.max()) == RATE // 2:  # z.wav
            raise RuntimeError("kernel size larger than input")
        return whole(speech, lengths)

    monkeypatch.setattr(encoder, "forward", picky)
    work = feature_cache.plan(source, encoder.identity())
    feature_cache.encode(work, encoder, tmp_path / "dump", bad_audio="drop")
    facts = feature_cache.encoder_facts(encoder)
    done = feature_cache.merge(work, source, tmp_path / "dump", facts)
    assert done["num_clips"] == 1 and set(done["dropped"]) == {"broken", "long", "z"}
    assert "kernel size" in done["dropped"]["z"]
    assert "truncated" in done["dropped"]["broken"]
    with pytest.raises(reader.AudioError, match="--bad_audio drop"):
        feature_cache.encode(work, encoder, tmp_path / "other")


def test_what_the_encoder_raises_for_one_file_leaves_the_others(
    long_and_good, slit, monkeypatch, capsys
):
    (long_and_good / "long.wav").unlink()
    paths = sorted(map(str, long_and_good.iterdir()))
    whole = slit.encoder.forward

    def picky(speech, lengths):
        if int(lengths.max()) == RATE // 2:
            raise RuntimeError("kernel size larger than input")
        return whole(speech, lengths)

    monkeypatch.setattr(slit.encoder, "forward", picky)
    fast = ("--num_beams", "1", "--max_new_tokens", "2")
    status, out, err = call(slit, monkeypatch, capsys, "caption", *paths, *fast)
    assert status == 1 and out.startswith(paths[0]) and len(out.splitlines()) == 1
    assert f"slit: {paths[1]}: the audio encoder cannot read it (kernel size" in err


# ----------------------------------------------------- what libsndfile cannot decode

FOREIGN = {  # first bytes of files that take another decoder
    "talk.m4a": b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom" + bytes(200),
    "film.mp4": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2mp41" + bytes(200),
    "film.webm": b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01" + bytes(200),
    "old.wma": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9" + bytes(200),
    "phone.amr": b"#!AMR\n" + bytes(200),
    "radio.aac": (b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(9)) * 20,
    "film.avi": b"RIFF\xff\0\0\0AVI LIST" + bytes(200),
    "x.wv": b"wvpk" + bytes(200),
    "x.ape": b"MAC " + bytes(200),
    "no_suffix": b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(200),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_kinds_are_named_with_the_remedy_where_no_decoder_is(
    name, tmp_path, monkeypatch
):
    monkeypatch.setattr(other_decoders, "available", lambda: None)
    path = tmp_path / name
    path.write_bytes(FOREIGN[name])
    with pytest.raises(reader.AudioError) as caught:
        reader.read(path, RATE)
    message = str(caught.value)
    assert str(path) in message and "not installed" in message
    assert "apt install ffmpeg" in message and "pip install av" in message
    report, found = prepare_one(tmp_path, path)
    assert set(found) == {"good"} and report.dropped == {"needs ffmpeg or PyAV": 1}


@pytest.fixture(scope="module")
def m4a(tmp_path_factory):
    """A real one; made by ffmpeg, so these tests run where it is."""
    if not shutil.which("ffmpeg"):
        pytest.skip("needs the program ffmpeg")
    folder = tmp_path_factory.mktemp("m4a")
    audio = odd_audio.sound(0, 2.0)
    soundfile.write(folder / "x.wav", audio, RATE)
    words = ["ffmpeg", "-v", "error", "-i", str(folder / "x.wav")]
    subprocess.run([*words, str(folder / "x.m4a")], check=True)
    return folder / "x.m4a", audio


@pytest.mark.parametrize("way", ["ffmpeg", "PyAV"])
def test_m4a_is_read_by_either_decoder(way, m4a, monkeypatch, tmp_path):
    if way == "PyAV":
        pytest.importorskip("av")
    path, audio = m4a
    monkeypatch.setattr(other_decoders, "available", lambda: way)
    found = reader.read(path, RATE).samples
    assert abs(len(found) - len(audio)) < 3000
    assert np.corrcoef(found[4000:28000], audio[4000:28000])[0, 1] > 0.9
    report, prepared = prepare_one(tmp_path, path)
    assert report.kept == 2 and report.notes["read by ffmpeg's decoders"] == 1
    np.testing.assert_allclose(prepared["odd"], found, atol=2.0**-15)


@pytest.mark.parametrize("way", ["ffmpeg", "PyAV"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_half_an_m4a_is_refused(way, share, m4a, monkeypatch, tmp_path):
    if way == "PyAV":
        pytest.importorskip("av")
    monkeypatch.setattr(other_decoders, "available", lambda: way)
    half = tmp_path / "half.m4a"
    half.write_bytes(odd_audio.cut(m4a[0].read_bytes(), share))
    with pytest.raises(reader.AudioError, match="half.m4a: the MP4 file is truncated"):
        reader.read(half, RATE)


def test_a_folder_is_searched_by_content_and_what_is_passed_over_is_said(
    tmp_path, caplog
):
    sounds = {"a": odd_audio.encode(X), "b.dat": odd_audio.encode(X, format="FLAC")}
    sounds["c.bin"] = odd_audio.mp3(odd_audio.X44)
    others = {
        "notes.txt": b"no audio",
        "table.csv": b"a,b",
        "d.jpg": b"\xff\xd8\xff\xe0",
    }
    named = {"e.wav": b"no audio", "f.m4a": b"no audio"}
    for name, content in {**sounds, **others, **named}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".hidden.wav").write_bytes(odd_audio.encode(X))
    with caplog.at_level("WARNING"):
        found = list(find_audio(tmp_path))
    assert found == sorted([*sounds, *named])
    assert "3 files are no audio by name or content (" in caplog.text
    assert "1 .txt" in caplog.text and "1 .jpg" in caplog.text


# --------------------------------------------------------------------------- pipes

PIPED = {
    "ulaw.wav": odd_audio.encode(X, subtype="ULAW"),
    "alaw.wav": odd_audio.encode(X, subtype="ALAW"),
    "ima.wav": odd_audio.encode(X, subtype="IMA_ADPCM"),
    "ms.wav": odd_audio.encode(X, subtype="MS_ADPCM"),
    "gsm.wav": odd_audio.encode(odd_audio.sound(0, 0.4, 8000), 8000, subtype="GSM610"),
    "pcm16.wav": odd_audio.encode(X),
    "pcm24.wav": odd_audio.encode(X, subtype="PCM_24"),
    "pcm32.wav": odd_audio.encode(X, subtype="PCM_32"),
    "float.wav": odd_audio.encode(X, subtype="FLOAT"),
    "double.wav": odd_audio.encode(X, subtype="DOUBLE"),
    "hot.wav": odd_audio.encode(9 * X, subtype="FLOAT"),
    "unknown.wav": odd_audio.wav(odd_audio.PCM, size=0xFFFFFFFF),
    "zero.wav": odd_audio.wav(odd_audio.PCM, size=0),
    "x.mp3": odd_audio.mp3(odd_audio.X44),
    "bare.mp3": odd_audio.without_info(odd_audio.mp3(odd_audio.X44)),
    "x.ogg": odd_audio.encode(X, format="OGG"),
    "chain.ogg": odd_audio.encode(X, format="OGG") * 2,
    "x.opus": odd_audio.encode(X, format="OGG", subtype="OPUS"),
    "x.flac": odd_audio.encode(X, format="FLAC"),
    "stream.flac": odd_audio.streamed(odd_audio.encode(X, format="FLAC")),
    "x.w64": odd_audio.encode(X, format="W64"),
    "x.aif": odd_audio.encode(X, format="AIFF"),
    "x.sph": odd_audio.encode(X, format="NIST"),
    "opposite.wav": odd_audio.encode(np.stack([X, -X], 1)),
}


def prepare_one(tmp_path, value, segments=None):
    """Prepare a set of a command and a good neighbour: (report, {key: samples})."""
    good = tmp_path / "good.wav"
    soundfile.write(good, X, RATE)
    source, target = tmp_path / "data" / "set", tmp_path / "dump" / "set"
    source.mkdir(parents=True)
    (source / "wav.scp").write_text(f"good {good}\nodd {value}\n")
    keys = ["good", "odd"]
    if segments:
        (source / "segments").write_text(f"good good 0 -1\nodd odd {segments}\n")
    (source / "text").write_text("".join(f"{key} a text\n" for key in keys))
    report = prepare.prepare(source, target)
    wavs = kaldi_dir.read_map(target / "wav.scp")
    return report, {key: soundfile.read(wavs[key], dtype="float32")[0] for key in wavs}


@pytest.mark.parametrize("name", PIPED)
def test_a_pipe_and_its_file_give_the_same_samples(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(PIPED[name])
    report, found = prepare_one(tmp_path, f"cat {path} |")
    assert report.kept == 2 and not report.dropped
    expected = reader.read_audio(path, RATE)
    np.testing.assert_allclose(found["odd"], expected, atol=2.0**-15)


@pytest.mark.parametrize("name", ["ulaw.wav", "stream.flac", "bare.mp3", "x.ogg"])
def test_a_stretch_of_a_pipe_is_that_of_its_file(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(PIPED[name])
    _, found = prepare_one(tmp_path, f"cat {path} |", "0.1 0.3")
    expected = reader.read_audio(path, RATE, 0.1, 0.3)
    assert len(found["odd"]) == round(0.2 * RATE)
    np.testing.assert_allclose(found["odd"], expected, atol=2.0**-15)


@pytest.mark.parametrize(
    "line, says, counted",
    [
        ("cat {x}; exit 3", "exit status 3", "command failed"),
        ("cat none.wav", "none.wav", "command failed"),
        ("cat none.wav | cat", "none.wav", "command failed"),
        ("cat {x} | no_such_program", "exit status 127", "command failed"),
        ("false", "exit status 1", "command failed"),
        ("true", "0 bytes", "empty file"),
        ("echo hello", "cannot be read as audio", "unreadable audio"),
        ("head -c 5000 {x}", "truncated", "truncated audio"),
        ("head -c 5000 {flac}", "truncated", "truncated audio"),
        ("head -c 1000 {ogg}", "truncated", "truncated audio"),
        ("cat {stream} | head -c 4000", "truncated", "truncated audio"),
    ],
)
def test_a_command_that_fails_or_gives_half_is_counted_and_its_neighbour_kept(
    line, says, counted, tmp_path
):
    paths = {}
    for key, name in (
        ("x", "pcm16.wav"), ("flac", "x.flac"), ("ogg", "x.ogg"),
        ("stream", "stream.flac"),
    ):  # fmt: skip
        paths[key] = tmp_path / name
        paths[key].write_bytes(PIPED[name])
    report, found = prepare_one(tmp_path, line.format(**paths) + " |")
    assert set(found) == {"good"} and report.dropped == {counted: 1}
    assert says in report.examples[counted][0]


@pytest.mark.parametrize("name", ["pcm16.wav", "ulaw.wav", "pcm24.wav", "float.wav"])
def test_a_wav_file_in_an_ark_is_read_as_the_file(name, tmp_path):
    path, ark = tmp_path / name, tmp_path / "x.ark"
    path.write_bytes(PIPED[name])
    ark.write_bytes(b"odd " + PIPED[name] + b"next " + PIPED["pcm16.wav"])
    report, found = prepare_one(tmp_path, f"{ark}:4")
    np.testing.assert_allclose(
        found["odd"], reader.read_audio(path, RATE), atol=2.0**-15
    )


@pytest.mark.parametrize("place", ["{ark}:999999", "{ark}:2", "none.ark:4"])
def test_a_wrong_place_in_an_ark_is_counted(place, tmp_path):
    ark = tmp_path / "x.ark"
    ark.write_bytes(b"odd " + PIPED["pcm16.wav"])
    report, found = prepare_one(tmp_path, place.format(ark=ark))
    assert set(found) == {"good"} and sum(report.dropped.values()) == 1


def test_corpora_count_what_needs_another_decoder_and_believe_no_header(
    tmp_path, monkeypatch, caplog
):
    from espnet2_slit.data.corpora import audio_index

    stream = tmp_path / "stream.flac"
    stream.write_bytes(PIPED["stream.flac"])
    assert audio_index.probe(str(stream)) == (len(X) / RATE, RATE, 1)
    assert "1 Hz" in audio_index.probe(
        str(_written(tmp_path / "rate.wav", odd_audio.wav(odd_audio.PCM, rate=1)))
    )
    _written(tmp_path / "talk.m4a", FOREIGN["talk.m4a"])
    monkeypatch.setattr(other_decoders, "available", lambda: None)
    with caplog.at_level("WARNING"):
        index = audio_index.AudioIndex([tmp_path])
    assert index.videos == 1 and index.find(["talk"]) is None
    assert "1 files (mp4, m4a, webm ...) are passed over" in caplog.text
    monkeypatch.setattr(other_decoders, "available", lambda: "ffmpeg")
    assert audio_index.AudioIndex([tmp_path]).find(["talk"]) == str(
        tmp_path / "talk.m4a"
    )


def _written(path, content):
    path.write_bytes(content)
    return path
