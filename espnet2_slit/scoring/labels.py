"""Scores of labels given to the clips of a set, by every scorer that was decoded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_slit.common.files import read_lines
from espnet2_slit.data.kaldi_dir import read_map, sample_ids
from espnet2_slit.scoring.metrics import classification
from espnet2_slit.scoring.metrics.bootstrap import NotComputed, mean_items
from espnet2_slit.scoring.metrics.question_answering import normalise
from espnet2_slit.scoring.read import (
    ScoringError,
    TaskOfSet,
    check_ids,
    load_arrays,
    read_references,
    strings,
    unit_length,
)

# classification/scores.npz: array -> what made it.
SCORERS = {
    "similarity": "contrastive similarity of clip and label prompt",
    "matching": "matching head on clip and label prompt",
    "language_model_sum": "language model, log-likelihood of the label",
    "language_model_mean": "language model, log-likelihood per token of the label",
}
CHANCE = "uniform guess"


def score(task: TaskOfSet) -> None:
    """Add the scores of each scorer of labels.

    Raises:
        ScoringError: ids, labels or shapes differ from the data's.
    """
    labels, ids, truth = read_labels(task.data_dir)
    folds = None
    if (task.data_dir / "utt2fold").is_file():
        fold_of = read_map(task.data_dir / "utt2fold")
        check_ids(ids, fold_of, task.data_dir, task.data_dir / "utt2fold")
        folds = np.array([fold_of[i] for i in ids])
    path = task.path if task.external else task.path / "scores.npz"
    found: dict[str, np.ndarray | NotComputed]
    if path.suffix != ".npz":
        predicted = _predicted_labels(path, task.data_dir, labels, ids, truth)
        found = {"answer": predicted}
    else:
        found = _label_scores(path, task.data_dir, labels, ids, task.external)
    details = {}
    for name, scores in found.items():
        protocol = {
            "route": SCORERS.get(name, name),
            "labels": len(labels),
            "ties": "counted against the system",
            "resampled": "clips",
            "chance": CHANCE,
        }
        if isinstance(scores, NotComputed):
            task.add((name,), {"accuracy": scores}, protocol, 0, [])
            continue
        try:
            result = _classify(scores, truth, len(labels))
        except ValueError as error:
            raise ScoringError(f"{path} {name}: {error}") from error
        more = {}
        if folds is not None and truth.ndim == 1:
            more["folds"] = _add_folds(result, truth, folds)
        task.add((name,), result.scores, protocol, len(ids), ids, result.chance)
        if len(result.confusion):
            more |= _confusion(result, labels, truth)
        if more:
            details[name] = more
    if details:
        task.keep(details)


def read_labels(data_dir: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Candidate labels and the true ones of each clip.

    Args:
        data_dir: classification set.

    Returns:
        (labels (C,), ids (N,), truth: (N,) int, or (N, C) bool where clips have several
        labels).

    Raises:
        ScoringError: a clip's label is not among the candidates.
    """
    labels = read_lines(data_dir / "labels")
    number = {label: i for i, label in enumerate(labels)}
    several = (data_dir / "references").is_file()
    truth = (
        read_references(data_dir)
        if several
        else {i: [t] for i, t in read_map(data_dir / "text").items()}
    )
    ids = sample_ids(data_dir)
    check_ids(ids, truth, data_dir, data_dir / ("references" if several else "text"))
    unknown = {t for texts in truth.values() for t in texts if t not in number}
    if unknown:
        raise ScoringError(
            f"{data_dir}: expected labels of {data_dir / 'labels'} ({len(labels)}), "
            f"found {len(unknown)} others, e.g. {sorted(unknown)[0]!r}"
        )
    ids = sorted(ids)
    if all(len(truth[i]) == 1 for i in ids):
        return labels, ids, np.array([number[truth[i][0]] for i in ids])
    matrix = np.zeros((len(ids), len(labels)), dtype=bool)
    for row, i in enumerate(ids):
        matrix[row, [number[t] for t in truth[i]]] = True
    return labels, ids, matrix


