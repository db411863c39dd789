"""Audio preparation: every fault is counted by its name, good clips come out usable."""

import json
import os
import struct

import numpy as np
import pytest
import soundfile
from test_data_dir import files_of, make

from espnet2_slit.data import kaldi_dir, prepare, validate
from espnet2_slit.data.kaldi_dir import DataDirError
from espnet2_slit.data.prepare import Options


def tone(seconds=0.5, rate=16000, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * 440 / rate)
    wave = 0.3 * wave + 0.01 * rng.standard_normal(len(wave))
    return np.stack([wave] * channels, axis=1).astype(np.float32)


def write(path, audio, rate=16000, **more):
    soundfile.write(path, audio, rate, **more)
    return path


def truncated(path):
    write(path, tone())
    path.write_bytes(path.read_bytes()[:-8000])


def not_a_number(path):
    audio = tone()
    audio[100] = np.nan
    write(path, audio, subtype="FLOAT")


def no_samples(path):
    write(path, tone(0))


FAULTS = {
    "missing audio": lambda path: None,
    "empty file": lambda path: path.write_bytes(b""),
    "truncated audio": truncated,
    "NaN or infinite samples": not_a_number,
    "0 s of audio": no_samples,
    "unreadable audio": lambda path: path.write_text("this is not audio"),
    "too short": lambda path: write(path, tone(0.03)),
    "too long": lambda path: write(path, tone(3)),
}
OPTIONS = Options(max_duration_s=2.0)


def corpus(folder, clips, **files):
    """A data directory whose clips are {id: path}."""
    lines = "".join(f"{key} {path}\n" for key, path in sorted(clips.items()))
    return make(folder / "data" / "set", clips, wav__scp=lines, **files)


@pytest.mark.parametrize("reason", FAULTS)
def test_each_fault_drops_its_clip_under_its_own_name(tmp_path, reason):
    FAULTS[reason](tmp_path / "bad.wav")
    good = write(tmp_path / "good.wav", tone())
    source = corpus(tmp_path, {"bad": tmp_path / "bad.wav", "good": good})
    report = prepare.prepare(source, tmp_path / "dump" / "set", OPTIONS)
    assert report.dropped == {reason: 1}
    assert "bad.wav" in report.examples[reason][0]
    assert kaldi_dir.sample_ids(tmp_path / "dump" / "set") == ["good"]
    assert validate.validate(tmp_path / "dump" / "set") == 1


def test_no_usable_clip_is_an_error_that_counts_the_reasons(tmp_path):
    source = corpus(tmp_path, {"a": tmp_path / "no.wav", "b": tmp_path / "nor.wav"})
    with pytest.raises(
        DataDirError, match="none of 2 clips is usable(.|\n)*missing audio"
    ):
        prepare.prepare(source, tmp_path / "dump" / "set", OPTIONS)
    assert not (tmp_path / "dump" / "set").exists()


@pytest.mark.parametrize(
    "rate, channels, suffix",
    [(44100, 1, "wav"), (8000, 2, "wav"), (48000, 6, "flac"), (22050, 2, "ogg")],
)
def test_other_rates_and_channels_become_mono_at_the_encoders_rate(
    tmp_path, rate, channels, suffix
):
    path = write(tmp_path / f"x.{suffix}", tone(0.5, rate, channels), rate)
    prepare.prepare(corpus(tmp_path, {"x": path}), tmp_path / "dump" / "set")
    made = kaldi_dir.read_map(tmp_path / "dump" / "set" / "wav.scp")["x"]
    audio, found = soundfile.read(made)
    assert found == 16000 and audio.shape == (8000,)
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    assert abs(np.argmax(spectrum) * 16000 / len(audio) - 440) < 4
    lengths = kaldi_dir.read_map(tmp_path / "dump" / "set" / "utt2num_samples")
    assert lengths == {"x": "8000"}


