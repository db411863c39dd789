"""A full disk, a folder nobody can write, audio that goes away: said, without loss.

The full disk is a limit on the size of a file (`RLIMIT_FSIZE`): the kernel refuses the
write in the middle, as it does when no block is left, and needs no root for it.
"""

import contextlib
import errno
import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_system

from espnet2_slit.bin import slit_data, slit_encode, slit_inference, slit_pack
from espnet2_slit.data import feature_cache, prepare, validate
from espnet2_slit.data.audio import AudioError
from espnet2_slit.model.audio_encoder import build_audio_encoder


@contextlib.contextmanager
def full_disk(size):
    """Within, no file can grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder, hidden=True):
    """{path: bytes}."""
    return {
        str(path): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and (hidden or not path.name.startswith("."))
    }


@pytest.fixture
def corpus(tmp_path):
    """A data directory of 12 clips that must be resampled."""
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    lines = {"wav.scp": [], "text": [], "utt2spk": [], "spk2utt": []}
    for i in range(12):
        path = tmp_path / "wav" / f"{i:02d}.wav"
        path.parent.mkdir(exist_ok=True)
        generator = np.random.default_rng(i)
        soundfile.write(path, 0.1 * generator.standard_normal(8000), 8000)
        lines["wav.scp"].append(f"c{i:02d} {path}")
        lines["text"].append(f"c{i:02d} sound number {i}")
        lines["utt2spk"].append(f"c{i:02d} c{i:02d}")
        lines["spk2utt"].append(f"c{i:02d} c{i:02d}")
    for name, content in lines.items():
        (folder / name).write_text("".join(f"{line}\n" for line in content))
    return folder


def test_a_full_disk_stops_prepare_and_keeps_what_was_there(corpus, tmp_path, capsys):
    words = ["prepare", str(corpus), str(tmp_path / "dump" / "train"), "--nj", "1"]
    with full_disk(4000):  # below the size of a converted clip
        code = slit_data.main(words)
    assert code == 1
    assert not (tmp_path / "dump" / "train" / "report.json").exists()
    assert not list((tmp_path / "dump").rglob("*.flac")), "half a clip under its name"
    said = capsys.readouterr().err
    assert "Error: " in said and ".flac: " in said and os.strerror(errno.EFBIG) in said
    assert slit_data.main(words) == 0  # and goes on when there is room
    before = contents(tmp_path / "dump")
    (corpus / "text").write_text((corpus / "text").read_text().replace("number", "no"))
    with full_disk(100):
        assert slit_data.main(words) == 1
    lists = {k: v for k, v in before.items() if "report.json" not in k}
    after = contents(tmp_path / "dump", hidden=False)
    assert {k: after[k] for k in lists if k.endswith(".flac")} == {
        k: v for k, v in lists.items() if k.endswith(".flac")
    }
    assert not (tmp_path / "dump" / "train" / "report.json").exists()
    assert slit_data.main(words) == 0


def test_a_full_disk_stops_encoding_and_keeps_whole_shards(
    corpus, tmp_path, tiny_parts, capsys
):
    words = ["--data_dir", str(corpus), "--output_dir", str(tmp_path / "out")]
    words += ["--audio_encoder", "beats", "--shard_clips", "4"]
    words += ["--audio_encoder_conf", f"path={tiny_parts.beats}"]
    assert slit_encode.main(words) == 0
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "feats.json").unlink()
    feature_cache._shard_paths(tmp_path / "out", 1)[
        1
    ].unlink()  # shard 1 is to be made again
    kept = contents(tmp_path / "out")
    capsys.readouterr()
    with full_disk(2000):
        assert slit_encode.main(words) == 1
    said = capsys.readouterr().err
    assert "slit_encode: " in said and os.strerror(errno.EFBIG) in said
    assert contents(tmp_path / "out") == kept
    assert slit_encode.main(words) == 0
    assert contents(tmp_path / "out") == whole


def test_a_full_disk_leaves_the_earlier_archive(tmp_path, tiny_parts, capsys):
    system = tiny_system.system(tmp_path / "exp", tiny_parts)
    archive = tmp_path / "pack" / "system.zip"
    words = ["--exp", str(system), "--outpath", str(archive)]
    assert slit_pack.main(words) == 0
    before = contents(tmp_path)
    with full_disk(5000):
        assert slit_pack.main(words) == 1
    assert os.strerror(errno.EFBIG) in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    import torch

    from espnet2_slit.train.checkpoint import atomic_torch_save

    path = tmp_path / "checkpoint.pth"
    with atomic_torch_save():
        torch.save({"epoch": 1}, path)
        before = contents(tmp_path)
        with full_disk(5000), pytest.raises((OSError, RuntimeError)):
            torch.save({"epoch": 2, "weight": torch.ones(100_000)}, path)
    assert contents(tmp_path) == before


def test_a_full_disk_stops_training_which_goes_on_when_there_is_room(
    tmp_path, tiny_features, train_command
):
    from espnet2_slit.task import SLITTask

    def command(name, epochs):
        more = ["--resume", "true", "--checkpoint_minutes", "1e-9"]
        return train_command("generative", tmp_path / name, *more, epochs=epochs)

    SLITTask.main(cmd=command("whole", 2))
    SLITTask.main(cmd=command("full", 1))
    before = contents(tmp_path / "full")
    with full_disk(30_000), pytest.raises(OSError) as raised:
        SLITTask.main(cmd=command("full", 2))
    assert raised.value.errno == errno.EFBIG
    assert raised.value.filename.endswith("step.pth")
    after = contents(tmp_path / "full")
    assert {k: v for k, v in after.items() if k.endswith(".pth")} == {
        k: v for k, v in before.items() if k.endswith(".pth")
    }
    SLITTask.main(cmd=command("full", 2))
    for name in ("1epoch.pth", "2epoch.pth"):
        one, two = (tmp_path / where / name for where in ("whole", "full"))
        assert one.read_bytes() == two.read_bytes()


def test_a_full_disk_stops_decoding_and_keeps_whole_parts(
    tmp_path, tiny_corpus, tiny_parts, capsys
):
    system = tiny_system.system(tmp_path / "exp", tiny_parts)
    folder = tmp_path / "data" / "valid"
    shutil.copytree(tiny_corpus / "data" / "valid", folder)
    facts = {"schema": 1, "name": "valid", "tasks": ["caption"], "zero_shot": False}
    (folder / "set.json").write_text(json.dumps(facts))
    words = ["--model", str(system), "--data_dir", str(folder)]
    words += ["--output_dir", str(tmp_path / "out")]
    words += ["--caption", "{max_new_tokens: 5}"]
    with full_disk(10):
        assert slit_inference.main(words) == 1
    assert os.strerror(errno.EFBIG) in capsys.readouterr().err
    assert not (tmp_path / "out" / "decode.json").exists()
    assert slit_inference.main(words) == 0
    assert (tmp_path / "out" / "caption" / "text").read_text().count("\n") == 6


@pytest.fixture
def unwritable(tmp_path):
    """A folder in which nothing can be made, for root either: a file in its place."""
    path = tmp_path / "read_only"
    if os.geteuid():
        path.mkdir()
        path.chmod(0o500)
    else:
        path.write_text("root may write everywhere, but not below a file")
    yield path
    if path.is_dir():
        path.chmod(0o700)


def test_a_folder_that_cannot_be_written_is_named(
    corpus, unwritable, tiny_parts, tmp_path, capsys
):
    system = tiny_system.system(tmp_path / "exp", tiny_parts)
    before = contents(tmp_path)
    target = str(unwritable / "out")
    encode = ["--data_dir", str(corpus), "--output_dir", target]
    encode += ["--audio_encoder", "beats"]
    encode += ["--audio_encoder_conf", f"path={tiny_parts.beats}"]
    calls = [
        (slit_data, ["prepare", str(corpus), target, "--nj", "1"]),
        (slit_data, ["subset", str(corpus), target, "--count", "2"]),
        (slit_data, ["split", str(corpus), target, "--parts", "2"]),
        (slit_encode, encode),
        (slit_pack, ["--exp", str(system), "--outpath", f"{target}/a.zip"]),
        (slit_pack, ["--link", target, "--generator", str(system)]),
    ]
    for module, words in calls:
        assert module.main(words) == 1, words
        assert "read_only" in capsys.readouterr().err, words
    assert contents(tmp_path) == before


def test_audio_removed_while_it_is_encoded_is_named(
    corpus, tmp_path, tiny_parts, monkeypatch
):
    encoder = build_audio_encoder("beats", path=str(tiny_parts.beats))
    work = feature_cache.plan(corpus, encoder.identity(), shard_clips=4)
    out = tmp_path / "out"
    out.mkdir()
    gone = tmp_path / "wav" / "09.wav"
    away = tmp_path / "09.wav"
    measure = feature_cache.measure

    def then_remove(*args, **known):
        found = measure(*args, **known)
        shutil.move(gone, away)  # after the headers were read
        return found

    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "measure", then_remove)
        with pytest.raises(AudioError, match="09.wav: no such audio file"):
            feature_cache.encode(work, encoder, out)
    first = contents(out)
    assert {Path(p).name for p in first} == {
        f"feats.0000{i}.{end}" for i in (0, 1) for end in ("ark", "json")
    }
    shutil.move(away, gone)
    assert feature_cache.encode(work, encoder, out) == (1, 2)
    assert {p: contents(out)[p] for p in first} == first


def test_audio_removed_while_it_is_prepared_is_dropped_and_counted(
    corpus, tmp_path, monkeypatch
):
    gone = tmp_path / "wav" / "05.wav"
    read = prepare.read

    def remove_and_read(path, *args):
        if path == str(gone) and gone.exists():
            gone.unlink()  # between its header and its samples
        return read(path, *args)

    monkeypatch.setattr(prepare, "read", remove_and_read)
    report = prepare.prepare(corpus, tmp_path / "dump" / "train")
    assert (report.rows, report.kept) == (12, 11)
    assert report.dropped == {"missing audio": 1}
    assert "c05" in report.examples["missing audio"][0]
    assert validate.validate(tmp_path / "dump" / "train") == 11