def _classify(
    scores: np.ndarray, truth: np.ndarray, num_labels: int
) -> classification.ClassificationScores:
    if truth.ndim == 2:
        return classification.multi_label(scores, truth)
    if scores.ndim == 1:
        return classification.from_predictions(scores, truth, num_labels)
    return classification.single_label(scores, truth)


def _add_folds(
    result: classification.ClassificationScores, truth: np.ndarray, folds: np.ndarray
) -> dict[str, tuple[float, int]]:
    """Add the mean over folds to the result; accuracy and clips of each fold."""
    size = {f: int((folds == f).sum()) for f in np.unique(folds)}
    weight = np.array([1 / size[f] for f in folds])
    correct = result.predicted == truth
    result.scores["accuracy_mean_of_folds"] = mean_items(correct * weight, weight)
    result.chance["accuracy_mean_of_folds"] = result.chance["accuracy"]
    return classification.fold_accuracy(result.predicted, truth, folds)


def _confusion(
    result: classification.ClassificationScores, labels: list[str], truth: np.ndarray
) -> dict[str, Any]:
    support = np.bincount(truth, minlength=len(labels))
    accuracy = classification.per_class_accuracy(result.confusion, support)
    return {
        "labels": labels,
        "confusion": result.confusion.tolist(),
        "support": support.tolist(),
        "per_class_accuracy": [
            float(value) if clips else None
            for value, clips in zip(accuracy, support, strict=True)
        ],
    }


def _predicted_labels(
    path: Path, data_dir: Path, labels: list[str], ids: list[str], truth: np.ndarray
) -> np.ndarray:
    """(N,) int from `id label` lines; -1 where the text is no label."""
    if truth.ndim == 2:
        raise ScoringError(
            f"{path}: expected an .npz with a score for each label, since clips of "
            f"{data_dir} have several labels; found a text file"
        )
    found = read_map(path)
    check_ids(ids, found, data_dir, path)
    number = {normalise(v): i for i, v in enumerate(labels)}
    predicted = np.array([number.get(normalise(found[i]), -1) for i in ids])
    if (predicted < 0).any():
        logging.warning(
            "%s: %d of %d answers are no label (e.g. %r): they count as wrong",
            path,
            int((predicted < 0).sum()),
            len(ids),
            found[ids[int(np.argmax(predicted < 0))]],
        )
    return predicted


def _label_scores(
    path: Path, data_dir: Path, labels: list[str], ids: list[str], external: bool
) -> dict[str, np.ndarray | NotComputed]:
    """Scorer -> (N, C) in the order of ids and labels, or NotComputed."""
    known: list[tuple[str, ...]] = [("ids", "labels", name) for name in SCORERS]
    known += [("ids", "labels", "scores"), ("ids", "labels", "audio", "text")]
    arrays = load_arrays(path, known)
    found_ids, found_labels = strings(arrays["ids"]), strings(arrays["labels"])
    check_ids(ids, found_ids, data_dir, f"{path} ids")
    check_ids(labels, found_labels, data_dir / "labels", f"{path} labels")
    for what, names in (("ids", found_ids), ("labels", found_labels)):
        if len(set(names)) != len(names):
            raise ScoringError(f"{path}: expected each of {what} once, one repeats")
    row = {i: n for n, i in enumerate(found_ids)}
    column = {label: n for n, label in enumerate(found_labels)}
    rows, columns = [row[i] for i in ids], [column[label] for label in labels]
    if "audio" in arrays:
        audio = unit_length(arrays["audio"], "audio")
        arrays["similarity"] = audio @ unit_length(arrays["text"], "text").T
    if "scores" in arrays:
        arrays.setdefault("similarity", arrays["scores"])
    result: dict[str, np.ndarray | NotComputed] = {}
    for name in SCORERS:
        if name not in arrays:
            if not external:
                part = "language model" if "language" in name else "representation"
                result[name] = NotComputed(
                    f"array {name} in {path.name} (a system with its {part} part)"
                )
            continue
        scores = arrays[name]
        if scores.shape != (len(found_ids), len(found_labels)):
            raise ScoringError(
                f"{path} {name}: expected (clips, labels) "
                f"{(len(found_ids), len(found_labels))}, found {scores.shape}"
            )
        result[name] = scores[rows][:, columns]
    return result
