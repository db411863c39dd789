"""Classification scores of a clip x label matrix, single and multi label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espnet2_slit.scoring.metrics.bootstrap import Score, mean_items


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of one scorer of labels.

    Attributes:
        scores: metric name -> Items, or a number that has no interval.
        chance: metric name -> its expectation under guessing, or None.
        predicted: (N,) int label the system chose.
        confusion: (C, C) int, truth by prediction.
    """

    scores: dict[str, Score]
    chance: dict[str, float]
    predicted: np.ndarray
    confusion: np.ndarray


def check_scores(scores: np.ndarray, num_items: int, num_labels: int) -> None:
    """Refuse a score matrix of another shape or with NaN.

    Raises:
        ValueError: the message gives both shapes or the number of NaN.
    """
    if scores.shape != (num_items, num_labels):
        raise ValueError(
            f"expected scores (clips, labels) {(num_items, num_labels)}, found "
            f"{scores.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError(
            f"expected numbers, found {int(np.isnan(scores).sum())} NaN among "
            f"{scores.size} label scores"
        )


def predict(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The best label of each clip; a tie goes to a wrong one.

    Args:
        scores: (N, C).
        truth: (N,) int.

    Returns:
        (N,) int.
    """
    best = scores.max(axis=1, keepdims=True)
    tied = scores == best
    tied[np.arange(len(truth)), truth] = False
    first_wrong = tied.argmax(axis=1)
    return np.where(tied.any(axis=1), first_wrong, truth)


def single_label(scores: np.ndarray, truth: np.ndarray) -> ClassificationScores:
    """Accuracy, top-5 accuracy, per-class mean of the accuracy, confusion matrix.

    Args:
        scores: (N, C), higher is better.
        truth: (N,) int label of each clip.

    Returns:
        ClassificationScores. Chance is uniform guessing; `majority` of the accuracy is
        the share of the most frequent class.

    Raises:
        ValueError: see `check_scores`.
    """
    num_items, num_labels = len(truth), scores.shape[1]
    check_scores(scores, num_items, num_labels)
    own = np.take_along_axis(scores, truth[:, None], axis=1)
    rank = (scores >= own).sum(axis=1) - 1  # a tie ranks behind
    predicted = predict(scores, truth)
    result = from_predictions(predicted, truth, num_labels)
    if num_labels > 5:
        result.scores["top_5_accuracy"] = mean_items((rank < 5).astype(float))
        result.chance["top_5_accuracy"] = 5 / num_labels
    return result


def from_predictions(
    predicted: np.ndarray, truth: np.ndarray, num_labels: int
) -> ClassificationScores:
    """Scores of a system that only names one label a clip.

    Args:
        predicted: (N,) int; -1 is an answer that is no label.
        truth: (N,) int.
        num_labels: C.

    Returns:
        ClassificationScores without top-5; answers that are no label are wrong and not
        in the confusion matrix.
    """
    correct = (predicted == truth).astype(float)
    confusion = np.zeros((num_labels, num_labels), dtype=np.int64)
    named = predicted >= 0
    np.add.at(confusion, (truth[named], predicted[named]), 1)
    support = np.bincount(truth, minlength=num_labels)
    present = support[truth]
    # Mean over classes as a weighted mean over clips, so that clips are resampled.
    macro = mean_items(correct / present, 1 / present)
    return ClassificationScores(
        scores={"accuracy": mean_items(correct), "accuracy_macro": macro},
        chance={"accuracy": 1 / num_labels, "accuracy_macro": 1 / num_labels},
        predicted=predicted,
        confusion=confusion,
    )


def per_class_accuracy(confusion: np.ndarray, support: np.ndarray) -> np.ndarray:
    """(C,) share of each class's clips that were named right; NaN without clips."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.diag(confusion) / support


def fold_accuracy(
    predicted: np.ndarray, truth: np.ndarray, folds: np.ndarray
) -> dict[str, tuple[float, int]]:
    """Accuracy of each fold and their mean.

    Args:
        predicted: (N,) int.
        truth: (N,) int.
        folds: (N,) str, the fold of each clip.

    Returns:
        {fold name: (accuracy, clips)} in the order of the names.
    """
    correct = predicted == truth
    return {
        str(fold): (float(correct[folds == fold].mean()), int((folds == fold).sum()))
        for fold in np.unique(folds)
    }


def multi_label(scores: np.ndarray, truth: np.ndarray) -> ClassificationScores:
    """Mean average precision over classes and over clips.

    Args:
        scores: (N, C).
        truth: (N, C) bool.

    Returns:
        ClassificationScores with `map_macro` (classes without a clip are left out;
        their number is in `classes_without_clips`), `map_per_clip` (label ranking), and
        an empty confusion matrix.

    Raises:
        ValueError: shapes differ, NaN, or no clip has a label.
    """
    from sklearn.metrics import average_precision_score

    check_scores(scores, *truth.shape)
    present = truth.any(axis=0)
    labelled = truth.any(axis=1)
    if not present.any():
        raise ValueError(
            f"expected labels, found none for {len(truth)} clips x {truth.shape[1]}"
        )
    macro = average_precision_score(
        truth[:, present], scores[:, present], average="macro"
    )
    per_clip = [
        average_precision_score(t, s)
        for t, s in zip(truth[labelled], scores[labelled], strict=True)
    ]
    base = float(truth[:, present].mean())
    return ClassificationScores(
        scores={
            "map_macro": float(macro),
            "map_per_clip": mean_items(per_clip),
            "classes_without_clips": int((~present).sum()),
        },
        # The expected average precision of a random order is about the base rate.
        chance={"map_macro": base, "map_per_clip": float(truth[labelled].mean())},
        predicted=scores.argmax(axis=1),
        confusion=np.zeros((0, 0), dtype=np.int64),
    )
