"""Stand-ins for a cluster's commands: `slurm.pl`, `queue.pl`, `srun`, `ssh`, here.

`slurm.pl` and `queue.pl` (SGE) run a job, or an array of jobs side by side, as those of
an ESPnet tree do: words are joined, path.sh is sourced before, only the variables that
are named are passed on, and queue.pl refuses names that SGE refuses. `srun` runs two
tasks with the variables that Slurm sets; `ssh` what the other machine's shell would
run. They note their calls in `calls`, one JSON list a line. The stand-in for srun never
ends a task that still runs, unlike `srun --kill-on-bad-exit`: the other rank notices by
itself.
"""

import json
import os
import sys
from pathlib import Path

HEAD = """#!{python}
import json, os, subprocess, sys

with open({calls!r}, "a") as calls:
    calls.write(json.dumps(["{name}", *sys.argv[1:]]) + "\\n")
"""
SCHEDULER = """
words, ids, options = sys.argv[1:], [""], {{}}
while words[0].startswith("--"):
    options[words[0]], words = words[1], words[2:]
if {name!r} == "queue.pl" and set(options.get("--name", "")) & set("/:@*? "):
    sys.exit(f"qsub: ERROR! -N {{options['--name']}} is not a valid object name")
if words[0].startswith("JOB="):
    first, _, last = words[0].removeprefix("JOB=").partition(":")
    ids = [str(n) for n in range(int(first), int(last or first) + 1)]
    words = words[1:]
kept = {exports!r} or list(os.environ)
env = {{name: os.environ[name] for name in kept if name in os.environ}}
env["JOB_ID" if {name!r} == "queue.pl" else "SLURM_JOB_ID"] = "1"
jobs = []
for n in ids:
    log, *command = [word.replace("JOB", n) if n else word for word in words]
    os.makedirs(os.path.dirname(log), exist_ok=True)
    line = " ".join(w if w and not w.split()[1:] else '"' + w + '"' for w in command)
    script = "if [ -f path.sh ]; then . ./path.sh; fi; " + line
    with open(log, "wb") as stream:
        jobs.append(
            subprocess.Popen(
                ["bash", "-c", script], env=env, stdout=stream, stderr=subprocess.STDOUT
            )
        )
sys.exit(max(abs(job.wait()) for job in jobs))
"""
SRUN = """
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
SSH = """
host, *words = sys.argv[1:]  # the words, joined, go to the other machine's shell
sys.exit(subprocess.call(["bash", "-c", " ".join(words)]))
"""


class StandIns:
    """The commands, written into a folder.

    Args:
        folder: takes them and the note of their calls.
        exports: variables that slurm.pl and queue.pl pass on (conf/slurm.conf and
            conf/queue.conf: PATH alone); none: all.
    """

    def __init__(self, folder: Path, exports: tuple = ()):
        self.folder = folder
        self.noted = folder / "calls"
        folder.mkdir()
        bodies = {"srun": SRUN, "ssh": SSH}
        for name in ("slurm.pl", "queue.pl"):
            bodies[name] = SCHEDULER.format(name=name, exports=exports)
        for name, body in bodies.items():
            head = HEAD.format(python=sys.executable, calls=str(self.noted), name=name)
            (folder / name).write_text(head + body)
            (folder / name).chmod(0o755)

    @property
    def path(self) -> str:
        """PATH, with these commands first."""
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"

    def calls(self, name: str) -> list:
        """Arguments of the calls of one command so far."""
        lines = self.noted.read_text().splitlines() if self.noted.exists() else []
        return [words[1:] for words in map(json.loads, lines) if words[0] == name]