def test_audio_that_fits_is_used_where_it_is(tmp_path):
    path = write(tmp_path / "it's $HOME `x`.wav", tone())
    prepare.prepare(corpus(tmp_path, {"x": path}), tmp_path / "dump" / "set")
    assert kaldi_dir.read_map(tmp_path / "dump" / "set" / "wav.scp") == {"x": str(path)}
    assert not list((tmp_path / "dump" / "audio").rglob("*.flac"))


def test_segments_are_cut_once_and_gone(tmp_path):
    path = write(tmp_path / "long.wav", tone(2.0))
    source = make(
        tmp_path / "data",
        ("a", "b", "c"),
        wav__scp=f"r {path}\n",
        segments="a r 0 0.5\nb r 1.5 -1\nc r 5 6\n",
    )
    report = prepare.prepare(source, tmp_path / "dump" / "set")
    assert report.kept == 2 and list(report.dropped.values()) == [1]
    assert not (tmp_path / "dump" / "set" / "segments").exists()
    lengths = kaldi_dir.read_map(tmp_path / "dump" / "set" / "utt2num_samples")
    assert lengths == {"a": "8000", "b": "8000"}


def test_a_command_in_wav_scp_is_read_as_espnet_reads_it(tmp_path):
    path = write(tmp_path / "x.wav", tone(0.5, 8000), 8000)
    source = corpus(tmp_path, {"x": f"cat {path} |"})
    report = prepare.prepare(source, tmp_path / "dump" / "set")
    assert report.notes["read through a command or ark"] == 1
    made = kaldi_dir.read_map(tmp_path / "dump" / "set" / "wav.scp")["x"]
    assert soundfile.info(made).frames == 8000


def test_a_command_that_fails_is_counted(tmp_path):
    source = corpus(tmp_path, {"x": "false |", "y": write(tmp_path / "y.wav", tone())})
    report = prepare.prepare(source, tmp_path / "dump" / "set")
    assert report.dropped == {"command failed": 1}


def test_samples_of_a_clip_share_one_check_and_one_file(tmp_path, monkeypatch):
    path = write(tmp_path / "x.wav", tone(0.5, 8000), 8000)
    source = corpus(tmp_path, {f"x-{n}": path for n in range(5)})
    looked = []
    check = prepare.check_clip
    monkeypatch.setattr(
        prepare, "check_clip", lambda *args: looked.append(1) or check(*args)
    )
    prepare.prepare(source, tmp_path / "dump" / "set")
    assert len(looked) == 1
    assert len(set(kaldi_dir.read_map(tmp_path / "dump/set/wav.scp").values())) == 1
    # The next set with this clip does not look again.
    other = make(tmp_path / "data" / "other", ("q",), wav__scp=f"q {path}\n")
    prepare.prepare(other, tmp_path / "dump" / "other")
    assert len(looked) == 1


