import pytest

from espnet2_slit.scoring.metrics.multiple_choice import (
    Choice,
    parse_choice,
    score_choices,
)

OPTIONS = ["dog", "dog and rain", "cat", "A bell"]


@pytest.mark.parametrize(
    ("answer", "option", "by"),
    [
        ("dog", 0, "text"),
        ("Dog and rain.", 1, "text"),
        ("It is a dog and rain", 1, "text"),
        ("I hear a cat here", 2, "text"),
        ("a bell", 3, "text"),
        ("B", 1, "letter"),
        ("b.", 1, "letter"),
        ("(C)", 2, "letter"),
        ("(C) cat", 2, "letter"),
        ("The correct answer is: (C) cat", 2, "letter"),
        ("Answer: D", 3, "letter"),
        ("option C.", 2, "letter"),
        ("A dog barks", 0, "text"),
        ("A", 0, "letter"),
    ],
)
def test_answers_are_read_by_the_stated_rule(answer, option, by):
    assert parse_choice(answer, OPTIONS) == Choice(option, by)


@pytest.mark.parametrize(
    "answer",
    ["", "a horse", "(E)", "E", "cat or a bell", "(A) cat", "dogs", "A horse barks"],
)
def test_what_names_no_option_or_two_is_unparsed(answer):
    assert parse_choice(answer, OPTIONS).by == "unparsed"


def test_options_that_are_letters_are_read_as_text():
    assert parse_choice("A", ["B", "A"]) == Choice(1, "text")


def test_hindi_options_that_differ_in_a_sign_differ():
    assert parse_choice("हैं", ["है", "हैं"]) == Choice(1, "text")


def choices(*numbers):
    return [Choice(n, "unparsed" if n is None else "text") for n in numbers]


def test_chance_is_that_of_each_questions_options():
    shown = [["yes", "no"], ["a", "b", "c", "d"]]
    found = score_choices([choices(0, 0)], [shown], ["yes", "d"], ["x", "y"])
    row = found["all_rows"]
    assert row.scores["accuracy"].value == 0.5
    assert row.chance["accuracy"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert row.n == 2 and row.clips == ["x", "y"]
    assert "order_consistency" not in row.scores


def test_a_system_that_takes_what_comes_first_is_seen():
    orders = [[["a", "b"]] * 4, [["b", "a"]] * 4]
    found = score_choices([choices(0, 0, 0, 0)] * 2, orders, ["a"] * 4, list("wxyz"))
    row = found["all_rows"]
    assert row.scores["accuracy"].value == 0.5
    assert row.scores["order_consistency"].value == 0
    assert row.scores["first_option_rate"].value == 1
    assert row.chance["first_option_rate"] == 0.5
    steady = [choices(0, 0, 0, None), choices(1, 1, 1, None)]
    row = score_choices(steady, orders, ["a"] * 4, list("wxyz"))["all_rows"]
    assert row.scores["order_consistency"].value == 0.75, "unparsed is not consistent"
    assert row.parsed == {"text": 6, "unparsed": 2}


def test_categories_are_scored_apart():
    shown = [["yes", "no"]] * 3
    found = score_choices(
        [choices(0, 1, 0)], [shown], ["yes"] * 3, list("xyz"), ["m", "s", "s"]
    )
    assert found["kind:m"].scores["accuracy"].value == 1
    assert found["kind:s"].scores["accuracy"].value == 0.5


def test_a_right_answer_that_is_no_option_is_named():
    with pytest.raises(ValueError, match="among the options, found 'horse'"):
        score_choices([choices(0)], [[["a", "b"]]], ["horse"], ["x"])
