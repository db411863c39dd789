"""Full-size configs: accepted by the task, complete, and of the sizes they claim."""

import argparse
import inspect
import sys
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "egs2/slit/slit1/conf/full").glob("*.yaml"))
sys.path.insert(0, str(ROOT / "tools"))

import dry_run  # noqa: E402

from espnet2_slit.common.padded import Padded  # noqa: E402


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_task_and_constructors_know_every_key(file):
    from espnet2_slit.data.preprocessor import SLITPreprocessor
    from espnet2_slit.model.load_language_model import load_language_model
    from espnet2_slit.model.qformer import QFormer
    from espnet2_slit.task import SLITTask, model_choices

    parser = SLITTask.get_parser()
    arguments = parser.parse_args(["--config", str(file), "--output_dir", "exp"])
    assert isinstance(arguments, argparse.Namespace)
    conf = yaml.safe_load(file.read_text())
    owners = {
        "qformer_conf": QFormer,
        "preprocessor_conf": SLITPreprocessor,
        "language_model_conf": load_language_model,
        "model_conf": model_choices.get_class(conf["model"]),
    }
    for key, owner in owners.items():
        unknown = set(conf.get(key, {})) - set(inspect.signature(owner).parameters)
        assert not unknown, f"{key}: {unknown}"
    assert file.stem.startswith(f"train_{conf['model']}_")
    assert ("language_model" in conf) == (conf["model"] != "representation")
    # the trainer counts the steps: no configuration has to be told how many there are
    assert conf["scheduler"] == "warmupcosine"
    assert set(conf["scheduler_conf"]) == {"warmup_steps", "final_ratio"}


def test_every_size_has_both_stages_with_one_q_former():
    confs = {file.stem: yaml.safe_load(file.read_text()) for file in CONFIGS}
    sizes = {"flan_t5_base", "flan_t5_large", "flan_t5_xl", "7b"}
    stages = ("generative", "instruction")
    expected = {f"train_{stage}_{size}" for stage in stages for size in sizes}
    others = {"train_representation_base", "train_instruction_7b_lora"}
    assert set(confs) == expected | others
    assert len({str(conf["qformer_conf"]) for conf in confs.values()}) == 1


@pytest.mark.parametrize(
    "name, millions",
    [
        ("google/flan-t5-base", 247.6),
        ("google/flan-t5-large", 783.2),
        ("google/flan-t5-xl", 2849.8),
        ("Qwen/Qwen2.5-7B-Instruct", 7615.6),
        ("lmsys/vicuna-7b-v1.5", 6738.4),
        ("facebook/opt-6.7b", 6658.5),
    ],
)
def test_architectures_have_the_published_number_of_parameters(name, millions):
    plan = dry_run.Plan("generative", {"language_model_conf": {}}, name)
    with torch.device("meta"):
        lm = plan.lm()
    assert dry_run.parameters(lm.frozen.module) / 1e6 == pytest.approx(
        millions, abs=0.1
    )
    assert {p.device.type for p in lm.frozen.module.parameters()} == {"meta"}


SMALL = {"width": 24, "layers": 1, "heads": 2, "feed_forward": 8}


@pytest.mark.parametrize(
    "conf, vectors",
    [
        ({"qformer_conf": SMALL}, 32),
        ({"qformer_conf": SMALL | {"num_queries": 8, "query_window_s": 5.12}}, 16),
        ({"connector": "linear", "connector_conf": {"stack": 8}}, 62),
        ({"connector": "mlp", "connector_conf": {"stack": 10, "hidden": 9}}, 50),
    ],
)
def test_vectors_of_ten_seconds_are_those_of_the_model(conf, vectors):
    plan = dry_run.Plan("generative", conf, "")
    assert dry_run.prefix_vectors(plan, 10.0) == vectors
    language_model = torch.nn.Module()
    language_model.width = 16
    model = plan.model(language_model)
    frames = torch.randn(2, dry_run.frames_of(10.0), model.encoder_width)
    assert model.prefix(Padded(frames)).values.shape == (2, vectors, 16)


def test_kept_bytes_counts_activations_once_and_no_weights():
    layer = torch.nn.Linear(8, 8)
    plan = dry_run.Plan("generative", {}, "")
    x = torch.randn(3, 8, requires_grad=True)

    def square():
        y = layer(x)
        return y * y  # y is kept twice, x once

    assert dry_run.kept_bytes(plan, square, [layer]) == 2 * x.numel() * 4


def test_missing_config_lists_those_there_are():
    with pytest.raises(SystemExit, match="train_representation_base.yaml"):
        dry_run._find("train_nothing.yaml")
