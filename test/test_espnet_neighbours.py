"""ESPnet's neighbours with SLIT as it is: ESPnet3, ESPnet-EZ, TensorBoard, W&B.

Each test needs the ESPnet, or the package, that has it.
"""

import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml

from espnet2_slit.common import compat
from espnet2_slit.common.weights import read_weights

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "egs2/slit/slit1/conf/espnet3/training_representation_mini.yaml"
SYSTEM = ROOT / "egs3/slit/esp2_slit"
TINY = {"width": 16, "layers": 2, "heads": 2, "feed_forward": 32, "num_queries": 3,
        "max_text_length": 64, "dropout": 0.0}  # fmt: skip
# ESPnet-EZ imports every task of ESPnet, some with packages that others do not need.
try:
    import espnetez  # noqa: F401

    NO_EZ = ""
except ImportError as error:
    NO_EZ = f"ESPnet-EZ cannot be imported here ({error})"


needs_espnet3 = pytest.mark.skipif(
    not (compat.is_installed("espnet3") and compat.is_installed("lightning")),
    reason="ESPnet3 needs espnet[train] 202609 or newer",
)


@needs_espnet3
def test_espnet3_trains_the_shipped_configuration(
    tiny_features, tiny_parts, tmp_path, monkeypatch
):
    from espnet3.systems.base.system import BaseSystem
    from espnet3.systems.launch import launch

    from espnet2_slit.task import SLITTask

    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    for name in ("train", "valid"):  # the tiny corpus has train and valid
        config["dataset"][name][0]["data_src_args"]["path"] = "${features_dir}/" + name
        batches = config["dataloader"][name]["iter_factory"]["batches"]
        batches["shape_files"] = ["${features_dir}/" + name + "/feats_shape"]
        batches["batch_size"] = 4
        config["dataloader"][name]["iter_factory"]["num_workers"] = 0
    config.update(
        exp_dir=str(tmp_path / "exp"),
        features_dir=str(tiny_features),
        qformer_tokenizer=str(tiny_parts.tokenizer),
    )
    config["model"]["features"] = "${features_dir}/train/feats.json"
    config["model"]["qformer_conf"] = TINY
    config["model"]["model_conf"]["joint_width"] = 8
    config["trainer"].update(max_epochs=2, log_every_n_steps=1)
    path = tmp_path / "training.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    launch(
        BaseSystem,
        conf_package="egs3.TEMPLATE.esp2_asr",
        argv=["--stages", "train", "--training_config", str(path)],
    )

    (averaged,) = (tmp_path / "exp").glob("valid.loss.ave_*best.pth")
    weights = read_weights(averaged)
    written = yaml.safe_load((tmp_path / "exp" / "config.yaml").read_text("utf-8"))
    assert written["model"] == "representation"
    args = Namespace(**written)
    torch.manual_seed(0)
    untrained = SLITTask.build_model(args).state_dict()
    # What ESPnet2 would save, and trained: stage 2 can start from it (--init_param).
    assert weights.keys() == untrained.keys()
    moved = [n for n, w in weights.items() if not torch.equal(w, untrained[n])]
    assert len(moved) > len(weights) / 2
    assert all(torch.isfinite(w.float()).all() for w in weights.values())


def tiny_training(stage, parts, folder):
    """A shipped training configuration of the ESPnet3 system on the tiny corpus."""
    file = SYSTEM / "conf" / f"training_{stage}.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    config["create_dataset"] = {
        "sets": ["train", "valid"], "data": "data", "raw": "dump/raw",
    }  # fmt: skip
    config["encoder"] = {"name": "beats", "path": str(parts.beats)}
    config.update(train_set="train", valid_set="valid")
    config["qformer_tokenizer"] = str(parts.tokenizer)
    if "language_model" in config:
        config["language_model"] = str(parts.t5)
    config["model"]["qformer_conf"] = TINY
    for name in ("train", "valid"):
        factory = config["dataloader"][name]["iter_factory"]
        factory["num_workers"] = 0
        factory["batches"]["batch_size"] = 4
    config["trainer"].update(max_epochs=2, log_every_n_steps=1)
    path = folder / f"training_{stage}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@needs_espnet3
