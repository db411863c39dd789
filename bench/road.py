#!/usr/bin/env python3
"""How long each part of the mini road takes here, alone and beside busy neighbours.

Copies the recipe into a new folder, runs it as README does, and reads the times from
what it prints; then again beside processes that keep a core busy each:

    python bench/road.py                         (twice: idle, then one neighbour)
    python bench/road.py --neighbours 0 2 --output road.json
    python bench/road.py --log run.log           (only read what a run has printed)

The imports of one process of each kind are timed as well: a road has some 20 of them.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = Path("egs2", "slit", "slit1")
LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d) \((\w+\.sh)\) (.*)")
# Programs that a road starts, by what they import.
PROGRAMS = {
    "slit data": "espnet2_slit.bin.slit_data, espnet2_slit.data.prepare",
    "slit encode": "espnet2_slit.bin.slit_encode, espnet2_slit.model.audio_encoder",
    "slit train": "espnet2_slit.task",
    "slit inference": "espnet2_slit.inference.slit",
    "slit score": "espnet2_slit.bin.slit_score",
}
BUSY = "x = 0\nwhile True:\n    x += 1\n"


def parts(lines):
    """[(part, seconds)] of what run.sh has printed: one for each line with a time.

    A part lasts until the next such line, so work inside a program counts for the line
    before it.
    """
    found = [match.groups() for match in map(LINE.match, lines) if match]
    times = [datetime.fromisoformat(when) for when, _, _ in found]
    shown = []
    for (_, script, text), begin, end in zip(found, times, times[1:], strict=False):
        name = re.sub(r" \(.*|:? [\w./]*/[\w./]*$|, .*", "", text)[:60]
        shown.append((f"{script}: {name}", (end - begin).total_seconds()))
    return [(name, seconds) for name, seconds in shown if seconds >= 1]


def imports():
    """{program: (wall, CPU) seconds until it has imported what it needs}."""
    found = {}
    for name, modules in PROGRAMS.items():
        before, begin = os.times(), time.monotonic()
        command = [sys.executable, "-c", f"import {modules}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        after = os.times()
        cpu = after.children_user - before.children_user
        cpu += after.children_system - before.children_system
        found[name] = (time.monotonic() - begin, cpu)
    return found


def run_road(neighbours, words):
    """Lines of one road in a fresh copy of the recipe, beside busy processes.

    Raises:
        SystemExit: the recipe failed; its last lines are shown.
    """
    ignored = shutil.ignore_patterns("data*", "dump", "exp", "downloads")
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(neighbours)]
    with tempfile.TemporaryDirectory(prefix="road_") as folder:
        try:
            recipe = Path(folder) / RECIPE
            shutil.copytree(ROOT / RECIPE, recipe, ignore=ignored)
            os.symlink(ROOT / "tools", Path(folder) / "tools")
            os.symlink(ROOT / "espnet2_slit", Path(folder) / "espnet2_slit")
            command = ["./run.sh", "--stop_stage", "score", *words]
            known = {"PYTHON": sys.executable, "SLIT_NO_INSTALL": "1"}
            done = subprocess.run(
                command, cwd=recipe, env={**os.environ, **known}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        finally:
            for process in busy:
                process.kill()
                process.wait()
    lines = done.stdout.splitlines()
    if done.returncode:
        raise SystemExit("\n".join(lines[-30:]))
    return lines


def show(title, rows):
    """Print one table."""
    print(f"\n{title}")
    for name, seconds in rows:
        print(f"  {seconds:8.1f} s  {name}")
    print(f"  {sum(seconds for _, seconds in rows):8.1f} s  in all")


def main():
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--neighbours", type=int, nargs="*", default=[0, 1], help="a road for each"
    )
    parser.add_argument("--log", type=Path, help="what a run of run.sh has printed")
    parser.add_argument("--output", type=Path, help="JSON with all figures")
    parser.add_argument("words", nargs="*", help="-- and more options of run.sh")
    args = parser.parse_args()
    result = {"cpu_cores": len(os.sched_getaffinity(0)), "roads": {}}
    if args.log:
        roads = {str(args.log): args.log.read_text(encoding="utf-8").splitlines()}
    else:
        result["imports"] = imports()
        for name, (wall, cpu) in result["imports"].items():
            print(f"{name}: imports take {wall:.1f} s, {cpu:.1f} s of CPU")
        roads = {
            f"beside {n} busy processes": run_road(n, args.words)
            for n in args.neighbours
        }
    for name, lines in roads.items():
        result["roads"][name] = parts(lines)
        show(name, result["roads"][name])
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
