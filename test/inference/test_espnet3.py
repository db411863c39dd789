"""Tests of ESPnet3's `infer` and `measure`: the measures of `slit score`, no others.

The whole system, from data to a packed model, is in `test_espnet_neighbours.py`.
"""

import json
import shutil
from pathlib import Path

import pytest

from espnet2_slit.bin import slit_score
from espnet2_slit.common import compat
from espnet2_slit.scoring.metrics.score_table import read_scores

pytestmark = pytest.mark.skipif(
    not (compat.is_installed("espnet3") and compat.is_installed("lightning")),
    reason="ESPnet3 needs espnet[train] 202609 or newer",
)
SYSTEM = Path(__file__).resolve().parents[2] / "egs3/slit/esp2_slit"
METRICS = "espnet2_slit.inference.espnet3_metrics"
# Name in metrics.json -> set, and task and place in the table of `slit score`.
PLACES = {
    f"{METRICS}.ExactMatch": ("test_qa", "question_answering", "free/all_rows"),
    f"{METRICS}.Retrieval": ("test_caption", "retrieval", "{}/contrastive"),
    "Retrieval, reranked": ("test_caption", "retrieval", "{}/reranked"),
    "Labels, similarity": ("test_class", "classification", "similarity"),
    "Labels, language model": (
        "test_class", "classification", "language_model_mean",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(sets, tmp_path_factory):
    """The sets, whose labels are among those to choose from."""
    target = tmp_path_factory.mktemp("data") / "dump"
    shutil.copytree(sets / "dump", target)
    labels = (target / "test_class" / "labels").read_text().splitlines()
    lines = [f"clip{i} {labels[i % len(labels)]}\n" for i in range(7)]
    (target / "test_class" / "text").write_text("".join(lines))
    return target


@pytest.fixture(scope="module")
def decoded(folder, data, tmp_path_factory):
    """An inference directory of the shipped configurations, with tiny options."""
    from omegaconf import OmegaConf

    from espnet2_slit.inference.espnet3 import SLITSystem

    target = tmp_path_factory.mktemp("inference")
    config = OmegaConf.load(SYSTEM / "conf" / "inference.yaml")
    config.exp_dir, config.inference_dir = str(folder), str(target)
    config.inference = {"caption": {"max_new_tokens": 6}, "rerank": 3,
                        "attention_clips": 0}  # fmt: skip
    for test in config.dataset.test:
        test.data_src_args.path = str(data / test.name)
    SLITSystem(inference_config=config).infer()
    return target


def measure(folder):
    from omegaconf import OmegaConf

    from espnet2_slit.inference.espnet3 import SLITSystem

    config = OmegaConf.load(SYSTEM / "conf" / "metrics.yaml")
    config.inference_dir = str(folder)
    return SLITSystem(metrics_config=config).measure()


def test_every_metric_is_that_of_slit_score(decoded, data, tmp_path):
    found = measure(decoded)
    assert json.loads((decoded / "metrics.json").read_text()) == found
    code = slit_score.main(
        ["--decode_dir", str(decoded), "--data_dir", str(data),
         "--output_dir", str(tmp_path / "scores"), "--resamples", "10",
         "--report", "false"]
    )  # fmt: skip
    assert code == 0
    table, _ = read_scores(tmp_path / "scores" / "scores.json")
    rows = {(r.set, r.task, r.where, r.metric): r.value for r in table.rows}
    captions = found.pop(f"{METRICS}.Captioning")["test_caption"]
    for name, value in captions.items():
        assert value == pytest.approx(rows["test_caption", "caption", "", name])
    assert found.keys() == PLACES.keys()
    for name, (set_name, task, place) in PLACES.items():
        for metric, value in found[name][set_name].items():
            where = place
            if task == "retrieval":
                direction, metric = metric[:13], metric[14:]
                where = place.format(direction)
            if task == "question_answering":
                metric = "exact_match"
            share = rows[set_name, task, where, metric]
            assert value == pytest.approx(100 * share), (name, metric)


def test_an_interrupted_inference_is_not_measured_in_part(decoded, tmp_path):
    """Texts of a set that no clip owns: a clip's line is missing."""
    copy = tmp_path / "inference"
    shutil.copytree(decoded, copy)
    for path in (copy / "test_caption").glob("*.scp"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="texts of the set"):
        measure(copy)