def test_a_second_run_is_up_to_date_until_something_changes(tmp_path):
    clips = {k: write(tmp_path / f"{k}.wav", tone()) for k in "ab"}
    source, target = corpus(tmp_path, clips), tmp_path / "dump" / "set"
    prepare.prepare(source, target)
    before = files_of(target)
    assert "up to date" in prepare.prepare(source, target).notes
    assert files_of(target) == before
    (source / "text").write_text("a other\nb text\n")
    report = prepare.prepare(source, target)
    assert "up to date" not in report.notes
    assert (target / "text").read_text() == "a other\nb text\n"
    assert "up to date" not in prepare.prepare(source, target, OPTIONS).notes


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    clips = {
        f"c{n:02d}": write(tmp_path / f"{n}.wav", tone(0.1, 8000, seed=n), 8000)
        for n in range(80)
    }
    source = corpus(tmp_path, clips)
    prepare.prepare(source, tmp_path / "whole" / "set")
    check, looked = prepare.check_clip, []

    def dies(clip, *rest):
        looked.append(clip)
        if len(looked) == 50:
            raise KeyboardInterrupt
        return check(clip, *rest)

    monkeypatch.setattr(prepare, "check_clip", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(source, tmp_path / "cut" / "set")
    assert not (tmp_path / "cut" / "set").exists()
    with open(tmp_path / "cut" / "audio" / "checked.jsonl", "a") as stream:
        stream.write('{"key": "half a li')  # as a kill leaves it
    prepare.prepare(source, tmp_path / "cut" / "set")
    assert len(looked) == 50 + 80 - 32  # a chunk of 32 was whole
    names = ("text", "utt2spk", "spk2utt", "utt2num_samples")
    whole, cut = files_of(tmp_path / "whole" / "set"), files_of(
        tmp_path / "cut" / "set"
    )
    assert [whole[name] for name in names] == [cut[name] for name in names]
    assert not list((tmp_path / "cut" / "audio").rglob(".*"))
    assert (
        prepare.Checked(tmp_path / "cut" / "audio").path.read_text().count("\n") >= 80
    )


def test_changed_or_mended_audio_is_looked_at_again(tmp_path):
    path = tmp_path / "x.wav"
    truncated(path)
    clips = {"x": path, "y": write(tmp_path / "y.wav", tone(0.5, 8000), 8000)}
    source, target = corpus(tmp_path, clips), tmp_path / "dump" / "set"
    assert prepare.prepare(source, target).kept == 1
    write(path, tone())
    os.utime(source / "text", ns=(1, 1))
    assert prepare.prepare(source, target).kept == 2
    converted = kaldi_dir.read_map(target / "wav.scp")["y"]
    os.unlink(converted)
    os.utime(source / "text", ns=(2, 2))
    assert prepare.prepare(source, target).kept == 2
    assert os.path.isfile(converted)


def test_processes_give_the_same_files_as_one(tmp_path):
    clips = {
        f"c{n:02d}": write(tmp_path / f"{n}.wav", tone(0.1, 8000, seed=n), 8000)
        for n in range(70)
    }
    source = corpus(tmp_path, clips)
    prepare.prepare(source, tmp_path / "one" / "set", jobs=1)
    prepare.prepare(source, tmp_path / "two" / "set", jobs=2)
    one = kaldi_dir.read_map(tmp_path / "one" / "set" / "wav.scp")
    two = kaldi_dir.read_map(tmp_path / "two" / "set" / "wav.scp")
    for key in clips:
        assert (tmp_path / one[key]).read_bytes() == (tmp_path / two[key]).read_bytes()


def test_header_check_decodes_only_what_may_lie_above_full_scale(tmp_path):
    path = write(tmp_path / "x.flac", tone())
    content = bytearray(open(path, "rb").read())
    content[-200:] = bytes(200)  # damaged, which decoding would tell
    open(path, "wb").write(content)
    not_a_number(tmp_path / "y.wav")
    source = corpus(tmp_path, {"x": path, "y": tmp_path / "y.wav"})
    report = prepare.prepare(source, tmp_path / "dump" / "set", Options(check="header"))
    assert report.kept == 1
    assert report.dropped == {"NaN or infinite samples": 1}


def test_a_wav_from_a_pipe_with_an_unknown_length_is_not_truncated(tmp_path):
    path = write(tmp_path / "x.wav", tone())
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    report = prepare.prepare(corpus(tmp_path, {"x": path}), tmp_path / "dump" / "set")
    assert report.kept == 1


def test_report_json_holds_what_was_printed(tmp_path):
    good = write(tmp_path / "good.wav", tone(0.5, 8000, 2), 8000)
    source = corpus(tmp_path, {"a": good, "b": tmp_path / "none.wav"})
    prepare.prepare(source, tmp_path / "dump" / "set")
    report = json.loads((tmp_path / "dump" / "set" / "report.json").read_text())
    assert report["schema"] == 1 and report["rows"] == 2 and report["kept"] == 1
    assert report["notes"]["resampled"] == report["notes"]["down-mixed"] == 1


@pytest.mark.parametrize(
    "wrong, message",
    [({"check": "some"}, "full or header"), ({"audio_format": "mp3"}, "flac or wav")],
)
def test_options_name_their_choices(wrong, message):
    with pytest.raises(ValueError, match=message):
        Options(**wrong)
