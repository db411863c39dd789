"""From a corpus with published folds to the mean accuracy over them, by commands."""

import numpy as np
import pytest

from espnet2_slit.bin import slit_score
from espnet2_slit.data.corpora import ESC50, Limits, UrbanSound8K, build_sets
from espnet2_slit.data.kaldi_dir import read_map
from espnet2_slit.scoring.metrics.score_table import read_scores

# 40 ms in UrbanSound8K's tenth fold are left out: its folds differ in size.
CORPORA = {"esc50": (ESC50, 5), "urbansound8k": (UrbanSound8K, 10)}
QUICK = ["--report", "false", "--resamples", "50"]


def answers(folder, path):
    """Write `id label` lines, about half of them right; {id: right}."""
    truth = read_map(folder / "text")
    labels = (folder / "labels").read_text().splitlines()
    right, lines = {}, []
    for key, label in truth.items():
        right[key] = hash_of(key) % 2 == 0
        other = labels[(labels.index(label) + 1) % len(labels)]
        lines.append(f"{key} {label if right[key] else other}\n")
    path.write_text("".join(lines))
    return right


def hash_of(text):
    return sum(map(ord, text))


def score(data, name, path, output):
    """slit_score on answers; {key: row}."""
    command = [
        "--predictions",
        f"{name}:classification={path}",
        "--data_dir",
        str(data),
    ]
    assert slit_score.main([*command, "--output_dir", str(output), *QUICK]) == 0
    return rows(output)


def rows(folder):
    return {row.key: row for row in read_scores(folder / "scores.json")[0].rows}


@pytest.mark.parametrize("name", CORPORA)
def test_zero_shot_accuracy_is_also_a_mean_over_published_folds(tree, tmp_path, name):
    reader, folds = CORPORA[name]
    build_sets(reader(tree(name)), tmp_path, ["all"], limits=Limits(jobs=1))
    folder = tmp_path / f"{name}_all"
    fold_of = read_map(folder / "utt2fold")
    assert set(fold_of.values()) == {str(fold) for fold in range(1, folds + 1)}
    right = answers(folder, tmp_path / "answers")
    found = score(tmp_path, folder.name, tmp_path / "answers", tmp_path / "scores")
    by_fold = {}
    for key, value in right.items():
        by_fold.setdefault(fold_of[key], []).append(value)
    means = [np.mean(values) for values in by_fold.values()]
    key = f"{name}_all/classification/answer"
    assert found[f"{key}/accuracy_mean_of_folds"].value == pytest.approx(np.mean(means))
    pooled = np.mean(list(right.values()))
    assert found[f"{key}/accuracy"].value == pytest.approx(pooled)
    if name == "urbansound8k":
        assert abs(pooled - np.mean(means)) > 1e-3


@pytest.mark.parametrize("name", CORPORA)
def test_systems_of_held_out_folds_are_averaged(tree, tmp_path, name):
    reader, folds = CORPORA[name]
    scored, accuracies, clips = [], [], 0
    for fold in range(1, folds + 1):
        data = tmp_path / f"data_fold{fold}"
        corpus = reader(tree(name), test_fold=fold)
        build_sets(corpus, data, ["test"], limits=Limits(jobs=1))
        right = answers(data / f"{name}_test", data / "answers")
        scored.append(tmp_path / f"scores_fold{fold}")
        score(data, f"{name}_test", data / "answers", scored[-1])
        accuracies.append(np.mean(list(right.values())))
        clips += len(right)
    command = ["--folds", *map(str, scored), "--output_dir", str(tmp_path / "mean")]
    assert slit_score.main([*command, *QUICK]) == 0
    key = f"{name}_test@mean_of_{folds}_folds/classification/answer/accuracy"
    mean = rows(tmp_path / "mean")[key]
    assert mean.value == pytest.approx(np.mean(accuracies)) and mean.n == clips
    text = (tmp_path / "mean" / "RESULTS.md").read_text()
    assert f"{name}_test@mean_of_{folds}_folds" in text
