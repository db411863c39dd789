"""Data directories of ESPnet's clotho_v2/asr1 and esc50/cls1 become ours."""

import logging

import pytest
import trees

from espnet2_slit.bin import slit_corpus
from espnet2_slit.data import kaldi_dir, validate
from espnet2_slit.data.corpora import CorpusError
from espnet2_slit.data.corpora.espnet_recipe import read_recipe_set
from espnet2_slit.data.kaldi_dir import DataDirError
from espnet2_slit.data.prepare import prepare


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


# ----------------------------------------------------- recipes in their real layout


@pytest.mark.parametrize("name", ["validation", "val", "dev", "valid", "evaluation"])
def test_the_form_decides_what_a_set_is_for_not_its_name(tmp_path, name):
    root = trees.clotho_recipe(tmp_path / "data")
    if not (root / name).exists():
        (root / "validation").rename(root / name)
    for form, split in (("evaluation", "test"), ("valid", "valid"), ("train", "train")):
        out = tmp_path / form
        slit_corpus.main(
            ["espnet", str(root / name), "--out", str(out), "--form", form]
        )
        assert kaldi_dir.read_set(out)["split"] == split


def test_a_missing_set_lists_what_is_there(tmp_path):
    root = trees.clotho_recipe(tmp_path / "data")
    with pytest.raises(CorpusError, match="has development_clotho, evaluation, valid"):
        read_recipe_set(root / "development", tmp_path / "out")


@pytest.fixture
def as20k(tmp_path):
    """data/eval of as20k/cls1: several words of a vocabulary are labels of a clip."""
    folder = tmp_path / "cls1" / "data" / "eval"
    folder.mkdir(parents=True)
    ids = ("eval_0", "eval_1")
    audio = [f"{i} {trees.sound(tmp_path / f'{i}.wav', seconds=0.4)}" for i in ids]
    trees.lines(folder / "wav.scp", audio)
    trees.lines(
        folder / "text", ["eval_0 Dog Rain", "eval_1 Male_speech,_man_speaking"]
    )
    return folder


