#!/usr/bin/env python3
"""Does a long run grow? Memory, open files and threads of a command and its workers.

Runs a command for some minutes, looks at its processes every few seconds, ends it, and
fits a straight line through the lowest value of each minute, after a warm-up: memory
that is really held does not go down again. Memory is what the processes have allocated
(Linux' Pss_Anon: a page that n of them share counts once; files and libraries that the
kernel may drop do not count). Processes are found through psutil.

    python bench/soak.py --minutes 20 --output soak.json -- \
        python -m espnet2_slit.bin.slit_train --config ... --max_epoch 100000

With --loop the command is one of the package's own, called again and again in one
process; {n} in its arguments is the number of the round, and a folder of that name is
removed after it:

    python bench/soak.py --loop slit_encode -- --data_dir dump/raw/valid_caption \
        --output_dir /tmp/soak_{n} --audio_encoder beats --audio_encoder_conf path=...

The exit code is 0 if nothing grows, 1 if something does, 2 if the command ended itself.
"""

import argparse
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

MEASURES = {"memory_mib": "memory", "files": "open files", "threads": "threads"}


def get_parser():
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--warm_up_minutes", type=float, default=3)
    parser.add_argument("--interval_s", type=float, default=3)
    parser.add_argument(
        "--memory_limit",
        type=float,
        default=30,
        help="MiB an hour above which memory counts as growing",
    )
    parser.add_argument("--loop", help="module of espnet2_slit.bin, called repeatedly")
    parser.add_argument("--output", help="JSON: figures and all samples")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command")
    return parser


def repeat(module, words):
    """Call a command of the package again and again in this process."""
    main = importlib.import_module(f"espnet2_slit.bin.{module}").main
    n = 0
    while True:
        now = [word.replace("{n}", str(n)) for word in words]
        code = main(now)
        if code:
            sys.exit(code)
        for word, before in zip(now, words, strict=True):
            if "{n}" in before:
                shutil.rmtree(word, ignore_errors=True)
        n += 1
        print(f"soak: {n} rounds", flush=True)


def allocated_mib(pid):
    """Memory of one process that is in no file, its share of it."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def look(root):
    """Sums over a process and its children, without those that have just gone."""
    found = {"processes": 0, "memory_mib": 0.0, "files": 0, "threads": 0, "cpu_s": 0.0}
    for process in [root, *root.children(recursive=True)]:
        try:
            with process.oneshot():
                memory = allocated_mib(process.pid)
                files, threads = process.num_fds(), process.num_threads()
                cpu = sum(process.cpu_times()[:4])
        except (psutil.Error, OSError):
            continue
        found["processes"] += 1
        found["memory_mib"] += memory
        found["cpu_s"] += cpu if process == root else 0
        # workers come and go; what may pile up are the files of who lives on
        found["files"] += files if process == root else 0
        found["threads"] += threads if process == root else 0
    return found


def slope(points):
    """Theil and Sen's: the median of the slopes of all pairs, per hour."""
    slopes = [
        (y - y0) / (x - x0) * 3600
        for i, (x0, y0) in enumerate(points)
        for x, y in points[i + 1 :]
    ]
    return statistics.median(slopes) if slopes else float("nan")


def verdict(samples, warm_up_s, memory_limit):
    """Of each measure: first, last and highest value, and whether it grows."""
    minutes = {}
    for sample in samples:
        if sample["s"] >= warm_up_s:
            minutes.setdefault(int(sample["s"] // 60), []).append(sample)
    facts = {}
    for name in MEASURES:
        lowest = [
            (60.0 * minute, min(s[name] for s in found))
            for minute, found in sorted(minutes.items())
        ]
        growth = slope(lowest)
        limit = memory_limit if name == "memory_mib" else 1.0
        facts[name] = {
            "first": round(lowest[0][1], 1),
            "last": round(lowest[-1][1], 1),
            "highest": round(max(s[name] for s in samples), 1),
            "growth_per_hour": round(growth, 2),
            "grows": not growth <= limit,
        }
    return facts


def main():
    """Run, watch, end, judge."""
    args = get_parser().parse_args()
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not words:
        sys.exit("soak: expected a command after --, found none.")
    if args.loop and os.environ.get("SOAK_LOOP"):
        repeat(args.loop, words)
    if args.loop:
        words = [sys.executable, __file__, "--loop", args.loop, "--", *words]
    child = subprocess.Popen(words, env={**os.environ, "SOAK_LOOP": "1"})
    root, begin, samples = psutil.Process(child.pid), time.monotonic(), []
    while time.monotonic() - begin < 60 * args.minutes and child.poll() is None:
        samples.append({"s": round(time.monotonic() - begin, 1), **look(root)})
        time.sleep(args.interval_s)
    ended = child.poll()
    family = [root, *root.children(recursive=True)] if ended is None else []
    for process in family:
        process.terminate()
    _, alive = psutil.wait_procs(family, timeout=20)
    for process in alive:
        process.kill()
    facts = verdict(samples, 60 * args.warm_up_minutes, args.memory_limit)
    for name, found in facts.items():
        print(MEASURES[name], *(f"{key} {value}" for key, value in found.items()))
    if args.output:
        result = {
            "command": words,
            "minutes": round(samples[-1]["s"] / 60, 1),
            "cpu_s": samples[-1]["cpu_s"],
            "ended_itself": ended,
            **facts,
            "samples": samples,
        }
        Path(args.output).write_text(json.dumps(result) + "\n")
    if ended is not None:
        sys.exit(2)
    sys.exit(any(found["grows"] for found in facts.values()))


if __name__ == "__main__":
    main()
