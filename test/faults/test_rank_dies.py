"""Two ranks through ESPnet's launcher, as on Slurm: they train, or they end together.

`slurm.pl` and `srun` are stand-ins that the test writes: two tasks on this machine with
the variables that Slurm sets. The stand-in never ends a task that still runs, unlike
`srun --kill-on-bad-exit`: the other rank has to notice by itself.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MINUTE_S = 60
START_S = 400  # two interpreters and their imports on a crowded machine

pytestmark = pytest.mark.slow

SLURM_PL = """#!{python}
import os, subprocess, sys

words = sys.argv[1:]
while words[0].startswith("--"):
    words = words[2:]
os.makedirs(os.path.dirname(words[0]), exist_ok=True)
with open(words[0], "wb") as log:
    sys.exit(subprocess.call(words[1:], stdout=log, stderr=subprocess.STDOUT))
"""
SRUN = """#!{python}
import os, subprocess, sys

words = [word for word in sys.argv[1:] if word != "--export=ALL"]
facts = dict(SLURM_NTASKS="2", SLURM_STEP_NUM_NODES="2", SLURM_LOCALID="0")
facts["SLURM_STEP_NODELIST"] = "localhost"
tasks = [
    subprocess.Popen(
        words, env=os.environ | facts | dict(SLURM_PROCID=i, SLURM_NODEID=i)
    )
    for i in "01"
]
codes = [task.wait() for task in tasks]
sys.exit(next((abs(code) for code in codes if code), 0))
"""


@pytest.fixture
def launch(tmp_path, tiny_features):
    """Run a training on two ranks; (exit code, log, time it ended)."""
    for name, text in (("slurm.pl", SLURM_PL), ("srun", SRUN)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(python=sys.executable))
        path.chmod(0o755)

    def run(program, options, **environment):
        log = tmp_path / "exp" / "train.log"
        words = [sys.executable, "-m", "espnet2.bin.launch", "--cmd", "slurm.pl"]
        words += ["--ngpu", "0", "--num_nodes", "2", "--log", str(log)]
        words += ["--init_file_prefix", str(tmp_path / "exp" / ".dist_"), "--"]
        words += [sys.executable, *program, *options]
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            words,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **environment},
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


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_a_rank_that_dies_ends_the_job_within_a_minute(
    launch, tmp_path, train_command, how
):
    died = tmp_path / "died"
    options = train_command("representation", tmp_path / "exp" / "model", epochs=3)
    program = [str(HERE / "dying_train.py")]
    code, log, ended = launch(program, options, DIE=how, DIED=str(died))
    assert code != 0, log[-4000:]
    assert died.is_file(), log[-4000:]
    assert ended - float(died.read_text()) < MINUTE_S
    assert not (tmp_path / "exp" / "model" / "checkpoint.pth").exists()
    if how == "raise":  # the rank that failed says why
        assert "ArithmeticError: rank 1 fails here on purpose" in log
