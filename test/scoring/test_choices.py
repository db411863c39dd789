"""Questions with options of their own: from files to rows."""

import json

import pytest

from espnet2_slit.common.templates import choice_question
from espnet2_slit.data.choices import read_choices, rotated
from espnet2_slit.data.kaldi_dir import DataDirError
from espnet2_slit.scoring.metrics.score_table import ScoreTable
from espnet2_slit.scoring.test_sets import score_predictions, score_set

ROWS = [  # id, answer, options, kind
    ("q1", "dog", ["dog", "cat"], "animal"),
    ("q2", "cat", ["dog", "cat"], "animal"),
    ("q3", "twice", ["once", "twice", "never", "always"], "count"),
    ("q4", "yes", None, "open"),
]


@pytest.fixture
def case(tmp_path):
    data, decode = tmp_path / "data" / "mc", tmp_path / "decode" / "mc"
    folder = decode / "question_answering"
    data.mkdir(parents=True)
    folder.mkdir(parents=True)
    write(data / "wav.scp", {q: f"{q}.wav" for q, *_ in ROWS})
    write(data / "text", {q: answer for q, answer, *_ in ROWS})
    write(data / "instruction", {q: "What?" for q, *_ in ROWS})
    write(data / "utt2kind", {q: kind for q, _, _, kind in ROWS})
    write(data / "choices", {q: json.dumps(o) for q, _, o, _ in ROWS if o})
    facts = {"schema": 1, "name": "mc", "tasks": ["question_answering"]}
    (data / "set.json").write_text(json.dumps(facts))
    (decode / "decode.json").write_text(json.dumps(facts))
    write(folder / "text", {"q1": "(A)", "q2": "cat", "q3": "a horse", "q4": "Yes."})
    write(folder / "text.rotated1", {"q1": "(B)", "q2": "cat", "q3": "(A)"})
    write(folder / "ranked", {"q1": "dog", "q2": "cat", "q3": "once"})
    write(folder / "ranked_mean", {"q1": "dog", "q2": "dog", "q3": "once"})
    return data, decode


def write(path, values):
    path.write_text("".join(f"{k} {v}\n" for k, v in values.items()))


def rows_of(table):
    start = "mc/question_answering/"
    return {row.key.removeprefix(start): row for row in table.rows}


def test_rows_of_choices_and_of_open_questions(case):
    table = ScoreTable("ours", resamples=50)
    score_set(table, *case)
    rows = rows_of(table)
    row = rows["choices/generated/all_rows/accuracy"]
    assert row.value == pytest.approx((1 + 1 + 0.5) / 3) and row.n == 3
    assert row.chance == pytest.approx((1 / 2 + 1 / 2 + 1 / 4) / 3)
    assert row.protocol["parsed"] == "text 2, letter 3, unparsed 1"
    assert row.protocol["orders_of_the_options"] == 2
    assert rows["choices/generated/all_rows/order_consistency"].value == (
        pytest.approx(2 / 3)
    )
    assert rows["choices/ranked/all_rows/accuracy"].value == pytest.approx(2 / 3)
    assert rows["choices/ranked_mean/kind:animal/accuracy"].value == 0.5
    assert rows["free/all_rows/exact_match"].n == 1, "the one question without options"


def test_categories_of_a_publisher_have_rows_unless_there_is_one(case):
    kinds = case[0] / "utt2kind"
    kinds.rename(case[0] / "utt2category")  # as readers of corpora write it
    table = ScoreTable("ours", resamples=50)
    score_set(table, *case)
    assert rows_of(table)["choices/ranked_mean/kind:animal/accuracy"].value == 0.5
    write(case[0] / "utt2category", {q: "mmau" for q, *_ in ROWS})
    table = ScoreTable("ours", resamples=50)
    score_set(table, *case)
    assert not [key for key in rows_of(table) if "kind:" in key]


def test_another_systems_answers_are_parsed_alike(case, tmp_path):
    table = ScoreTable("theirs", resamples=50)
    path = tmp_path / "answers.txt"
    write(path, {"q1": "B.", "q2": "B.", "q3": "B.", "q4": "no"})
    score_predictions(table, case[0], "question_answering", path)
    rows = rows_of(table)
    assert rows["choices/generated/all_rows/accuracy"].value == pytest.approx(2 / 3)
    assert not [key for key in rows if "ranked" in key]


def test_ranked_options_that_were_not_decoded_are_said(case):
    (case[1] / "question_answering" / "ranked").unlink()
    table = ScoreTable("ours", resamples=50)
    score_set(table, *case)
    assert "not computed: needs ranked answers" in (
        rows_of(table)["choices/ranked/all_rows/accuracy"].note
    )


def test_several_right_answers_have_a_row(case):
    (case[0] / "references").write_text("q4 yes\nq4 indeed\n")
    (case[1] / "question_answering" / "text").write_text(
        "q1 (A)\nq2 cat\nq3 twice\nq4 Indeed.\n"
    )
    table = ScoreTable("ours", resamples=50)
    score_set(table, *case)
    rows = rows_of(table)
    assert rows["free/all_rows/exact_match"].value == 0, "the commonest answer alone"
    assert rows["free/any_answer/exact_match"].value == 1


@pytest.mark.parametrize("line", ['q1 "dog"', 'q1 ["dog"]', "q1 dog, cat", "q1 [1, 2]"])
def test_choices_that_are_no_list_of_texts_are_named(tmp_path, line):
    (tmp_path / "choices").write_text(line + "\n")
    with pytest.raises(DataDirError, match="a JSON list of 2 to 26 texts"):
        read_choices(tmp_path, ["q1"])


def test_choices_of_other_samples_are_named(tmp_path):
    (tmp_path / "choices").write_text('q9 ["a", "b"]\n')
    with pytest.raises(DataDirError, match=r"1 others \(e.g. 'q9'\)"):
        read_choices(tmp_path, ["q1"])


def test_options_are_shown_lettered_in_their_order():
    options = ["a dog.", "rain"]
    assert choice_question("What?", options) == "What? Choose one: (A) a dog. (B) rain."
    assert rotated(options, 1) == ["rain", "a dog."]
    assert rotated(options, 2) == options
