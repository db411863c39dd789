"""Training a small BEATs on the labels of a data directory."""

import argparse
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

LOCAL = Path(__file__).parents[2] / "egs2" / "slit" / "slit1" / "local"
RATE = 22050  # not the encoder's: reading resamples


@pytest.fixture(scope="module")
def trainer():
    if str(LOCAL) not in sys.path:
        sys.path.insert(0, str(LOCAL))
    torch.set_num_threads(1)
    return importlib.import_module("train_encoder")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """12 clips: hum (200 Hz) or hiss (noise), and one sample that is a caption."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    time_s = np.arange(RATE) / RATE
    rows = {"wav.scp": [], "text": [], "utt2task": [], "utt2audio": []}
    for number in range(12):
        label = ("hum", "hiss")[number % 2]
        wave = np.sin(2 * np.pi * 200 * time_s) if number % 2 == 0 else np.zeros(RATE)
        wave = wave + (0.01 if number % 2 == 0 else 0.5) * rng.standard_normal(RATE)
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.1 * wave, RATE)
        rows["wav.scp"].append(f"s{number:02d} {path}")
        rows["text"].append(f"s{number:02d} {label}")
        rows["utt2task"].append(f"s{number:02d} classification")
        rows["utt2audio"].append(f"s{number:02d} clip{number:02d}")
    rows["wav.scp"].append(f"s99 {path}")
    rows["text"].append("s99 A noise")
    rows["utt2task"].append("s99 caption")
    rows["utt2audio"].append("s99 clip11")
    for name, lines in rows.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def test_only_labels_are_read_and_audio_is_resampled(trainer, data):
    frames, targets, labels = trainer.load_clips([data])
    assert labels == ["hiss", "hum"] and len(frames) == 12
    assert targets.tolist() == [1, 0] * 6
    assert all(len(clip) == 98 for clip in frames)  # 1 s at 16 kHz, 25 ms per 10 ms


def test_a_label_that_training_lacks_is_an_error(trainer, data):
    with pytest.raises(ValueError, match="hum.*not among the 1 of training"):
        trainer.load_clips([data], ["hiss"])


def test_a_directory_without_labels_is_an_error(trainer, data, tmp_path):
    for name in ("wav.scp", "text"):
        (tmp_path / name).write_text((data / name).read_text())
    keys = [line.split()[0] for line in (data / "wav.scp").read_text().splitlines()]
    (tmp_path / "utt2task").write_text("".join(f"{key} caption\n" for key in keys))
    with pytest.raises(ValueError, match="no sample with a label"):
        trainer.load_clips([tmp_path])


def test_mixture_has_the_power_of_both(trainer):
    scale = 2 * 6.55582
    one, other = torch.full((4, 128), 0.3), torch.full((4, 128), 0.1)
    mixed = trainer.mix(one, other, 0.5)
    power = 0.25 * np.exp(0.3 * scale) + 0.25 * np.exp(0.1 * scale)
    assert mixed[0, 0].item() == pytest.approx(np.log(power) / scale, abs=1e-5)


def test_variation_leaves_its_input_alone(trainer):
    frames = torch.randn(96, 128)
    before = frames.clone()
    varied = trainer.vary(frames, np.random.default_rng(0))
    assert torch.equal(frames, before) and not torch.equal(varied, before)


def test_cut_goes_round(trainer):
    frames = torch.arange(5.0)[:, None].expand(5, 128)
    assert trainer.cut(frames, 7, 3)[:, 0].tolist() == [3, 4, 0, 1, 2, 3, 4]


def test_training_learns_labels_and_goes_on_from_a_checkpoint(
    trainer, data, tmp_path, monkeypatch
):
    output = tmp_path / "encoder.pt"
    arguments = ["train_encoder.py", "--data-dir", str(data), "--valid-dir", str(data)]
    arguments += ["--epochs", "15", "--batch-size", "6", "--crop-s", "0.96"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--output", str(output)])
    trainer.main()
    made = torch.load(output, weights_only=True)
    assert made["about"]["valid_accuracy"] >= 0.9
    before = output.stat().st_mtime_ns
    trainer.main()  # the same settings: nothing to do
    assert output.stat().st_mtime_ns == before
    again = tmp_path / "again.pt"
    more = [*arguments, "--init", str(output), "--output", str(again)]
    more[more.index("15")] = "1"
    monkeypatch.setattr(sys, "argv", [*more, "--learning-rate", "1e-6"])
    trainer.main()
    after = torch.load(again, weights_only=True)["model"]
    for name, value in made["model"].items():
        torch.testing.assert_close(after[name], value, atol=1e-4, rtol=0)


def test_training_repeats_and_measuring_changes_nothing(trainer, data):
    options = argparse.Namespace(
        seed=1,
        epochs=1,
        batch_size=6,
        learning_rate=1e-3,
        crop_s=0.96,
        precision="auto",
    )
    frames, targets, labels = trainer.load_clips([data])
    build_encoder = importlib.import_module("mini_encoder").build_encoder
    one, two = (build_encoder(trainer.CONFIG, 1) for _ in range(2))
    tagger = trainer.train(one, frames, targets, len(labels), options)
    weights = {name: value.clone() for name, value in one.state_dict().items()}
    trainer.accuracy(one, tagger, frames, targets)
    assert all(
        torch.equal(value, weights[name]) for name, value in one.state_dict().items()
    )
    trainer.train(two, frames, targets, len(labels), options)
    assert all(
        torch.equal(value, weights[name]) for name, value in two.state_dict().items()
    )


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
def test_any_number_of_steps_trains(steps, trainer):
    fit = importlib.import_module("mini.training").fit
    layer = torch.nn.Linear(2, 1)
    before = layer.weight.detach().clone()
    batches = iter(torch.randn(steps, 4, 2))
    loss_of = lambda batch: layer(batch).square().mean()  # noqa: E731
    fit("layer", [layer], batches, steps, loss_of, "float32", 0.1, 100, lr=0.1)
    assert next(batches, None) is None and not layer.training
    assert steps == 1 or not torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    "made_in, asked, alike",
    [
        ({"precision": "float32"}, "auto", True),
        ({"precision": "bfloat16"}, "auto", True),
        ({"precision": "float32"}, "bfloat16", False),
        ({}, "bfloat16", True),  # made before there was a choice
        ({}, "float32", False),
    ],
)
def test_what_another_machine_made_is_made_again_only_if_asked_for(
    trainer, made_in, asked, alike
):
    made_alike = importlib.import_module("mini.training").made_alike
    settings = {"seed": 1}
    assert made_alike({**settings, **made_in}, settings, asked) == alike
    assert not made_alike({"seed": 2, **made_in}, settings, asked)