def test_the_espnet3_system_from_data_to_a_packed_model(
    tiny_corpus, tiny_parts, tmp_path, monkeypatch
):
    """Three trainings, one after the other; then decoded, scored, packed, a demo."""
    import json
    import shutil

    from espnet3.systems.launch import launch

    from espnet2_slit import SLIT
    from espnet2_slit.inference.espnet3 import SLITSystem

    here = tmp_path / "egs3" / "slit" / "esp2_slit"
    shutil.copytree(tiny_corpus / "data", here / "data")
    monkeypatch.chdir(here)

    def run(*words):
        argv = [str(word) for word in words]
        launch(SLITSystem, conf_package="egs3.TEMPLATE.esp2_asr", argv=argv)

    for stage in ("representation", "generative", "instruction"):
        config = tiny_training(stage, tiny_parts, here)
        before = ["create_dataset", "encode"] if stage == "representation" else []
        run("--stages", *before, "train", "--training_config", config)
    for name in ("inference", "metrics", "publication", "demo"):
        shutil.copy(SYSTEM / "conf" / f"{name}.yaml", here)
    config = yaml.safe_load((here / "inference.yaml").read_text())
    config["dataset"]["test"] = [{"name": "test_qa", "data_src_args": {
        "path": "dump/mini_beats/valid"}}]  # fmt: skip
    (here / "inference.yaml").write_text(yaml.safe_dump(config))
    run("--stages", "infer", "--inference_config", "inference.yaml")
    run("--stages", "measure", "--metrics_config", "metrics.yaml")
    run("--stages", "pack_model", "--publication_config", "publication.yaml")
    for _ in range(2):  # each stage can be run again
        run("--stages", "pack_demo", "--demo_config", "demo.yaml")

    folder = here / "exp" / "instruction"
    scores = json.loads((folder / "inference" / "metrics.json").read_text())
    (found,) = scores.values()
    assert 0 <= found["test_qa"]["accuracy"] <= 100
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert "generative" in config["initialized_from"][0]
    system = SLIT.from_pretrained(folder)
    assert system.representation is not None
    clip = str(next((tiny_corpus / "wav").glob("valid-*.wav")))
    options = {"max_new_tokens": 4}
    moved = {"audio_encoder": str(tiny_parts.beats),
             "language_model": str(tiny_parts.t5)}  # fmt: skip
    demo = here / "demo" / "model"
    for other, given in ((folder / "slit_mini.zip", moved), (demo, {})):
        opened = SLIT.from_pretrained(other, cache_dir=tmp_path / "cache", **given)
        assert opened.caption(clip, options=options) == system.caption(
            clip, options=options
        )
    # the demo needs nothing from outside its folder
    assert Path(opened.encoder.path).is_relative_to(demo)
    assert (here / "demo" / "app.py").is_file()


@pytest.mark.skipif(bool(NO_EZ), reason=NO_EZ)
def test_espnet_ez_trains_the_registered_task(tiny_features, tiny_parts, tmp_path):
    import espnetez

    from espnet2_slit.task import SLITTask

    espnetez.task.TASK_CLASSES["slit"] = SLITTask
    config = SLITTask.get_default_config()
    config.update(
        model="representation",
        model_conf={"joint_width": 8},
        qformer_conf=TINY,
        qformer_tokenizer=str(tiny_parts.tokenizer),
        features=str(tiny_features / "train" / "feats.json"),
        batch_type="unsorted",
        batch_size=4,
        num_workers=0,
        max_epoch=1,
        use_tensorboard=False,
        use_matplotlib=False,
        ngpu=0,
    )
    trainer = espnetez.Trainer(
        task="slit",
        train_config=config,
        output_dir=str(tmp_path / "exp"),
        stats_dir=str(tmp_path / "stats"),
        train_dump_dir=str(tiny_features / "train"),
        valid_dump_dir=str(tiny_features / "valid"),
        data_info={
            "feats": ["feats.scp", "kaldi_ark"],
            "text": ["text", "text"],
            "clip": ["utt2audio", "text"],
        },
        required=["output_dir"],
    )
    trainer.collect_stats()
    trainer.train()
    assert read_weights(tmp_path / "exp" / "valid.loss.best.pth")
    assert "representation" in (tmp_path / "exp" / "config.yaml").read_text("utf-8")


def test_curves_are_written_for_tensorboard(tiny_features, train_command, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from espnet2_slit.task import SLITTask

    folder = tmp_path / "exp"
    SLITTask.main(
        cmd=train_command("representation", folder, "--use_tensorboard", "true")
    )
    events = EventAccumulator(str(folder / "tensorboard" / "train"))
    events.Reload()
    assert {"loss", "loss_contrastive", "temperature"} <= set(events.Tags()["scalars"])


def test_what_the_queries_look_at_is_drawn_at_validation(
    tiny_features, train_command, tmp_path
):
    pytest.importorskip("matplotlib")
    from espnet2_slit.task import SLITTask

    options = ["--num_att_plot", "2", "--use_matplotlib", "true"]
    SLITTask.main(cmd=train_command("instruction", tmp_path / "exp", *options))
    pictures = sorted(tmp_path.glob("exp/att_ws/*/queries.1ep.png"))
    assert len({picture.parent.name for picture in pictures}) == 2
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)


def test_curves_are_logged_to_wandb(
    tiny_features, train_command, tmp_path, monkeypatch
):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    from espnet2_slit.task import SLITTask

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = ["--use_wandb", "true", "--wandb_project", "slit"]
    SLITTask.main(cmd=train_command("representation", tmp_path / "exp", *options))
    wandb.finish()  # what ESPnet leaves to the end of the process
    (written,) = tmp_path.rglob("offline-run-*/run-*.wandb")
    names, end = (b"loss_contrastive", b"temperature"), time.monotonic() + 60
    while not all(name in written.read_bytes() for name in names):
        assert time.monotonic() < end, "its service has not written the values"
        time.sleep(0.5)
