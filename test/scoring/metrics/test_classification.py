import numpy as np
import pytest

from espnet2_slit.scoring.metrics.classification import (
    fold_accuracy,
    from_predictions,
    multi_label,
    per_class_accuracy,
    predict,
    single_label,
)


@pytest.fixture
def scores_and_truth():
    generator = np.random.RandomState(0)
    truth = generator.randint(7, size=200)
    scores = generator.randn(200, 7)
    scores[np.arange(200), truth] += 1
    return scores, truth


def test_agrees_with_scikit_learn(scores_and_truth):
    from sklearn import metrics

    scores, truth = scores_and_truth
    result = single_label(scores, truth)
    predicted = scores.argmax(axis=1)
    expected = {
        "accuracy": metrics.accuracy_score(truth, predicted),
        "accuracy_macro": metrics.balanced_accuracy_score(truth, predicted),
        "top_5_accuracy": metrics.top_k_accuracy_score(
            truth, scores, k=5, labels=range(7)
        ),
    }
    for metric, value in expected.items():
        assert result.scores[metric].value == pytest.approx(value)
    np.testing.assert_array_equal(
        result.confusion, metrics.confusion_matrix(truth, predicted, labels=range(7))
    )


def test_confusion_matrix_is_truth_by_prediction():
    result = from_predictions(np.array([1, 1, 0]), np.array([0, 1, 0]), 2)
    assert result.confusion.tolist() == [[1, 1], [0, 1]]
    assert result.scores["accuracy"].value == pytest.approx(2 / 3)
    per_class = per_class_accuracy(result.confusion, np.array([2, 1]))
    assert per_class.tolist() == [0.5, 1.0]


def test_ties_count_against_the_system():
    scores = np.zeros((4, 8))
    truth = np.array([0, 1, 2, 3])
    result = single_label(scores, truth)
    assert result.scores["accuracy"].value == 0
    assert result.scores["top_5_accuracy"].value == 0
    assert predict(scores, truth).tolist() == [1, 0, 0, 0]
    assert np.trace(result.confusion) == 0


def test_an_answer_that_is_no_label_is_wrong_and_not_in_the_matrix():
    result = from_predictions(np.array([-1, 1]), np.array([0, 1]), 2)
    assert result.scores["accuracy"].value == 0.5
    assert result.confusion.sum() == 1


def test_five_labels_have_no_top_5():
    result = single_label(np.eye(5), np.arange(5))
    assert "top_5_accuracy" not in result.scores
    assert result.chance["accuracy"] == 0.2


def test_folds_by_hand():
    predicted, truth = np.array([0, 1, 0, 0]), np.array([0, 0, 0, 0])
    folds = np.array(["1", "1", "2", "2"])
    assert fold_accuracy(predicted, truth, folds) == {"1": (0.5, 2), "2": (1.0, 2)}


def test_multi_label_map_by_hand():
    truth = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=bool)
    scores = np.array([[0.9, 0.2, 0.0], [0.8, 0.1, 0.0], [0.7, 0.3, 0.0]])
    result = multi_label(scores, truth)
    # Class 0: hits at 1 and 3; class 1: hits at 1 and 3; class 2 has no clip.
    expected = (1 + 2 / 3) / 2
    assert result.scores["map_macro"] == pytest.approx(expected)
    assert result.scores["classes_without_clips"] == 1
    # Clip 0: first; clip 1: second; clip 2: both of its labels first.
    assert result.scores["map_per_clip"].value == pytest.approx((1 + 0.5 + 1) / 3)
    assert result.chance["map_macro"] == pytest.approx(4 / 6)


def test_wrong_shape_and_nan_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\), found \(2, 2\)"):
        single_label(np.zeros((2, 2)), np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="found 1 NaN among 4"):
        single_label(np.array([[0, np.nan], [1, 2]]), np.array([0, 1]))
    with pytest.raises(ValueError, match="found none for 2 clips x 3"):
        multi_label(np.zeros((2, 3)), np.zeros((2, 3), dtype=bool))
