"""The row that says whether a system listens."""

import json

import decoded_case
import pytest

from espnet2_slit.bin import slit_score
from espnet2_slit.scoring.read import decoded_sets


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A system that is right on 0.9 of the clips, and on none when it hears silence."""
    root = tmp_path_factory.mktemp("controls")
    data, decode = decoded_case.build(root / "own", quality=0.9)
    _, silent = decoded_case.build(root / "silent", quality=0)
    silent.rename(decode / "control_silence")
    words = ["--decode_dir", str(decode), "--data_dir", str(data), "--report", "false"]
    assert slit_score.main([*words, "--java", "none", "--resamples", "200"]) == 0
    return decode


def test_scores_stand_beside_their_control_with_a_paired_interval(scored):
    rows = json.loads((scored / "scores.json").read_text())["controls"]
    by_key = {row["key"]: row for row in rows}
    assert {row["control"] for row in rows} == {"silence"}
    row = by_key["test_qa/question_answering/free/all_rows/exact_match"]
    assert row["control_score"] == 0
    assert row["difference"] == row["score"] == pytest.approx(0.9, abs=0.12)
    assert 0 < row["low"] < row["difference"] <= row["high"]
    for task in ("caption", "retrieval", "question_answering", "classification"):
        assert any(f"/{task}/" in key for key in by_key), task


def test_results_have_the_table(scored):
    text = (scored / "RESULTS.md").read_text()
    assert "### Does it listen?" in text
    assert "|test_qa|question_answering/free/all_rows|Exact match %|silence|" in text


def test_a_control_is_no_set_of_its_own(scored):
    assert decoded_sets(scored) == ["test_caption", "test_class", "test_qa"]
