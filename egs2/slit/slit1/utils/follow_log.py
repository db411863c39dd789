#!/usr/bin/env python3
"""Runs a command and shows, as it runs, the milestones of the log files it writes.

    follow_log.py 'exp/train.log' COMMAND [ARGUMENT ...]

The first argument names log files (a pattern such as decode.*.log is allowed). Training
shows one line per epoch and now and then the running loss, other programs the lines in
which they count. A training ends with what it has not learned. When the command fails,
the end of the log is shown and its exit code is returned.
"""

import contextlib
import ctypes
import glob
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from espnet2_slit.scoring import train_log

EVERY_S = 10.0  # between two lines about the same stretch of work
COUNTING = re.compile(r"(?:INFO|WARNING): (.*\b\d[\d,]* of \d[\d,]*\b.*)")
PLAN = re.compile(r"INFO: (plan: (\d+) epochs of (\d+) batches.*)")  # of a training
ABOUT = re.compile(r"There are no improvements|model parameters|Number of parameters")


def milestone(line):
    """(kind, text) of a log line worth showing, else None."""
    found = train_log.parse_line(line)
    if isinstance(found, train_log.Epoch):
        shown = [
            f"{name} loss {found.values[name]['loss']:g}"
            for name in ("train", "valid")
            if "loss" in found.values.get(name, {})
        ]
        after = f" ({found.took})" if found.took else ""
        return "epoch", f"epoch {found.number}: {', '.join(shown)}{after}"
    if isinstance(found, train_log.Step) and "loss" in found.values:
        loss = f"{found.values['loss']:g}"
        return "step", f"epoch {found.epoch}, step {found.batch}: loss {loss}"
    found = COUNTING.search(line)
    if found and not ABOUT.search(line):
        return "step", found[1].strip()
    return None


def die_with_parent():
    """Be ended by the kernel when the parent is gone (Linux; elsewhere nothing)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Remaining:
    """How long a training will go on: by the time its steps have taken so far."""

    def __init__(self, epochs, batches):
        self.epochs, self.batches = epochs, batches
        self.first = None  # (batches done, time) at the first step seen

    def after(self, step, now):
        """Words for the time left after a step; a first guess leaves validation out."""
        done = (step.epoch - 1) * self.batches + step.batch
        left = self.epochs * self.batches - done
        self.first = self.first or (done, now)
        if done > self.first[0]:
            seconds = left * (now - self.first[1]) / (done - self.first[0])
        elif "train_time" in step.values:
            seconds = left * step.values["train_time"]
        else:
            return ""
        minutes = seconds / 60
        return f", about {minutes:.0f} min left" if minutes >= 2 else ""


class Follower:
    """Reads what is added to log files after it was made."""

    def __init__(self, pattern):
        self.pattern = pattern
        # what earlier runs have left is not shown
        self.places = {path: os.path.getsize(path) for path in glob.glob(pattern)}
        self.shown = 0.0
        self.remaining = None

    def show(self):
        for path in sorted(glob.glob(self.pattern)):
            with contextlib.suppress(OSError), open(path, "rb") as stream:
                place = self.places.get(path, 0)
                if place > stream.seek(0, 2):  # a new log took its place
                    place = 0
                stream.seek(place)
                for line in stream:
                    if line.endswith(b"\n"):
                        self._line(line.decode("utf-8", "replace"))
                        place += len(line)
                self.places[path] = place

    def _line(self, line):
        plan = PLAN.search(line)
        if plan:
            self.remaining = Remaining(int(plan[2]), int(plan[3]))
        found = ("plan", plan[1]) if plan else milestone(line)
        if found is None:
            return
        kind, text = found
        step = train_log.parse_line(line) if self.remaining else None
        if isinstance(step, train_log.Step):
            text += self.remaining.after(step, time.time())
        if kind == "step" and time.time() - self.shown < EVERY_S:
            return
        self.shown = time.time()
        print(f"    {text}", flush=True)


def tail(pattern, count=25):
    """Show the last lines of a log that does not end well; True if there was one."""
    for path in sorted(glob.glob(pattern)):
        lines = Path(path).read_text(errors="replace").splitlines()
        if "(code 0)" not in "".join(lines[-1:]):
            print(f"--- the end of {path}", *lines[-count:], sep="\n", file=sys.stderr)
            return True
    return False


def main(argv):
    if len(argv) < 2:
        print("follow_log.py: expected LOG COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    follower = Follower(argv[0])
    # What the launcher says repeats the log a thousand lines long: kept for a failure.
    said = tempfile.TemporaryFile("w+", errors="replace")
    process = subprocess.Popen(
        argv[1:],
        stderr=said,
        env={**os.environ, "SLIT_DIE_WITH_PARENT": "1"},  # read by run.pl
        preexec_fn=die_with_parent,
    )
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, lambda number, _frame: process.send_signal(number))
    while process.poll() is None:
        time.sleep(0.2)
        follower.show()
    follower.show()
    if process.returncode == 0 and os.path.basename(argv[0]) == "train.log":
        for sentence in train_log.stage_warnings(Path(argv[0]).parent):
            print(f"    Warning: {sentence}", flush=True)
    if process.returncode:
        said.seek(0)
        if not tail(argv[0]):
            print("".join(said.readlines()[-25:]), file=sys.stderr)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
