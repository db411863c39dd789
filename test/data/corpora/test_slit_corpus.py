"""The command line: one word a corpus, its options, its report, its errors."""

from collections import Counter

import pytest

from espnet2_slit.bin import slit_corpus, slit_data
from espnet2_slit.data import kaldi_dir, validate
from espnet2_slit.data.corpora import READERS, leakage


@pytest.mark.parametrize("name", READERS)
def test_every_option_of_every_corpus_is_explained(name, capsys):
    with pytest.raises(SystemExit) as caught:
        slit_corpus.main([name, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for option, *_ in slit_corpus.reader_options(READERS[name]):
        assert f"--{option}" in shown


def test_a_corpus_is_made_and_reported(tree, tmp_path, capsys):
    command = (
        f"esc50 --root {tree('esc50')} --out {tmp_path} --test_fold 2 --esc10 true"
    )
    slit_corpus.main([*command.split(), "--name", "test=mine", "--jobs", "1"])
    shown = capsys.readouterr().out
    assert "mine" in shown and "clips found" in shown
    assert validate.validate(tmp_path / "mine") == 4
    assert kaldi_dir.read_set(tmp_path / "mine")["variant"] == "ESC-10, test fold 2"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("esc50 --root {root} --test_fold 9", "found 9"),
        ("esc50 --root /nowhere", "there is no folder /nowhere"),
        ("esc50 --root {root} --splits trian", "found trian"),
        ("clotho_aqa --root {root} --votes best", "found best"),
        ("prepare --corpora esc50", "ESC50 in db.sh"),
        (
            "prepare --corpora esc50 --root esc50={root} --set esc50.fold=1",
            "found fold",
        ),
    ],
)
def test_mistakes_end_with_a_sentence(tree, tmp_path, command, message):
    words = command.format(root=tree("esc50")).split()
    words += ["--out", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        slit_corpus.main(words)
    assert message in str(caught.value.code)


def test_options_that_no_corpus_has_are_refused(tree, capsys):
    with pytest.raises(SystemExit):
        slit_corpus.main(["clotho", "--root", str(tree("clotho")), "--test_fold", "1"])
    assert "--test_fold" in capsys.readouterr().err


def test_a_recipe_is_prepared_from_one_labelled_corpus(tree, tmp_path, capsys):
    words = ["prepare", "--corpora", "esc50", "--root", f"esc50={tree('esc50')}"]
    slit_corpus.main([*words, "--out", str(tmp_path), "--jobs", "1"])
    expected = {
        "train_caption": 18,
        "valid_caption": 6,
        "train_instruction": 54,  # what is it, is it this, and describe it
        "valid_instruction": 18,
        "esc50_test": 6,
    }
    for name, samples in expected.items():
        assert validate.validate(tmp_path / name) == samples
        split = name.partition("_")[0] if name != "esc50_test" else "test"
        assert kaldi_dir.read_set(tmp_path / name)["split"] == split
    tasks = dict(kaldi_dir.read_pairs(tmp_path / "train_instruction" / "utt2task"))
    assert Counter(tasks.values())["caption"] == 18
    assert f"{tmp_path / 'train_caption'}: 18 samples" in capsys.readouterr().out


def test_a_test_set_that_a_recipe_no_longer_makes_is_gone(tree, tmp_path, caplog):
    words = ["prepare", "--corpora", "esc50", "--root", f"esc50={tree('esc50')}"]
    words += ["--out", str(tmp_path), "--jobs", "1"]
    more = ["--zero_shot", "vggsound", "--root", f"vggsound={tree('vggsound')}"]
    slit_corpus.main([*words, *more])
    assert (tmp_path / "vggsound_test" / "wav.scp").is_file()
    slit_corpus.main(words)
    assert not (tmp_path / "vggsound_test").exists()
    assert (tmp_path / "esc50_test" / "wav.scp").is_file()
    assert "vggsound_test: removed" in caplog.text


def test_a_recipe_mixes_corpora_and_leaves_leaking_samples_out(
    tree, tmp_path, column, caplog
):
    roots = {n: tree(n) for n in ("audiocaps", "clotho", "clotho_aqa", "wavcaps")}
    words = ["prepare", "--corpora", " ".join(roots), "--zero_shot", "esc50"]
    roots["esc50"] = tree("esc50")
    for name, root in roots.items():
        words += ["--root", f"{name}={root}"]
    words += ["--out", str(tmp_path), "--jobs", "1", "--verification", "1"]
    slit_corpus.main(words)
    sets = sorted(p.parent.name for p in tmp_path.glob("*/wav.scp"))
    assert sets == [
        "audiocaps_test",
        "clotho_aqa_test",
        "clotho_evaluation",
        "esc50_all",
        "train_caption",
        "train_instruction",
        "valid_caption",
        "valid_instruction",
    ]
    for name in sets:
        assert validate.validate(tmp_path / name) > 0
    # ClothoAQA asks about this training clip in its test split
    names = column(tmp_path / "parts/clotho_aqa_train", "clip2name")
    (leak,) = [clip for clip, name in names.items() if name.startswith("caf")]
    assert leak in column(tmp_path / "clotho_aqa_test", "utt2audio").values()
    assert leak not in column(tmp_path / "train_instruction", "utt2audio").values()
    assert "samples left out" in caplog.text
    words = ["leakage", "--train", str(tmp_path / "train_instruction"), "--test"]
    words += [str(tmp_path / n) for n in sets if n.endswith(("test", "evaluation"))]
    assert slit_data.main(words) == 0


def test_all_corpora_fit_in_one_recipe(tree, tmp_path, column):
    zero_shot = ["esc50", "urbansound8k", "vggsound"]
    words = ["prepare", "--zero_shot", ",".join(zero_shot), "--out", str(tmp_path)]
    words += ["--corpora", ",".join(n for n in READERS if n not in zero_shot)]
    for name in READERS:
        words += ["--root", f"{name}={tree(name)}"]
    words += [
        "--max_duration",
        "0.9",
        "--long",
        "crop",
        "--jobs",
        "1",
        "--alpha",
        "0.5",
    ]
    slit_corpus.main([*words, "--set", "audioset.unbalanced=false"])
    for path in tmp_path.glob("*/wav.scp"):
        assert validate.validate(path.parent) > 0
    assert not (tmp_path / "macs_test").exists()  # not a published split
    for name in ("esc50_all", "urbansound8k_all", "vggsound_test"):
        assert kaldi_dir.read_set(tmp_path / name)["zero_shot"] is True
    assert kaldi_dir.read_set(tmp_path / "nsynth_test")["zero_shot"] is False
    train = tmp_path / "train_instruction"
    categories = set(column(train, "utt2category").values())
    assert {
        "wavcaps_bbc_caption",
        "clotho_aqa_question",
        "nsynth_presence",
    } <= categories
    assert (train / "segments").exists()  # cut to 0.9 s


def test_training_on_tested_folds_breaks_the_zero_shot_claim(tree, tmp_path, capsys):
    words = ["esc50", "--root", str(tree("esc50")), "--out", str(tmp_path)]
    slit_corpus.main([*words, "--splits", "train,all", "--jobs", "1"])
    train, test = tmp_path / "esc50_train", tmp_path / "esc50_all"
    words = ["leakage", "--train", str(train), "--test", str(test)]
    assert slit_data.main([*words, "--fail", "zero_shot"]) == 1
    shown = capsys.readouterr().out
    assert "NOT ZERO-SHOT" in shown and "(30 clips): same clip 18" in shown
    assert leakage.leaking_samples(train, [test]) == set(kaldi_dir.sample_ids(train))


def test_sets_can_be_mixed_captioned_and_counted(tree, tmp_path, capsys):
    words = ["esc50", "--root", str(tree("esc50")), "--out", str(tmp_path)]
    slit_corpus.main([*words, "--splits", "train", "--jobs", "1"])
    train = str(tmp_path / "esc50_train")
    captions, mixed = str(tmp_path / "captions"), str(tmp_path / "mixed")
    slit_corpus.main(["label_captions", train, "--out", captions])
    slit_corpus.main(
        ["instruction", train, captions, "--out", mixed, "--presence", "2"]
    )
    assert "esc50_presence" in capsys.readouterr().out
    assert validate.validate(tmp_path / "mixed") == 72
    categories = dict(kaldi_dir.read_pairs(tmp_path / "mixed" / "category2utt"))
    sizes = {name: len(members.split()) for name, members in categories.items()}
    assert sizes == {"esc50_caption": 18, "esc50_class": 18, "esc50_presence": 36}


def test_a_recipe_directory_of_espnet_is_read(tmp_path, capsys):
    import trees

    root = trees.esc50_recipe(tmp_path / "data")
    words = ["espnet", str(root / "val1"), "--out", str(tmp_path / "out")]
    words += ["--task", "classification", "--form", "evaluation"]
    slit_corpus.main([*words, "--label_names", str(root / "names")])
    assert "2 samples" in capsys.readouterr().out
    assert validate.validate(tmp_path / "out") == 2
