"""Claims about the files that --train_dir and --valid_dir stand for."""

import pytest

from espnet2_slit.data.training_files import training_files


def folder(path, *names):
    for name in names:
        (path / name).touch()
    return path


def test_a_prepared_set_is_read_as_audio(tmp_path):
    names = ("wav.scp", "text", "utt2num_samples", "utt2audio", "instruction")
    found = training_files(folder(tmp_path, *names), instructions=False)
    assert found.data == [
        (f"{tmp_path}/wav.scp", "speech", "sound"),
        (f"{tmp_path}/text", "text", "text"),
        (f"{tmp_path}/utt2audio", "clip", "text"),
    ]
    assert found.lengths == f"{tmp_path}/utt2num_samples" and found.features == ""


def test_an_encoded_set_is_read_as_frames(tmp_path):
    names = ("feats.json", "feats.scp", "feats_shape", "utt2num_samples", "wav.scp")
    found = training_files(folder(tmp_path, "text", "instruction", *names), True)
    assert [name for _, name, _ in found.data] == ["feats", "text", "instruction"]
    assert found.data[0] == (f"{tmp_path}/feats.scp", "feats", "kaldi_ark")
    assert found.lengths == f"{tmp_path}/feats_shape"
    assert found.features == f"{tmp_path}/feats.json"
    plain = training_files(tmp_path, True, plain_lengths=True)
    assert plain.lengths == f"{tmp_path}/utt2num_samples"


def test_what_is_missing_is_named_with_what_makes_it(tmp_path):
    folder(tmp_path, "wav.scp", "text")
    with pytest.raises(FileNotFoundError) as error:
        training_files(tmp_path, False)
    assert "expected utt2num_samples, found text, wav.scp" in str(error.value)
    assert "slit data prepare" in str(error.value)
    with pytest.raises(FileNotFoundError, match="found no such folder"):
        training_files(tmp_path / "none", False)
