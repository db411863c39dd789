"""Moments: from the files of data and predictions to rows."""

import json

import pytest

from espnet2_slit.scoring.metrics.score_table import ScoreTable
from espnet2_slit.scoring.read import ScoringError
from espnet2_slit.scoring.test_sets import score_predictions


@pytest.fixture
def case(tmp_path):
    data = tmp_path / "long"
    data.mkdir()
    (data / "wav.scp").write_text("".join(f"q{i} a.wav\n" for i in range(3)))
    (data / "utt2audio").write_text("q0 a\nq1 a\nq2 b\n")
    (data / "text").write_text("q0 a dog\nq1 rain\nq2 a bell\n")
    (data / "moments").write_text("q0 0 10\nq1 30 40\nq1 50.5 60\nq2 5 8\n")
    facts = {"schema": 1, "name": "long", "tasks": ["moments"]}
    (data / "set.json").write_text(json.dumps(facts))
    rows = [
        {"qid": "q0", "query": "a dog", "pred_relevant_windows": [[0, 9, 0.8]]},
        # Not sorted: the score decides which comes first.
        {"qid": "q1", "pred_relevant_windows": [[0, 9, 0.1], [30, 41, 0.9]]},
        {"qid": "q2", "pred_relevant_windows": []},
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data, path


def test_rows_with_protocol_and_chance(case):
    table = ScoreTable("theirs", resamples=50)
    score_predictions(table, case[0], "moments", case[1])
    row = table.row("long/moments/recall_at_1_iou_0.7")
    assert row.value == pytest.approx(2 / 3) and row.n == 3
    assert row.chance == 0 and row.protocol["moments_per_query"] == "1-2"
    assert table.row("long/moments/map_iou_0.5").value == pytest.approx((1 + 0.5) / 3)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "expected JSON"),
        ('{"query": "a dog"}', "qid and pred_relevant_windows"),
        ('{"qid": "q9", "pred_relevant_windows": [[1, 2]]}', "start, end, score"),
        ('{"qid": "q0", "pred_relevant_windows": []}', "'q0' repeats"),
        ('{"qid": "q9", "pred_relevant_windows": []}', "1 not in the data"),
    ],
)
def test_other_lines_are_named(case, line, said):
    case[1].write_text(case[1].read_text() + line + "\n")
    with pytest.raises(ScoringError, match=said):
        score_predictions(ScoreTable("x"), case[0], "moments", case[1])


@pytest.mark.parametrize("line", ["q2 5", "q2 5 eight", "q2 [[5, 8]]"])
def test_moments_of_data_are_start_and_end(case, line):
    (case[0] / "moments").write_text(f"q0 0 10\nq1 0 1\n{line}\n")
    with pytest.raises(ScoringError, match="expected a list of .start, end. of q2"):
        score_predictions(ScoreTable("x"), case[0], "moments", case[1])


def test_data_without_moments_is_told(case):
    (case[0] / "moments").unlink()
    with pytest.raises(ScoringError, match="expected the right moments"):
        score_predictions(ScoreTable("x"), case[0], "moments", case[1])
