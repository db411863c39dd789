"""Wordings of every language: complete, and each used with what it leaves open."""

import pytest

from espnet2_slit.common import templates


@pytest.mark.parametrize("language", templates.languages())
def test_every_language_has_every_wording(language):
    found = templates.wordings(language)
    assert set(found) == set(templates.OPEN) == set(templates.wordings("en"))
    for name, texts in found.items():
        assert len(set(texts)) == len(texts) == len(templates.wordings("en")[name])


def test_german_is_asked_in_german():
    assert templates.instruction("caption", language="de") == "Beschreibe die Aufnahme."
    asked = templates.choice_question("Was bellt?", ["ein Hund", "{x}"], "de")
    assert asked == "Was bellt? Wähle eines: (A) ein Hund. (B) {x}."


def test_braces_of_a_question_stay():
    asked = templates.choice_question("{options}?", ["a", "b"])
    assert asked == "{options}? Choose one: (A) a. (B) b."


def test_an_unknown_language_says_what_there_is_and_what_to_do():
    with pytest.raises(ValueError, match="expected one of de, en, found 'xx'. Add"):
        templates.instruction("caption", language="xx")


def test_a_file_without_a_wording_is_named(tmp_path, monkeypatch):
    (tmp_path / "yy.yaml").write_text("caption: [Sag]\nquestion_answering: [Frage]\n")
    monkeypatch.setattr(templates, "_FOLDER", tmp_path)
    with pytest.raises(ValueError, match="yy.yaml: question_answering: expected"):
        templates.wordings("yy")
