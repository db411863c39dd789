#!/usr/bin/env python3
"""Runs a command, or an array of them, on this machine; used as Kaldi's run.pl.

    run.pl [options] [JOB=1:4] LOG COMMAND [ARGUMENT ...]

JOB (any name) is replaced by 1, 2, 3, 4 in LOG and in every argument. The exit code is 0
when all jobs end with 0, else 1. Understood options: --max-jobs-run N, --gpu N, --pick
all|failed|incomplete; every other `--name value` pair, meant for a cluster, is ignored.

Differs from Kaldi's in three ways: the words are given to the program as they are, without
a shell in between (write `bash -c '...'` for a pipeline); jobs of an array that ask for one
GPU each get a different one; and when this program is killed its jobs are, too.
Called as stdout.pl, it also shows the output.
"""

import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

PR_SET_PDEATHSIG = 1
STARTED = []
LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def fail(message):
    """End with exit code 2, as for every wrong use."""
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    sys.exit(2)


def parse(argv):
    """Split the command line into (options, job name, first, last, log, command)."""
    options = {"max_jobs_run": 0, "gpu": 0, "pick": "all"}
    name, first, last = None, 1, 1
    index = 0
    while index < len(argv):
        word = argv[index]
        job = re.fullmatch(r"([A-Za-z_]\w*)=(\d+)(?::(\d+))?", word)
        if job:
            name, first = job[1], int(job[2])
            last = int(job[3] or job[2])
            if not 1 <= first <= last:
                fail(f"expected {name}=FIRST:LAST with 1 <= FIRST <= LAST, found {word}")
            index += 1
        elif word == "-V":
            index += 1
        elif word.startswith("-") and word != "-":
            if word == "-pe":  # queue systems: -pe smp 4
                index += 3
                continue
            if index + 1 >= len(argv):
                fail(f"option {word} needs a value")
            value = argv[index + 1]
            key = {"tc": "max_jobs_run"}.get(word.lstrip("-"), word.lstrip("-"))
            key = key.replace("-", "_")
            if key in ("max_jobs_run", "gpu"):
                if not value.isdigit():
                    fail(f"option {word} needs a number, found {value!r}")
                options[key] = int(value)
            elif key == "pick":
                if value not in ("all", "failed", "incomplete"):
                    fail(f"--pick is all, failed or incomplete, found {value!r}")
                options[key] = value
            index += 2
        else:
            break
    if len(argv) - index < 2:
        fail("expected a log file and a command: run.pl [JOB=1:4] LOG COMMAND ...")
    log, command = argv[index], argv[index + 1 :]
    if last > first and name not in log:
        fail(f"the log file must contain {name}, or all jobs write to {log}")
    return options, name, first, last, log, command


def gpus():
    """Ids of the GPUs that jobs may use, an empty list where there are none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu]
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    except OSError:
        return []
    return [str(i) for i in range(listing.stdout.count("GPU "))]


def unfinished(log, pick):
    """Whether a job is to be run, judging by the log of an earlier time."""
    if pick == "all":
        return True
    try:
        with open(log, encoding="utf-8", errors="replace") as stream:
            ends = [line for line in stream if line.startswith("# Ended (code ")]
    except OSError:
        return True
    if not ends:
        return True
    return pick == "failed" and not ends[-1].startswith("# Ended (code 0)")


def die_with_parent():
    """Be ended by the kernel when the parent is gone (Linux; elsewhere nothing)."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def run_job(command, log, environment, show):
    """Run one command with its log; returns its exit code."""
    if os.path.dirname(log):
        os.makedirs(os.path.dirname(log), exist_ok=True)
    begin = time.time()
    with open(log, "wb") as stream:

        def write(text):
            stream.write(text.encode("utf-8", "surrogateescape"))
            stream.flush()

        write(f"# {shlex.join(command)}\n# Started at {time.ctime()}\n#\n")
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if show else stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except OSError as error:
            write(f"{command[0]}: {error.strerror}\n")
            code = 127
        else:
            STARTED.append(process)
            if show:
                for line in process.stdout:
                    stream.write(line)
                    stream.flush()
                    sys.stdout.buffer.write(line)
                    sys.stdout.buffer.flush()
            code = process.wait()
        elapsed = round(time.time() - begin)
        ended = f"code {code}" if code >= 0 else f"code {128 - code}; signal {-code}"
        write(
            f"# Accounting: time={elapsed} threads=1\n"
            f"# Ended ({ended}) at {time.ctime()}, elapsed time {elapsed} seconds\n"
        )
    return code


def stop(signum, _frame):
    """Take the running jobs along."""
    for process in STARTED:
        if process.poll() is None:
            try:
                os.killpg(process.pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
    sys.stderr.write(f"run.pl: stopped by signal {signum}, and its jobs with it\n")
    sys.stderr.flush()
    os._exit(128 + signum)


def main(argv):
    options, name, first, last, log, command = parse(argv)
    show = os.path.basename(sys.argv[0]).startswith("stdout")
    if os.environ.get("SLIT_DIE_WITH_PARENT"):
        die_with_parent()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, stop)

    def numbered(word, number):
        return word.replace(name, str(number)) if name else word

    jobs = [
        number
        for number in range(first, last + 1)
        if unfinished(numbered(log, number), options["pick"])
    ]
    devices = gpus() if options["gpu"] else []
    parallel = options["max_jobs_run"] or (
        max(1, len(devices) // options["gpu"])
        if devices
        else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    )
    free = list(range(parallel))
    lock = threading.Lock()
    failed = []

    def one(number):
        with lock:
            slot = free.pop(0)
        environment = None
        if name and len(devices) > options["gpu"] > 0:
            start = slot * options["gpu"] % len(devices)
            mine = (devices + devices)[start : start + options["gpu"]]
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(mine)}
        code = run_job(
            [numbered(word, number) for word in command],
            numbered(log, number),
            environment,
            show,
        )
        with lock:
            free.append(slot)
            if code:
                failed.append(number)

    # Threads only wait for processes; the main thread stays free to take signals.
    with ThreadPoolExecutor(parallel) as pool:
        pending = [pool.submit(one, number) for number in jobs]
        for future in pending:
            while not future.done():
                time.sleep(0.02)
            future.result()
    if not failed:
        return 0
    if len(jobs) == 1:
        where = f"log is in {numbered(log, failed[0])}"
        print(f"run.pl: job failed, {where}", file=sys.stderr)
    else:
        where = f"log is in {log.replace(name, '*')}"
        print(f"run.pl: {len(failed)} / {len(jobs)} failed, {where}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
