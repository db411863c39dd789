#!/usr/bin/env python3
"""Time to the first step and memory of a training on very many samples.

Makes data directories of several sizes: ids, texts and lengths of their own, features
shared with an existing directory, whose rows are repeated. Each is trained on by
`slit_train` for a few steps in a process of its own, which is watched until it ends.

    python bench/load.py --like dump/mini_beats/train_caption --samples 10000 1000000 \
        --output load.json -- --config conf/train_representation_mini.yaml ...

With `--ranks 2`, two processes train together through gloo; memory is the larger one's.
Give the training's options after --, without those of the training data. Run it where
the paths in the directory's feats.scp are valid.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import count, cycle
from pathlib import Path

import psutil
from soak import allocated_mib

from espnet2_slit.data.kaldi_dir import read_map

CAPTIONS = 5  # samples of a clip
STEPS = 5


def get_parser():
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--like", required=True, type=Path, help="encoded set")
    parser.add_argument(
        "--samples", type=int, nargs="+", default=[10_000, 100_000, 1_000_000]
    )
    parser.add_argument("--num_workers", type=int, default=2, help="of each rank")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--output", help="JSON")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the training")
    return parser


def make_set(like, folder, samples):
    """A data directory of so many samples; (options that train on it)."""
    folder.mkdir(parents=True)
    columns = {
        name: read_map(like / name)
        for name in ("feats.scp", "feats_shape", "text", "utt2audio")
    }
    streams = {name: (folder / name).open("w", encoding="utf-8") for name in columns}
    for n, key in zip(range(samples), cycle(columns["feats.scp"]), strict=False):
        for name, stream in streams.items():
            value = columns[name][key]
            if name == "utt2audio":
                value = f"clip_{n // CAPTIONS:08d}"
            elif name == "text":
                value = f"{value} number {n // len(columns[name])}"
            stream.write(f"sample_{n:08d} {value}\n")
    for stream in streams.values():
        stream.close()
    option = "--train_data_path_and_name_and_type"
    return [
        *[option, f"{folder}/feats.scp,feats,kaldi_ark"],
        *[option, f"{folder}/text,text,text"],
        *[option, f"{folder}/utt2audio,clip,text"],
        *["--train_shape_file", f"{folder}/feats_shape"],
        *["--features", f"{like}/feats.json"],
    ]


def allocated(root):
    """MiB of the process itself, and of it with its workers."""
    found = []
    for process in [root, *root.children(recursive=True)]:
        try:
            found.append(allocated_mib(process.pid))
        except (psutil.Error, OSError):
            continue
    return found[0] if found else 0.0, sum(found)


def of_rank(rank, ranks, store):
    """Options of one of several processes that train together."""
    if ranks == 1:
        return []
    return [
        *["--dist_backend", "gloo", "--dist_init_method", f"file://{store}"],
        *["--dist_world_size", str(ranks), "--dist_rank", str(rank)],
    ]


def measure(words, folder, ranks):
    """Train for a few steps; seconds to the first one, highest memory after one."""
    begin = time.monotonic()
    command = [words + of_rank(rank, ranks, folder / "store") for rank in range(ranks)]
    child = subprocess.Popen(
        command[0], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    others = [subprocess.Popen(w, stderr=subprocess.DEVNULL) for w in command[1:]]
    root, facts, said, steps = psutil.Process(child.pid), {}, [], count(1)
    for line in child.stdout:
        said.append(line)
        if "epoch:train:" not in line:
            continue
        step = next(steps)
        pids = (child.pid, *(other.pid for other in others))
        own, all_of_them = max(allocated(psutil.Process(pid)) for pid in pids)
        if step == 1:
            times = root.cpu_times()
            facts["first_step_s"] = round(time.monotonic() - begin, 1)
            facts["first_step_cpu_s"] = round(times.user + times.system, 1)
        for name, mib in (("memory_mib", own), ("with_workers_mib", all_of_them)):
            facts[name] = max(round(mib), facts.get(name, 0))
    failed = child.wait()
    for other in others:
        if failed:
            other.kill()
        failed |= other.wait()
    if failed or not facts:
        sys.exit(f"load: the training failed:\n{''.join(said[-30:])}")
    facts["files_mib"] = round(
        sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    )
    return facts


def main():
    """Sizes one after the other."""
    args = get_parser().parse_args()
    options = args.options[1:] if args.options[:1] == ["--"] else args.options
    results = []
    for samples in args.samples:
        with tempfile.TemporaryDirectory(prefix="load_") as where:
            folder = Path(where) / "train"
            words = [sys.executable, "-m", "espnet2_slit.bin.slit_train", *options]
            words += make_set(args.like, folder, samples)
            words += ["--output_dir", f"{where}/exp", "--max_epoch", "1"]
            words += ["--num_iters_per_epoch", str(STEPS), "--log_interval", "1"]
            words += ["--num_workers", str(args.num_workers), "--ngpu", "0"]
            facts = {"samples": samples, **measure(words, folder, args.ranks)}
        print(facts, flush=True)
        results.append(facts)
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
