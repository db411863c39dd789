import numpy as np
import pytest

from espnet2_slit.scoring.metrics.moments import (
    average_precision,
    overlap,
    score_moments,
)


def test_overlap_by_hand():
    found = overlap(np.array([[0, 10.0], [20, 30]]), np.array([[5, 15.0], [0, 10]]))
    np.testing.assert_allclose(found, [[5 / 15, 1], [0, 0]])


def test_average_precision_by_hand():
    # Right, wrong, right: precision 1 at half the recall, 2/3 at all of it.
    iou = np.array([[0.8, 0.0], [0.1, 0.2], [0.6, 0.9]])
    assert average_precision(iou, 0.5) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(iou, 0.85) == pytest.approx(1 / 3 / 2)
    assert average_precision(iou, 0.95) == 0


def test_a_moment_is_found_once():
    iou = np.array([[0.9], [0.9]])
    assert average_precision(iou, 0.5) == 1
    assert average_precision(np.array([[0.1, 0.0], [0.9, 0], [0.9, 0]]), 0.5) == 0.25


def test_scores_by_hand():
    right = [np.array([[0, 10.0]]), np.array([[0, 10.0], [50, 60]])]
    predicted = [np.array([[0, 6.0], [0, 10]]), np.array([[50, 59.0]])]
    found = score_moments(predicted, right, ["a", "b"])
    value = {name: score.value for name, score in found.scores.items()}
    assert value["recall_at_1_iou_0.5"] == 1
    assert value["recall_at_1_iou_0.7"] == 0.5
    assert value["map_iou_0.5"] == pytest.approx((1 + 0.5) / 2)
    assert value["map_iou_0.75"] == pytest.approx((0.5 + 0.5) / 2)
    # IoU 0.6, then 1.0 for the first query; 0.9 and one missing for the second.
    first = [1] * 3 + [0.5] * 7
    second = [0.5] * 9 + [0]
    assert value["map_iou_mean"] == pytest.approx(np.mean(first + second))


def test_only_the_first_ten_count():
    wrong = [[20.0 + i, 21.0 + i] for i in range(10)]
    late = np.array([*wrong, [0.0, 10.0]])
    found = score_moments([late], [np.array([[0, 10.0]])], ["a"])
    assert found.scores["map_iou_0.5"].value == 0


def test_no_prediction_is_wrong():
    nothing = np.zeros((0, 2))
    found = score_moments([nothing], [np.array([[0, 10.0]])], ["a"])
    assert found.scores["recall_at_1_iou_0.5"].value == 0


def test_impossible_moments_are_refused():
    with pytest.raises(ValueError, match="end after they begin"):
        score_moments([np.array([[5, 1.0]])], [np.array([[0, 1.0]])], ["a"])
    with pytest.raises(ValueError, match="1 queries without"):
        score_moments([np.zeros((0, 2))], [np.zeros((0, 2))], ["a"])
