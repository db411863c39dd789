"""Data directories of ESPnet's clotho_v2/asr1 and esc50/cls1 become ours."""

import pytest
import trees

from espnet2_slit.data import kaldi_dir, validate
from espnet2_slit.data.corpora import CorpusError
from espnet2_slit.data.corpora.espnet_recipe import read_recipe_set


def test_clotho_references_are_read_for_scoring(tmp_path, column):
    root = trees.clotho_recipe(tmp_path / "data")
    out = tmp_path / "test"
    assert read_recipe_set(root / "evaluation", out, evaluation=True) == 12
    assert validate.validate(out) == 12
    references = column(out, "references")
    assert references["evaluation_10"] == [f"Reference {n} of 10" for n in range(1, 6)]
    assert column(out, "text")["evaluation_10"] == "Reference 1 of 10"
    assert kaldi_dir.read_set(out)["tasks"] == ["caption", "retrieval"]


def test_clotho_references_can_be_trained_on(tmp_path, column):
    root = trees.clotho_recipe(tmp_path / "data")
    out = tmp_path / "train"
    assert read_recipe_set(root / "evaluation", out) == 60
    assert validate.validate(out) == 60
    assert set(column(out, "utt2audio").values()) == set(
        column(root / "evaluation", "wav.scp")
    )


def test_training_directories_keep_their_ids(tmp_path, column):
    root = trees.clotho_recipe(tmp_path / "data")
    out = tmp_path / "train"
    assert read_recipe_set(root / "development_clotho", out) == 12
    texts = column(root / "development_clotho", "text")
    assert column(out, "text") == texts


def test_esc50_labels_get_their_names(tmp_path, column):
    root = trees.esc50_recipe(tmp_path / "data")
    out = tmp_path / "test"
    names = dict(kaldi_dir.read_pairs(root / "names"))
    read_recipe_set(root / "val1", out, "classification", True, names, True)
    assert validate.validate(out) == 2
    assert column(out, "text") == {
        "1-100032-A-0": "dog",
        "1-100033-A-14": "chirping birds",
    }
    assert (out / "labels").read_text() == "chirping birds\ndog\n"
    assert kaldi_dir.read_set(out)["zero_shot"] is True
    with pytest.raises(CorpusError, match="'14' has no name"):
        read_recipe_set(root / "val1", out, "classification", True, {"0": "dog"})


def test_questions_come_from_question_txt(tmp_path, column):
    root = trees.esc50_recipe(tmp_path / "data") / "val1"
    with pytest.raises(CorpusError, match="question.txt"):
        read_recipe_set(root, tmp_path / "out", "question_answering")
    ids = list(column(root, "wav.scp"))
    trees.lines(root / "question.txt", [f"{i} Is it a dog?" for i in ids])
    trees.lines(root / "text", [f"{ids[0]} yes", f"{ids[1]} no"])
    read_recipe_set(root, tmp_path / "out", "question_answering", evaluation=True)
    assert validate.validate(tmp_path / "out") == 2
    assert set(column(tmp_path / "out", "instruction").values()) == {"Is it a dog?"}


def test_pipes_and_segments_are_passed_on_unread(tmp_path, column):
    folder = tmp_path / "asr"
    folder.mkdir()
    pipe = "sox -t wav 'my file.wav' -r 16000 -t wav - |"
    trees.lines(folder / "wav.scp", [f"rec {pipe}"])
    trees.lines(folder / "segments", ["a rec 0.00 1.50", "b rec 1.50 2.75"])
    trees.lines(folder / "text", ["a A dog", "b A cat"])
    assert read_recipe_set(folder, tmp_path / "out") == 2
    assert validate.validate(tmp_path / "out") == 2
    assert column(tmp_path / "out", "wav.scp") == {"rec": pipe}
    assert column(tmp_path / "out", "segments")["b"] == "rec 1.5 2.75"


def test_a_directory_without_text_is_refused(tmp_path):
    folder = tmp_path / "asr"
    folder.mkdir()
    trees.lines(folder / "wav.scp", ["a a.wav"])
    with pytest.raises(CorpusError, match="expected text or text_spk1.*found wav.scp"):
        read_recipe_set(folder, tmp_path / "out")
    trees.lines(folder / "text", ["b A dog"])
    with pytest.raises(CorpusError, match="share no id"):
        read_recipe_set(folder, tmp_path / "out")
