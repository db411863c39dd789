"""Corpora of generated captions, of instructions, and of questions with options."""

import json

import pytest
import trees

from espnet2_slit.common.templates import choice_question
from espnet2_slit.data.choices import read_choices
from espnet2_slit.data.corpora import READERS, Limits, build_sets
from espnet2_slit.data.corpora.multiple_choice import options_of, right_option


def test_ids_of_youtube_find_audio_by_any_usual_name(tree, build, column):
    folder, report = build(READERS["audiosetcaps"](tree("audiosetcaps")), "audioset")
    assert set(column(folder, "text").values()) == {
        "A solemn piece, with a bell",
        "A woman speaks",
    }
    assert set(column(folder, "utt2source").values()) == {
        "youtube:_7Xe9vD3Hpg",
        "youtube:-TL8Mp3xcUM",
    }
    assert report.left_out == {"ids that are not of YouTube": 1} and report.missing == 1


def test_auto_acd_has_no_line_of_names(tree, build, column):
    folder, _ = build(READERS["auto_acd"](tree("auto_acd")), "test")
    assert list(column(folder, "text").values()) == ["Rain"]


@pytest.mark.parametrize("name", ["open_aqa", "compa_r"])
def test_instructions_are_questions_with_long_answers(tree, build, column, name):
    folder, report = build(READERS[name](tree(name)), "train")
    asked = column(folder, "instruction")
    assert all(
        q.startswith("What happens in a") or "b.flac" in q for q in asked.values()
    )
    assert all(a.startswith("Something, ") for a in column(folder, "text").values())
    assert set(column(folder, "utt2category").values()) == {"open-ended_question"}
    assert report.missing == 1


def test_options_and_categories_of_mmau_stand_beside_the_questions(tree, build, column):
    folder, report = build(READERS["mmau"](tree("mmau")), "test-mini")
    texts = column(folder, "text")
    choices = read_choices(folder, set(texts))
    assert set(map(tuple, choices.values())) == {("Man", "A dog", "Rain, heavy")}
    assert choices.keys() == texts.keys()
    assert sorted(texts.values()) == ["A dog", "Rain, heavy"]  # as the option is spelt
    assert set(column(folder, "utt2category").values()) == {"sound", "music"}
    assert report.missing == 1


def test_a_test_split_without_answers_says_so(tree, tmp_path):
    with pytest.raises(ValueError, match="no answer published"):
        build_sets(
            READERS["mmau"](tree("mmau")), tmp_path, ["test"], limits=Limits(jobs=1)
        )


def test_rows_that_cannot_be_asked_are_counted(tree, build):
    _, report = build(READERS["mmau_pro"](tree("mmau_pro")), "test")
    assert report.left_out == {"several recordings": 1, "no options": 1}
    assert report.kept_samples == 1


def test_training_questions_show_their_options(tree, build, column):
    corpus = READERS["dcase_aqa"](tree("dcase_aqa"))
    folder, _ = build(corpus, "train")
    (asked,) = column(folder, "instruction").values()
    assert asked == choice_question("Which sound is it?", ["Man", "A dog"])
    assert not (folder / "choices").exists()
    folder, _ = build(corpus, "development")
    assert list(column(folder, "choices").values()) == ['["Man", "A dog"]']
    assert list(column(folder, "text").values()) == ["A dog"]
    assert json.loads((folder / "set.json").read_text())["split"] == "test"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        ({"B": "b", "A": "a"}, ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("A. a\nB. b", ["a", "b"]),
        (["(A) a", "(B) b"], ["a", "b"]),
        (["A dog", "A cat"], ["A dog", "A cat"]),
        (["a", "a"], ["a"]),
        (None, []),
    ],
)
def test_options_come_in_many_forms(options, expected):
    assert options_of({"choices": options}) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("a dog", "A dog"),
        ("B", "Rain"),
        ("(B)", "Rain"),
        ("B. Rain", "Rain"),
        ("B. A dog", None),
        ("C", None),
        ("cat", None),
    ],
)
def test_an_answer_names_its_option_by_text_or_letter(answer, expected):
    assert right_option(answer, ["A dog", "Rain"]) == expected


def test_a_broken_list_names_its_file(tmp_path):
    root = trees.open_aqa(tmp_path / "o")
    (root / "openaqa_5.6M.json").write_text('[{"instruction": "x"}]')
    with pytest.raises(ValueError, match="expected text as audio_id"):
        build_sets(READERS["open_aqa"](root), tmp_path / "out", limits=Limits(jobs=1))
    (root / "openaqa_5.6M.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="expected a list"):
        build_sets(READERS["open_aqa"](root), tmp_path / "out", limits=Limits(jobs=1))