def test_a_line_of_several_labels_is_refused_or_read_as_several(
    as20k, tmp_path, column
):
    words = ["espnet", str(as20k), "--task", "classification", "--form", "evaluation"]
    words += ["--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="'Dog Rain' has 2 words.*--multi_label true"):
        slit_corpus.main(words)
    slit_corpus.main([*words, "--multi_label", "true"])
    out = tmp_path / "out"
    assert validate.validate(out) == 2
    labels = (out / "labels").read_text().splitlines()
    assert labels == ["Dog", "Male speech, man speaking", "Rain"]
    assert column(out, "text")["eval_0"] == "Dog; Rain"
    slit_corpus.main([*words, "--multi_label", "false"])
    assert "Dog Rain" in (out / "labels").read_text().splitlines()


@pytest.fixture
def questions(tmp_path):
    """data_aqa_open of clotho_v2/cls1: a row an annotator, and question.txt."""
    for name in ("development_aqa", "validation_aqa", "evaluation_aqa"):
        folder = tmp_path / "cls1" / "data_aqa_open" / name
        folder.mkdir(parents=True)
        wav = trees.sound(tmp_path / f"{name}.wav", seconds=0.4)
        rows = [("Is it raining?", a) for a in ("yes", "no", "yes")]
        rows += [("What barks?", a) for a in ("dog", "dog", "dog")]
        ids = [f"{name}_{n}" for n in range(len(rows))]
        trees.lines(folder / "wav.scp", [f"{i} {wav}" for i in ids])
        trees.lines(folder / "utt2category", [f"{i} weather" for i in ids])
        pairs = list(zip(ids, rows, strict=True))
        trees.lines(folder / "question.txt", [f"{i} {q}" for i, (q, _) in pairs])
        trees.lines(folder / "text", [f"{i} {a}" for i, (_, a) in pairs])
    return tmp_path / "cls1" / "data_aqa_open"


def test_several_answers_to_a_question_are_one_row_with_several_references(
    questions, tmp_path, column
):
    out = tmp_path / "test"
    source = questions / "evaluation_aqa"
    assert read_recipe_set(source, out, "question_answering", evaluation=True) == 2
    assert validate.validate(out) == 2
    first = "evaluation_aqa_0"
    assert column(out, "text")[first] == "yes"
    assert list(kaldi_dir.read_pairs(out / "references"))[:2] == [
        (first, "no"),
        (first, "yes"),
    ]
    assert len(set(column(out, "utt2audio").values())) == 1
    assert set(column(out, "utt2category").values()) == {"weather"}
    prepare(out, tmp_path / "dump" / "test")
    assert validate.validate(tmp_path / "dump" / "test") == 2
    # In training each annotator's answer is a sample.
    assert read_recipe_set(source, tmp_path / "train", "question_answering") == 6


def test_questions_are_never_left_out_in_silence(questions, tmp_path):
    source = questions / "evaluation_aqa"
    with pytest.raises(CorpusError, match="--task question_answering"):
        read_recipe_set(source, tmp_path / "out")
    with pytest.raises(DataDirError, match="question.txt asks.*slit corpus espnet"):
        prepare(source, tmp_path / "dump" / "x")


@pytest.fixture
def statements(tmp_path):
    """data_entailment of clotho_v2/cls1: statements in hypothesis.txt."""
    folder = tmp_path / "evaluation_cle"
    folder.mkdir()
    wav = trees.sound(tmp_path / "a.wav", seconds=0.4)
    rows = ["a dog barks", "it may rain", "nothing is heard"]
    labels = ["entailment", "neutral", "contradiction"]
    trees.lines(folder / "wav.scp", [f"s{i} {wav}" for i in range(3)])
    trees.lines(folder / "hypothesis.txt", [f"s{i} {t}" for i, t in enumerate(rows)])
    trees.lines(folder / "text", [f"s{i} {t}" for i, t in enumerate(labels)])
    return folder


def test_statements_of_entailment_become_questions_with_choices(
    statements, tmp_path, column
):
    with pytest.raises(DataDirError, match="hypothesis.txt asks"):
        prepare(statements, tmp_path / "dump" / "x")
    out = tmp_path / "out"
    read_recipe_set(statements, out, "question_answering", evaluation=True)
    assert sorted(column(out, "text").values()) == ["neutral", "no", "yes"]
    said = "Does this follow from the audio: yes, no or neutral? a dog barks"
    assert said in column(out, "instruction").values()
    assert set(column(out, "choices").values()) == {'["yes", "neutral", "no"]'}
    prepare(out, tmp_path / "dump" / "test")
    assert validate.validate(tmp_path / "dump" / "test") == 3
    # Training sees what decoding will ask.
    read_recipe_set(statements, tmp_path / "train", "question_answering")
    asked = f"{said} Choose one: (A) yes. (B) neutral. (C) no."
    assert asked in column(tmp_path / "train", "instruction").values()
    assert not (tmp_path / "train" / "choices").exists()


def test_other_labels_of_statements_are_named(statements, tmp_path):
    path = statements / "text"
    path.write_text(path.read_text().replace("neutral", "perhaps"))
    with pytest.raises(CorpusError, match="entailment, neutral.*found 'perhaps'"):
        read_recipe_set(statements, tmp_path / "out", "question_answering")


def test_captions_of_one_recipe_and_questions_of_another_train_together(
    questions, tmp_path, column, capsys
):
    root = trees.clotho_recipe(tmp_path / "asr1" / "data")
    words = ["espnet_sets", "--from", str(root), "--train", "development_clotho"]
    words += ["--valid", "validation", "--test", "validation,evaluation"]
    words += ["--questions_from", str(questions), "--questions_train"]
    words += ["development_aqa", "--questions_valid", "validation_aqa"]
    # as a shell splits --local_data_opts '... --questions_test "a b"'
    words += ["--questions_test", '"evaluation_aqa', 'validation_aqa"']
    slit_corpus.main([*words, "--out", str(tmp_path / "data")])
    sets = {p.parent.name for p in (tmp_path / "data").glob("*/wav.scp")}
    tests = {"test_evaluation", "test_validation"}
    asked = {"test_evaluation_aqa", "test_validation_aqa"}
    train = {"train_caption", "valid_caption", "train_instruction", "valid_instruction"}
    assert sets == tests | asked | train
    for name in sets:
        assert validate.validate(tmp_path / "data" / name) > 0
        split = name.partition("_")[0]
        assert kaldi_dir.read_set(tmp_path / "data" / name)["split"] == split
    tasks = list(column(tmp_path / "data" / "train_instruction", "utt2task").values())
    assert (tasks.count("caption"), tasks.count("question_answering")) == (12, 6)
    assert "train_instruction: 18 samples of 13 clips" in capsys.readouterr().out


def test_questions_alone_say_what_to_train(questions, tmp_path, capsys):
    words = ["espnet_sets", "--from", str(questions), "--task", "question_answering"]
    words += ["--train", "development_aqa", "--valid", "validation_aqa"]
    words += [
        "--test",
        "evaluation_aqa",
        "validation_aqa",
        "--out",
        str(tmp_path / "d"),
    ]
    slit_corpus.main(words)
    assert "--skip_representation true" in capsys.readouterr().out
    assert (tmp_path / "d" / "test_validation_aqa" / "references").is_file()


def test_sets_that_are_no_longer_asked_for_are_gone(questions, tmp_path, caplog):
    root = trees.clotho_recipe(tmp_path / "asr1" / "data")
    captions = ["--from", str(root), "--train", "development_clotho"]
    captions += ["--valid", "validation", "--test", "evaluation"]
    asked = ["--from", str(questions), "--train", "development_aqa"]
    asked += ["--valid", "validation_aqa", "--test", "evaluation_aqa"]
    out = tmp_path / "data"
    (out / "mine").mkdir(parents=True)
    (out / "mine" / "set.json").write_text('{"schema": 1}')
    for words in (captions, [*asked, "--task", "question_answering"]):
        slit_corpus.main(["espnet_sets", *words, "--out", str(out)])
    sets = {p.parent.name for p in out.glob("*/set.json")}
    made = {"test_evaluation_aqa", "train_instruction", "valid_instruction"}
    assert sets == made | {"mine"}
    assert f"{out / 'train_caption'}: removed" in caplog.text


def test_what_is_done_about_equal_audio_and_relative_paths_is_said(
    tmp_path, monkeypatch, caplog
):
    """As clotho_v2/asr1 repeats a file, and as20k/cls1 writes downloads/eval_wav/..."""
    recipe = tmp_path / "asr1"
    trees.sound(recipe / "downloads" / "a.wav", seconds=0.2, rate=8000)
    for name in ("train", "val", "eval"):
        folder = recipe / "data" / name
        folder.mkdir(parents=True)
        ids = [f"{n}_{name}" for n in (1, 2)]
        (folder / "wav.scp").write_text("".join(f"{i} downloads/a.wav\n" for i in ids))
        (folder / "text").write_text("".join(f"{i} a bell\n" for i in ids))
    (tmp_path / "slit1").mkdir()
    monkeypatch.chdir(tmp_path / "slit1")
    caplog.set_level(logging.WARNING)  # and as it was, afterwards
    caplog.handler.setLevel(logging.NOTSET)
    words = ["--from", "../asr1/data", "--train", "train", "--valid", "val"]
    slit_corpus.main(["espnet_sets", *words, "--test", "eval"])
    slit_corpus.main(["espnet", "../asr1/data/eval", "--out", "one"])
    for name in ("train", "val", "eval"):
        said = f"../asr1/data/{name}: relative paths: 2 from ../asr1"
        assert caplog.text.count(said) == 1 + (name == "eval")
        said = f"../asr1/data/{name}: equal audio is one clip: 2 samples of 1 clips"
        assert caplog.text.count(said) == 1 + (name == "eval")
