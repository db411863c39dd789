"""Claims about the learning rate: up in a line, down along half a cosine."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from espnet2_slit.common.weights import read_checkpoint
from espnet2_slit.task import SLITTask
from espnet2_slit.train.scheduler import WarmupCosine
from espnet2_slit.train.trainer import SLITTrainerOptions, planned, training_steps


def rates(steps, **conf):
    """The rate of each step of a training."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=2.0)
    scheduler = WarmupCosine(optimizer, **conf)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_rate_rises_in_a_line_and_falls_to_the_final_ratio():
    found = rates(111, warmup_steps=10, final_ratio=0.1, total_steps=110)
    assert found[:3] == pytest.approx([2 / 11, 4 / 11, 6 / 11])
    assert max(found) == found[10] == pytest.approx(2.0)
    assert found[60] == pytest.approx(2 * (0.1 + 0.9 / 2))  # half-way down
    assert found[110] == pytest.approx(0.2)
    assert found[10:] == sorted(found[10:], reverse=True)


def test_short_run_still_reaches_the_highest_rate():
    found = rates(8, warmup_steps=1000, final_ratio=0.0, total_steps=8)
    assert found[4] == pytest.approx(2.0) and found[7] < 1.0


def test_without_a_total_the_rate_stays_up():
    assert rates(50, warmup_steps=5)[-1] == 2.0


def test_resumed_run_may_be_longer_than_the_saved_one():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    saved = WarmupCosine(optimizer, warmup_steps=0, total_steps=10).state_dict()
    resumed = WarmupCosine(optimizer, warmup_steps=0, total_steps=100)
    resumed.load_state_dict(saved)
    assert resumed.total_steps == 100


@pytest.mark.parametrize(
    "conf", [{"warmup_steps": -1}, {"final_ratio": 1.5}, {"total_steps": -3}]
)
def test_impossible_settings_are_named(conf):
    with pytest.raises(ValueError, match="expected warmup_steps >= 0"):
        rates(1, **conf)


@pytest.mark.parametrize("accum_grad", ["1", "2"])  # of 3 batches an epoch
def test_last_step_of_a_training_ends_at_the_final_rate(
    tmp_path, tiny_features, train_command, accum_grad
):
    more = ["--accum_grad", accum_grad, "--scheduler", "warmupcosine"]
    more += ["--scheduler_conf", "{warmup_steps: 1, final_ratio: 0.1}"]
    SLITTask.main(cmd=train_command("generative", tmp_path, *more, epochs=4))
    states = read_checkpoint(tmp_path / "checkpoint.pth")
    optimizer = states["optimizers"][0]
    steps = {int(state["step"]) for state in optimizer["state"].values()}
    assert steps == {{"1": 12, "2": 4}[accum_grad]}  # a third batch alone is no step
    for group in optimizer["param_groups"]:
        assert group["lr"] == pytest.approx(0.1 * group["initial_lr"])


def test_number_of_batches_must_be_known_and_enough_for_a_step():
    options = SimpleNamespace(max_epoch=3, accum_grad=6)
    with pytest.raises(ValueError, match="scheduler_conf.total_steps"):
        training_steps(object(), options)
    batches = SimpleNamespace(num_iters_per_epoch=5)
    with pytest.raises(ValueError, match="accum_grad: expected at most 5.*found 6"):
        training_steps(batches, options)


@pytest.mark.parametrize(
    "target, most, epochs",
    [(0, 7, 7), (100, 50, 10), (104, 50, 10), (106, 50, 11), (100, 4, 4), (3, 50, 1)],
)
def test_target_steps_decide_the_number_of_epochs(target, most, epochs):
    fields = {field.name: None for field in dataclasses.fields(SLITTrainerOptions)}
    fields |= dict(target_steps=target, max_epoch=most, accum_grad=2)
    options = SLITTrainerOptions(**fields)
    batches = SimpleNamespace(num_iters_per_epoch=21)  # 10 steps of 2, one is left over
    assert planned(batches, options).max_epoch == epochs


def test_target_steps_end_a_training_and_its_schedule(
    tmp_path, tiny_features, train_command
):
    more = ["--target_steps", "7", "--scheduler", "warmupcosine"]
    more += ["--scheduler_conf", "{warmup_steps: 1, final_ratio: 0.1}"]
    SLITTask.main(cmd=train_command("generative", tmp_path, *more, epochs=9))
    assert (tmp_path / "2epoch.pth").is_file()  # 3 batches an epoch
    assert not (tmp_path / "3epoch.pth").exists()
    (optimizer,) = read_checkpoint(tmp_path / "checkpoint.pth")["optimizers"]
    group = optimizer["param_groups"][0]
    assert group["lr"] == pytest.approx(0.1 * group["initial_lr"])
