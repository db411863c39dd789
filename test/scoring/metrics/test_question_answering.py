import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet2_slit.scoring.metrics.question_answering import (
    any_answer,
    exact_match,
    normalise,
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "yes"),
        ("  two   dogs! ", "two dogs"),
        ("it's", "its"),
        ("high-pitched", "high pitched"),
        ("A_B", "a b"),
        ("...", ""),
        ("नहीं", "नहीं"),
        ("-5", "-5"),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_normalisation(answer, expected):
    assert normalise(answer) == expected


def test_answers_that_differ_in_vowel_signs_or_in_the_minus_differ():
    """Hindi "is" and "are" differ in a sign alone, 5 and -5 in one, too."""
    right, wrong = ["है", "5"], ["हैं", "-5"]
    found = exact_match(wrong, right, ["q", "r"], ["a", "b"])
    assert found["all_rows"].items.value == 0


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


# Two questions about one clip by three annotators, one about another by one.
QUESTIONS = ["Is it loud?"] * 3 + ["What barks?"] * 3 + ["How many?"]
CLIPS = ["a"] * 6 + ["b"]
ANSWERS = ["yes", "yes", "no", "dog", "Dog", "dog", "two cats"]


def test_variants_by_hand():
    system = ["Yes"] * 3 + ["dog."] * 3 + ["two"]
    found = exact_match(system, ANSWERS, QUESTIONS, CLIPS)
    assert {k: (v.n, round(v.items.value, 4)) for k, v in found.items()} == {
        "all_rows": (7, round(5 / 7, 4)),
        "binary": (3, round(2 / 3, 4)),
        "single_word": (3, 1.0),
        "unanimous": (1, 1.0),
    }
    assert found["all_rows"].majority == pytest.approx(3 / 7)
    assert found["binary"].majority == pytest.approx(2 / 3)
    assert found["all_rows"].clips == ["a", "b"], "rows of a clip are one unit"


def test_unanimous_binary_counts_a_question_once():
    questions = ["Is it loud?"] * 3 + ["Is it far?"] * 3
    answers = ["yes", "YES", "yes.", "no", "yes", "no"]
    found = exact_match(["yes"] * 6, answers, questions, ["a"] * 6)
    assert found["unanimous_binary"].n == 1
    assert found["unanimous_binary"].items.value == 1.0


def test_without_repeated_questions_there_is_no_unanimous_variant():
    found = exact_match(["yes", "no"], ["yes", "no"], ["q", "r"], ["a", "b"])
    assert "unanimous" not in found


def test_kinds_are_scored_apart():
    kinds = ["loudness"] * 3 + ["source"] * 3 + ["count"]
    system = ["yes"] * 3 + ["cat"] * 3 + ["two cats"]
    found = exact_match(system, ANSWERS, QUESTIONS, CLIPS, kinds)
    assert found["kind:source"].items.value == 0
    assert found["kind:count"].items.value == 1
    assert found["kind:loudness"].n == 3


def test_question_prior_is_what_a_deaf_system_gets():
    questions = ["loud?"] * 6 + ["source?"] * 6
    answers = ["yes"] * 4 + ["no"] * 2 + ["dog"] * 3 + ["cat"] * 3
    clips = [str(i) for i in range(12)]
    found = exact_match(answers, answers, questions, clips)["all_rows"]
    assert found.question_prior == pytest.approx((4 + 3) / 12)
    assert found.majority == pytest.approx(4 / 12)
    different = [f"{q} {i}" for i, q in enumerate(questions)]
    found = exact_match(answers, answers, different, clips)["all_rows"]
    assert found.question_prior is None


def test_bad_rows_are_refused():
    with pytest.raises(ValueError, match="found 1, 2, 2, 2"):
        exact_match(["yes"], ["yes", "no"], ["q", "r"], ["a", "b"])
    with pytest.raises(ValueError, match="found 1 empty.*'!' to 'r'"):
        exact_match(["yes", ""], ["yes", "!"], ["q", "r"], ["a", "b"])


def test_any_of_several_answers_is_right():
    accepted = [["yes", "no"], ["a dog", "Dog."], ["two"]]
    found = any_answer(["No.", "dog", "three"], accepted, ["a", "a", "b"])
    assert found.items.value == pytest.approx(2 / 3)
    assert found.n == 3 and found.clips == ["a", "b"]
    assert found.majority == pytest.approx(1 / 3)
