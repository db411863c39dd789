"""One reader of wav.scp, segments, utt2audio: what is one clip, and where it lies."""

import json
import os

import numpy as np
import pytest
import soundfile

from espnet2_slit.bin import slit_corpus, slit_data, slit_encode
from espnet2_slit.data import audio, edit, feature_cache, kaldi_dir, validate
from espnet2_slit.data.clips import Clip, parse_segment, read_clips
from espnet2_slit.data.corpora import instruction, leakage
from espnet2_slit.data.kaldi_dir import DataDirError
from espnet2_slit.data.prepare import prepare, prepare_sets
from espnet2_slit.data.report import Report

FILES, CAPTIONS = 3, 5


def write(folder, name, lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(f"{line}\n" for line in sorted(lines)))


def tone(path, seconds=0.5, level=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = 16000
    soundfile.write(path, np.full(int(rate * seconds), level, np.float32), rate)
    return path


@pytest.fixture
def clotho(tmp_path):
    """development_clotho_all of clotho_v2/asr1: five ids for one wav, no utt2audio."""
    recipe = tmp_path / "egs2" / "clotho_v2" / "asr1"
    folder = recipe / "data" / "development_clotho_all"
    ids = [(n, f) for n in range(1, CAPTIONS + 1) for f in range(FILES)]
    for f in range(FILES):
        tone(recipe / "downloads" / "development" / f"file {f}.wav", level=0.1 + f / 10)
    name = "{}_development_clotho_{}".format
    where = "downloads/development/file {}.wav".format
    write(folder, "wav.scp", [f"{name(n, f)} {where(f)}" for n, f in ids])
    write(folder, "text", [f"{name(n, f)} Caption {n} of {f}" for n, f in ids])
    write(folder, "utt2spk", [f"{name(n, f)} {name(n, f)}" for n, f in ids])
    write(folder, "spk2utt", [f"{name(n, f)} {name(n, f)}" for n, f in ids])
    return folder


def test_five_ids_of_one_wav_are_one_clip(clotho):
    report = Report("")
    samples, clips = read_clips(clotho, report)
    assert len(samples) == FILES * CAPTIONS and len(clips) == FILES
    assert samples["5_development_clotho_1"] == "1_development_clotho_1"
    assert report.notes["equal audio is one clip"] == "15 samples of 3 clips"


def test_relative_paths_are_tried_from_the_recipe_that_the_data_lies_in(clotho):
    report = Report("")
    _, clips = read_clips(clotho, report)
    for clip in clips.values():
        assert os.path.isfile(clip.path)
    note = report.notes["relative paths of another recipe"]
    assert note.startswith("15 from ") and note.endswith("asr1")


def test_the_working_directory_comes_before_the_recipe(clotho, tmp_path, monkeypatch):
    here = tmp_path / "here"
    tone(here / "downloads" / "development" / "file 0.wav")
    monkeypatch.chdir(here)
    _, clips = read_clips(clotho)
    assert clips["1_development_clotho_0"].path == "downloads/development/file 0.wav"
    assert clips["1_development_clotho_1"].path.startswith("..")


def test_paths_of_dump_raw_are_found_as_well(tmp_path):
    recipe = tmp_path / "asr1"
    tone(recipe / "dump" / "raw" / "org" / "x" / "a.wav")
    folder = recipe / "dump" / "raw" / "org" / "x"
    write(folder, "wav.scp", ["a dump/raw/org/x/a.wav", "b dump/raw/org/x/b.ark:12"])
    (folder / "b.ark").write_bytes(b"x")
    _, clips = read_clips(folder)
    assert os.path.isfile(clips["a"].path)
    assert clips["b"].path.endswith("b.ark:12") and "asr1" in clips["b"].path


def test_copies_of_one_wav_in_dump_raw_are_one_clip(clotho):
    """asr.sh writes a FLAC file for each id, so five of one wav, and feats_type."""
    recipe = clotho.parents[1]
    folder = recipe / "dump" / "raw" / "development_clotho_all"
    lines = []
    for key, wav in kaldi_dir.read_pairs(clotho / "wav.scp"):
        flac = f"dump/raw/org/development_clotho_all/data/format.1/{key}.flac"
        (recipe / flac).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(recipe / flac, *soundfile.read(recipe / wav))
        lines.append(f"{key} {flac}")
    write(folder, "wav.scp", lines)
    write(folder, "feats_type", ["raw"])
    report = Report("")
    samples, clips = read_clips(folder, report)
    assert len(samples) == FILES * CAPTIONS and len(clips) == FILES
    assert samples["5_development_clotho_1"] == "1_development_clotho_1"
    assert report.notes["equal audio is one clip"] == "15 samples of 3 clips"


def test_prepare_writes_equal_audio_as_utt2audio(clotho, tmp_path):
    out = tmp_path / "dump" / "raw" / "train"
    report = prepare(clotho, out)
    assert validate.validate(out) == FILES * CAPTIONS
    clips = kaldi_dir.read_map(out / "utt2audio")
    assert len(set(clips.values())) == FILES
    assert report.notes["equal audio is one clip"] == "15 samples of 3 clips"
    assert report.notes["hours"] == round(FILES * 0.5 / 3600, 3)


def test_references_follow_their_clip(clotho, tmp_path):
    ids = kaldi_dir.sample_ids(clotho)
    write(clotho, "references", [f"{i} Reference of {i}" for i in ids])
    prepare(clotho, tmp_path / "dump" / "x")
    assert validate.validate(tmp_path / "dump" / "x") == len(ids)
    keys = [k for k, _ in kaldi_dir.read_pairs(tmp_path / "dump" / "x" / "references")]
    assert len(keys) == len(ids) and len(set(keys)) == FILES


def test_equal_audio_is_encoded_once(clotho, tmp_path, tiny_parts):
    words = ["--data_dir", str(clotho), "--output_dir", str(tmp_path / "out")]
    words += ["--audio_encoder", "beats"]
    words += ["--audio_encoder_conf", f"path={tiny_parts.beats}"]
    assert slit_encode.main(words) == 0
    facts = json.loads((tmp_path / "out" / "feats.json").read_text())
    assert (facts["num_clips"], facts["num_samples"]) == (FILES, FILES * CAPTIONS)
    # Training reads the clips from here: other captions of a clip are no negatives.
    clips = kaldi_dir.read_map(tmp_path / "out" / "utt2audio")
    assert len(clips) == FILES * CAPTIONS and len(set(clips.values())) == FILES


def test_corpus_espnet_writes_the_clips(clotho, tmp_path, capsys):
    out = tmp_path / "train"
    slit_corpus.main(["espnet", str(clotho), "--out", str(out)])
    assert len(set(kaldi_dir.read_map(out / "utt2audio").values())) == FILES
    assert "15 samples of 3 clips" in capsys.readouterr().out
    for path in kaldi_dir.read_map(out / "wav.scp").values():
        assert os.path.isfile(path)


def test_every_other_reader_sees_the_same_clips(clotho, tmp_path):
    assert len({u.clip for u in instruction.read_utterances(clotho)}) == FILES
    edit.subset(clotho, tmp_path / "part", count=1)
    assert len(kaldi_dir.sample_ids(tmp_path / "part")) == CAPTIONS
    edit.split(clotho, tmp_path / "parts", FILES)
    assert len(kaldi_dir.sample_ids(tmp_path / "parts" / "1")) == CAPTIONS
    (overlap,) = leakage.find_overlaps([clotho], [clotho])
    assert overlap.clips == FILES and overlap.shared["clip"] == FILES


def test_other_segments_of_one_file_and_what_utt2audio_says_stay_apart(tmp_path):
    write(tmp_path, "wav.scp", ["r /r.wav"])
    write(tmp_path, "segments", ["a r 0 1", "b r 0.0 1.00", "c r 1 2", "d r 1 -1"])
    samples, clips = read_clips(tmp_path)
    assert samples == {"a": "a", "b": "a", "c": "c", "d": "d"}
    assert clips["d"] == Clip("d", "/r.wav", 1.0, None)
    write(tmp_path, "utt2audio", ["a x", "b y", "c z", "d z2"])
    assert read_clips(tmp_path)[0] == {"a": "x", "b": "y", "c": "z", "d": "z2"}


def test_commands_and_places_in_arks_are_clips_by_their_words(tmp_path):
    lines = ["a cat x.wav |", "b cat x.wav |", "c x.ark:5", "d x.ark:9"]
    write(tmp_path, "wav.scp", lines)
    assert read_clips(tmp_path)[0] == {"a": "a", "b": "a", "c": "c", "d": "d"}


@pytest.mark.parametrize("value", ["r", "r 1", "r 2 1", "r -1 2", "r a b", "r 0 1 2"])
def test_broken_segments_are_errors_or_counted(tmp_path, value):
    with pytest.raises(ValueError, match="expected"):
        parse_segment(value)
    write(tmp_path, "wav.scp", ["r /r.wav"])
    write(tmp_path, "segments", ["a r 0 1", f"b {value}"])
    with pytest.raises(DataDirError, match="segments: b has"):
        read_clips(tmp_path)
    report = Report("")
    assert list(read_clips(tmp_path, report)[0]) == ["a"]
    assert report.dropped == {"segment broken or of no recording": 1}


def test_several_sets_are_prepared_in_one_go(tmp_path, monkeypatch):
    for name in ("train", "test"):
        folder = tmp_path / "data" / name
        path = tone(tmp_path / "shared.wav")
        own = tone(tmp_path / f"{name}.wav", level=0.3)
        write(folder, "wav.scp", [f"{name}-a {path}", f"{name}-b {own}"])
        write(folder, "text", [f"{name}-a one", f"{name}-b two"])
    read, count = audio.open_audio, []
    monkeypatch.setattr(audio, "open_audio", lambda *w: (count.append(w), read(*w))[1])
    sets = [(tmp_path / "data" / n, tmp_path / "dump" / n) for n in ("train", "test")]
    reports = prepare_sets(sets)
    assert [report.kept for report in reports] == [2, 2]
    assert len(count) == 6  # three files, header and samples of each once
    count.clear()
    work = feature_cache.plan(sets[0][1], {})
    seconds, _ = feature_cache.measure(
        list(work.clips.values()), known_s=work.durations_s
    )
    assert list(seconds.values()) == [0.5, 0.5] and not count


def test_prepare_compares_training_and_test_sets(tmp_path, capsys):
    path = tone(tmp_path / "shared.wav")
    for name in ("train", "test"):
        folder = tmp_path / "data" / name
        write(folder, "wav.scp", [f"{name}-a {path}"])
        write(folder, "text", [f"{name}-a one"])
        facts = {"schema": 1, "split": name}
        (folder / "set.json").write_text(json.dumps(facts))
    sets = [str(tmp_path / "data" / name) for name in ("train", "test")]
    words = ["prepare", *sets, "--out", str(tmp_path / "dump" / "raw"), "--nj", "1"]
    assert slit_data.main([*words, "--leakage", "report"]) == 0
    assert "same file 1" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "dump" / "leakage.json").read_text())
    assert found["shared"]["file"] == 1
    assert slit_data.main([*words, "--leakage", "stop"]) == 1
    assert "training and test sets overlap" in capsys.readouterr().err
    assert slit_data.main([*words, "--leakage", "ignore"]) == 0


def test_prepare_refuses_what_it_cannot_understand(tmp_path, capsys):
    assert slit_data.main(["prepare", "a", "b", "c"]) == 1
    assert "--out" in capsys.readouterr().err
