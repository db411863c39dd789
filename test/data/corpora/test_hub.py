"""Hugging Face data sets become data directories."""

import pytest
import trees

from espnet2_slit.bin import slit_corpus
from espnet2_slit.data import kaldi_dir, validate
from espnet2_slit.data.choices import read_choices
from espnet2_slit.data.corpora import CorpusError
from espnet2_slit.data.corpora.hub import Columns, write_rows


@pytest.fixture
def audio(tmp_path):
    """Bytes of three recordings."""
    return [
        trees.sound(tmp_path / "raw" / f"{n}.flac", seconds=0.4).read_bytes()
        for n in range(3)
    ]


def test_equal_audio_is_one_clip_and_one_file(tmp_path, audio, column):
    rows = [{"audio": audio[0], "text": f"caption {n}"} for n in range(5)]
    report = write_rows(rows, tmp_path / "set", Columns())
    assert report.notes["clips"] == 1 and report.kept == 5
    assert len(set(column(tmp_path / "set", "utt2audio").values())) == 1
    assert len(list((tmp_path / "set" / "audio").rglob("*.wav"))) == 1


def test_captions_of_a_test_set_are_references_of_one_line(tmp_path, audio, column):
    rows = [
        {"audio": audio[0], "text": ["one", "two"]},
        {"audio": audio[0], "text": "3"},
    ]
    rows += [{"audio": audio[1], "text": "four"}, {"audio": b"none", "text": "five"}]
    rows += [{"audio": None, "text": "six"}, {"audio": audio[2], "text": None}]
    out = tmp_path / "set"
    report = write_rows(rows, out, Columns(), form="evaluation")
    assert validate.validate(out) == 2
    assert len(list(kaldi_dir.read_pairs(out / "references"))) == 4
    assert kaldi_dir.read_set(out)["tasks"] == ["caption", "retrieval"]
    assert report.dropped == {"unreadable audio": 1, "no audio": 1, "no text": 1}


def test_questions_with_options_are_read(tmp_path, audio, column):
    row = {"audio": audio[0], "text": "B", "q": "Which?", "o": ["dog", "cat"]}
    rows = [row, {**row, "text": "cow"}, {**row, "q": ""}]
    columns = Columns(question="q", choices="o")
    out = tmp_path / "set"
    report = write_rows(rows, out, columns, "question_answering", "evaluation")
    assert report.kept == 1
    assert report.dropped == {"answer is none of the choices": 1, "no question": 1}
    assert list(column(out, "text").values()) == ["cat"]
    (options,) = read_choices(out, set(column(out, "text"))).values()
    assert options == ["dog", "cat"]


def test_a_column_that_is_not_there_lists_those_that_are(tmp_path, audio):
    with pytest.raises(CorpusError, match="no column 'text'; there are audio, caption"):
        write_rows([{"audio": audio[0], "caption": "x"}], tmp_path / "s", Columns())
    with pytest.raises(CorpusError, match="no column 'audio'"):
        write_rows([{"sound": audio[0], "text": "x"}], tmp_path / "s", Columns())
    with pytest.raises(CorpusError, match="no row is usable"):
        write_rows([{"audio": b"", "text": "x"}], tmp_path / "s", Columns())
    assert not (tmp_path / "s").exists()


def test_a_data_set_on_disk_becomes_a_data_directory(tmp_path, audio, column):
    datasets = pytest.importorskip("datasets")
    value = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    label = datasets.ClassLabel(names=["dog", "cat"])
    features = datasets.Features(audio=value, label=label)
    sounds = [{"bytes": content, "path": "x.flac"} for content in audio]
    made = datasets.Dataset.from_dict(
        {"audio": sounds, "label": [0, 1, 0]}, features=features
    )
    made = made.cast_column("audio", datasets.Audio(decode=False))
    made.save_to_disk(str(tmp_path / "esc"))
    out = tmp_path / "data" / "test"
    words = ["hf", str(tmp_path / "esc"), "--text_column", "label", "--out", str(out)]
    slit_corpus.main([*words, "--task", "classification", "--form", "evaluation"])
    assert validate.validate(out) == 3
    assert (out / "labels").read_text() == "cat\ndog\n"
    assert sorted(column(out, "text").values()) == ["cat", "dog", "dog"]
    assert all(p.endswith(".flac") for p in column(out, "wav.scp").values())
    with pytest.raises(SystemExit, match="no column 'sound'; there are audio, label"):
        slit_corpus.main([*words, "--audio_column", "sound"])


def test_without_datasets_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    words = ["hf", "some/where", "--out", str(tmp_path / "d")]
    with pytest.raises(SystemExit, match="pip install datasets"):
        slit_corpus.main(words)
