"""Two ranks through ESPnet's launcher, Slurm or ssh: they train, or end together."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from launchers import StandIns

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MINUTE_S = 60
START_S = 500  # two interpreters and their imports on a crowded machine
SLURM = ("--cmd", "slurm.pl", "--num_nodes", "2")
SSH = ("--host", "localhost,localhost")

pytestmark = pytest.mark.slow


@pytest.fixture
def launch(tmp_path, tiny_features):
    """Run a training on two ranks; (exit code, log, time it ended)."""
    stand_ins = StandIns(tmp_path / "bin")
    (tmp_path / "path.sh").touch()

    def run(program, options, how=SLURM, **environment):
        log = tmp_path / "exp" / "train.log"
        words = [sys.executable, "-m", "espnet2.bin.launch", *how, "--ngpu", "0"]
        words += ["--init_file_prefix", str(tmp_path / "exp" / ".dist_")]
        words += ["--envfile", str(tmp_path / "path.sh")]
        words += ["--log", str(log), "--", sys.executable, *program, *options]
        environment |= {"PATH": stand_ins.path, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            words,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        ended = time.time()
        said = log.read_text(errors="replace") if log.is_file() else ""
        return done.returncode, said + done.stderr, ended

    return run


def test_two_ranks_train_through_the_launcher(launch, tmp_path, train_command):
    model = tmp_path / "exp" / "model"
    options = train_command("representation", model)
    code, log, _ = launch(["-m", "espnet2_slit.bin.slit_train"], options)
    assert code == 0, log[-4000:]
    assert ":0/2]" in log  # ESPnet logs rank and world size: there were two
    weights = torch.load(model / "1epoch.pth", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())


# On Slurm a rank's number is SLURM_PROCID; through ssh it is an argument.
@pytest.mark.parametrize(
    "how, through", [("raise", SLURM), ("kill", SLURM), ("kill", SSH)]
)
def test_a_rank_that_dies_ends_the_job_within_a_minute(
    launch, tmp_path, train_command, how, through
):
    died = tmp_path / "died"
    options = train_command("representation", tmp_path / "exp" / "model", epochs=3)
    if through is SSH:
        options = [re.sub(r"([\\$`])", r"\\\1", shlex.quote(w)) for w in options]
    program = [str(HERE / "dying_train.py")]
    code, log, ended = launch(program, options, through, DIE=how, DIED=str(died))
    assert code != 0, log[-4000:]
    assert died.is_file(), log[-4000:]
    assert ended - float(died.read_text()) < MINUTE_S
    assert not (tmp_path / "exp" / "model" / "checkpoint.pth").exists()
    if how == "raise":  # the rank that failed says why
        assert "ArithmeticError: rank 1 fails here on purpose" in log
    else:  # the rank that lives says who is gone
        assert "Connection closed by peer" in log or "Connection reset" in log
