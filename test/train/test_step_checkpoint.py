"""Claims about going on in the middle of an epoch: the next batches, the same bits."""

import itertools
import logging
import shutil
import types
from unittest import mock

import pytest
import torch

from espnet2_slit.common.weights import WeightsError, read_checkpoint
from espnet2_slit.train.checkpoint import STEP_FILE
from espnet2_slit.train.step_checkpoint import ResumableEpoch

ALWAYS = ["--checkpoint_minutes", "1e-9"]  # after each step
STAGES = ("representation", "generative", "instruction")


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the trainer catches it."""


def main(command):
    from espnet2_slit.task import SLITTask

    SLITTask.main(cmd=[*command, "--resume", "true"])


def run_until(step, command):
    """Train, and be killed before this optimizer step of the whole training."""
    from espnet2_slit.model.espnet_model import SLITModel

    report, steps = SLITModel._report, itertools.count(1)

    def dying(self, losses, stats, batch_size):
        if self.training and next(steps) == step:
            raise Killed
        return report(self, losses, stats, batch_size)

    with mock.patch.object(SLITModel, "_report", dying), pytest.raises(Killed):
        main(command)


def plain(value):
    """Nested states as comparable values, without what the clock wrote."""
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if "time" not in str(k)}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


@pytest.fixture(scope="module")
def command(train_command, tiny_features):
    """A training with dropout, 6 batches of 2 an epoch, 2 epochs."""

    def make(stage, folder, *more):
        words = train_command(stage, folder, epochs=2)
        words[words.index("--batch_size") + 1] = "2"
        more = ["--qformer_conf", "dropout=0.1", *more]
        return [*words, "--shuffle_within_batch", "true", *map(str, more)]

    return make


@pytest.mark.parametrize(
    "stage, workers", [*((stage, 0) for stage in STAGES), ("instruction", 2)]
)
def test_a_run_killed_inside_an_epoch_ends_in_the_same_bits(
    stage, workers, command, tmp_path, caplog
):
    # samples without an instruction get one of several wordings, drawn while loading
    more = ["--num_workers", workers, "--scheduler", "warmupcosine"]
    more += ["--scheduler_conf", "warmup_steps=3"]
    whole, killed = (
        [
            word
            for word in command(stage, tmp_path / name, *more, *ALWAYS)
            if "/instruction,instruction,text" not in word
        ]
        for name in ("whole", "killed")
    )
    if stage == "instruction":
        whole, killed = (_without_empty_options(words) for words in (whole, killed))
    main(whole)
    assert not (tmp_path / "whole" / STEP_FILE).exists()
    run_until(11, killed)
    assert (tmp_path / "killed" / STEP_FILE).is_file()
    with caplog.at_level(logging.INFO):
        main(killed)
    assert "Resuming epoch 2 after step 4" in caplog.text
    assert not (tmp_path / "killed" / STEP_FILE).exists()
    one, two = (
        plain(read_checkpoint(tmp_path / name / "checkpoint.pth"))
        for name in ("whole", "killed")
    )
    assert one["model"] == two["model"]
    assert one["optimizers"] == two["optimizers"]
    assert one["schedulers"] == two["schedulers"]
    assert one["reporter"]["stats"] == two["reporter"]["stats"]


def _without_empty_options(words):
    """Options whose value was taken away lose their name, too."""
    return [
        word
        for word, following in zip(words, [*words[1:], "--"], strict=True)
        if not (word.startswith("--") and following.startswith("--"))
    ]


def test_a_run_killed_in_its_first_epoch_needs_no_whole_epoch(command, tmp_path):
    folders = [tmp_path / name for name in ("whole", "killed")]
    whole, killed = (command("generative", f, *ALWAYS) for f in folders)
    main(whole)
    run_until(3, killed)
    assert not (tmp_path / "killed" / "checkpoint.pth").exists()
    main(killed)
    one, two = (plain(read_checkpoint(f / "2epoch.pth")) for f in folders)
    assert one == two


def test_with_num_iters_per_epoch_the_next_samples_follow(
    command, tmp_path, monkeypatch
):
    """4 of 6 batches an "epoch": the second begins where the first has ended."""
    more = ["--num_iters_per_epoch", "4", "--shuffle_within_batch", "false"]
    from espnet2_slit.model.espnet_model import PromptedModel

    forward, seen = PromptedModel.forward, []

    def noting(self, *args, **batch):
        if self.training:
            seen.append(tuple(batch["utt_id"]))
        return forward(self, *args, **batch)

    monkeypatch.setattr(PromptedModel, "forward", noting)
    main(command("generative", tmp_path / "whole", *more, *ALWAYS))
    undisturbed, seen[:] = list(seen), []
    assert len(undisturbed) == 8 and len(set(undisturbed[:6])) == 6
    run_until(4, command("generative", tmp_path / "x", *more, *ALWAYS))
    assert seen == undisturbed[:4]  # the last one's step was not taken
    seen[:] = []
    main(command("generative", tmp_path / "x", *more, *ALWAYS))
    assert seen == undisturbed[3:]


def test_accumulated_gradients_are_not_cut(command, tmp_path):
    folders = [tmp_path / name for name in ("whole", "killed")]
    whole, killed = (
        command("generative", f, "--accum_grad", 2, "--use_amp", "true", *ALWAYS)
        for f in folders
    )
    main(whole)
    run_until(10, killed)
    states = read_checkpoint(tmp_path / "killed" / STEP_FILE)
    assert (states["epoch"], states["step"]) == (2, 2)
    main(killed)
    one, two = (plain(read_checkpoint(f / "2epoch.pth")) for f in folders)
    assert one == two


def test_other_batches_than_then_start_the_epoch_anew(command, tmp_path, caplog):
    killed = command("generative", tmp_path / "killed", *ALWAYS)
    run_until(10, killed)
    killed[killed.index("--batch_size") + 1] = "3"
    main(killed)
    assert "step.pth: is of other batches" in caplog.text
    assert not (tmp_path / "killed" / STEP_FILE).exists()


def test_a_broken_or_foreign_step_file_is_named(command, tmp_path):
    words = command("generative", tmp_path, *ALWAYS)
    run_until(10, words)
    file = tmp_path / STEP_FILE
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"step.pth: .* truncated"):
        main(words)
    shutil.copy(tmp_path / "1epoch.pth", file)
    with pytest.raises(WeightsError, match="step.pth: .*found no model"):
        main(words)
    file.write_bytes(whole)
    states = read_checkpoint(file)
    del states["model"]["qformer.query_tokens"]
    torch.save(states, file)
    with pytest.raises(WeightsError, match=r"step.pth: .*qformer.query_tokens"):
        main(words)


def test_without_resume_nothing_is_taken_up(command, tmp_path):
    from espnet2_slit.task import SLITTask

    words = command("generative", tmp_path / "killed", *ALWAYS)
    main(command("generative", tmp_path / "whole"))
    run_until(4, words)
    SLITTask.main(cmd=[*words, "--resume", "false"])
    one, two = (
        plain(read_checkpoint(tmp_path / name / "2epoch.pth"))
        for name in ("whole", "killed")
    )
    assert one == two


def test_two_ranks_go_on_in_the_same_bits(two_ranks):
    one, two = (
        plain(read_checkpoint(two_ranks / "steps" / name / "checkpoint.pth"))
        for name in ("whole", "killed")
    )
    assert one["model"] == two["model"] and one["optimizers"] == two["optimizers"]
    assert one["reporter"]["stats"] == two["reporter"]["stats"]
    assert (two_ranks / "steps" / "resumed").read_text() == "epoch 2, step 1"


def test_minutes_decide_when_to_save(tmp_path, monkeypatch):
    """One batch takes 3 minutes here; every 5 minutes is after every second one."""
    from espnet2.train.reporter import Reporter

    clock = iter(range(0, 10_000, 180))
    from espnet2_slit.train import step_checkpoint

    fake = types.SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(step_checkpoint, "time", fake)
    saved = []
    with Reporter(1).observe("train") as reporter:
        epoch = ResumableEpoch(
            [([], {})] * 6, tmp_path, 5, False, (), reporter, 1, "cpu", False
        )
        monkeypatch.setattr(epoch, "_save", lambda: saved.append(reporter.count))
        for _ in epoch:
            reporter.register({"loss": 1.0})
            reporter.next()
    assert saved == [2, 4, 6]
