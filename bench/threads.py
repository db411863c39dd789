"""Steps of a small model in one and in two threads, alone and beside a busy neighbour.

    python bench/threads.py

Each contestant is a process of its own, since OpenMP reads its variables once. With
`OMP_WAIT_POLICY=passive` a thread that waits at a barrier sleeps; otherwise it spins,
on the core that the thread it waits for could have. `GOMP_SPINCOUNT` says for how long
it spins before it sleeps; utils/spin.sh of the recipe chooses it where cores are idle.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

PASSIVE = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
CONTESTANTS = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two threads": {"OMP_NUM_THREADS": "2"},
    "two threads, passive": PASSIVE,
    "two threads, 4000 spins": {**PASSIVE, "GOMP_SPINCOUNT": "4000"},
    "two threads, 10000 spins": {**PASSIVE, "GOMP_SPINCOUNT": "10000"},
}


def steps(seconds: float) -> float:
    """Median time, in ms, of forward and backward of 12 layers of the mini size."""
    import torch
    from torch.nn.functional import gelu, layer_norm

    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        values = torch.randn(*size, generator=generator) * 0.05
        return values.requires_grad_()

    queries, texts = normal(512, 128), normal(1536, 128)
    up, down, key = normal(128, 512), normal(512, 128), normal(128, 128)
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start, states = time.perf_counter(), [queries, texts]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for _ in range(12):
                for i, rows in enumerate(states):
                    rows = (rows @ key).softmax(-1) + rows
                    states[i] = layer_norm(gelu(rows @ up) @ down + rows, (128,))
        sum(rows.square().sum() for rows in states).backward()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def measure(variables: dict[str, str], seconds: float) -> float:
    """One contestant, in a process of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    env |= variables
    words = [sys.executable, __file__, "--seconds", str(seconds), "--alone"]
    return float(subprocess.run(words, env=env, check=True, stdout=-1).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(steps(args.seconds))
        return
    for neighbours in (0, 1):
        busy = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for _ in range(neighbours)
        ]
        try:
            for _ in range(args.rounds):
                for name, variables in CONTESTANTS.items():
                    found = measure(variables, args.seconds)
                    print(f"{neighbours} busy neighbours, {name}: {found:.1f} ms")
        finally:
            for process in busy:
                process.kill()


if __name__ == "__main__":
    main()
