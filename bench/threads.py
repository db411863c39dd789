"""Small products in one and in two threads, alone and beside a busy neighbour.

    python bench/threads.py

Each contestant is a process of its own, since OpenMP reads its variables once. With
`OMP_WAIT_POLICY=passive` a thread that waits at a barrier sleeps; otherwise it spins,
on the core that the thread it waits for could have.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

CONTESTANTS = {
    "one thread": ("1", None),
    "two threads": ("2", None),
    "two threads, passive": ("2", "passive"),
}


def steps(seconds: float) -> float:
    """Median time, in ms, of a pass of the mini model's sizes: 12 layers of 128."""
    import torch
    from torch.nn.functional import gelu, layer_norm

    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator) * 0.05

    texts, frames = normal(1280, 128), normal(6400, 192)
    up, down, key = normal(128, 512), normal(512, 128), normal(192, 128)
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start, states = time.perf_counter(), texts
        for _ in range(12):
            states = layer_norm(gelu(states @ up) @ down + states, (128,))
            (frames @ key).softmax(-1)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def measure(threads: str, policy: str | None, seconds: float) -> float:
    """One contestant, in a process of its own."""
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    env |= {"OMP_NUM_THREADS": threads}
    env |= {"OMP_WAIT_POLICY": policy} if policy else {}
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
                for name, (threads, policy) in CONTESTANTS.items():
                    found = measure(threads, policy, args.seconds)
                    print(f"{neighbours} busy neighbours, {name}: {found:.1f} ms")
        finally:
            for process in busy:
                process.kill()


if __name__ == "__main__":
    main()
