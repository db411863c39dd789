"""Texts are compared by their letters, whatever the script."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet2_slit.common.texts import bare, named_labels, normalize_caption


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello -- World!", "hello world"),
        ("high-pitched", "high pitched"),
        ("A_B  c", "a b c"),
        ("कुत्ता भौंक रहा है।", "कुत्ता भौंक रहा है"),
        ("-5 dB", "-5 db"),
        ("−5", "-5"),
        ("2-5 or (-3)", "2 5 or -3"),
        ("-x", "x"),
    ],
)
def test_bare(text, expected):
    assert bare(text) == expected


def test_two_spellings_of_a_letter_are_one():
    text = "café, é"
    assert bare(unicodedata.normalize("NFD", text)) == bare(text) == "café é"


@given(st.text())
def test_twice_changes_nothing(text):
    assert bare(bare(text)) == bare(text)


def test_a_caption_of_signs_alone_keeps_them():
    assert normalize_caption("Hello -- World!") == "hello world"
    assert normalize_caption(" ?! ") == "?!"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("rain rain", {"rain"}),
        ("a train", set()),
        ("the crying baby and a baby", {"crying baby", "baby"}),
        ("", set()),
    ],
)
def test_labels_are_whole_words_and_the_longest_wins(text, names):
    labels = ["rain", "baby", "crying baby", "sea waves"]
    assert named_labels(text, labels) == names
