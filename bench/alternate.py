"""What the benchmarks share: contestants take turns, ratios come from neighbours.

CPU seconds count all threads of this process; on a machine with other work on it they
are steadier than the wall clock. A ratio is taken round by round, because neighbours
in time share the machine's mood, and shown as the median of the rounds with its range.
Imports nothing of ours.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

CUDA_BUSY_S = 0.2  # a shorter series of products would time its own start


def machine(device: str = "cpu") -> dict:
    """What a figure depends on besides the code."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(names),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def timed(function: Callable, device: str = "cpu") -> tuple[dict[str, float], object]:
    """Run it: {"cpu_s", "wall_s"} and its result."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    wait()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_s": wall, "cpu_s": cpu}, result


def alternate(
    contestants: dict[str, Callable], rounds: int, device: str = "cpu"
) -> tuple[dict[str, list[dict]], dict[str, object]]:
    """Run all in turn, `rounds` times after one warm-up.

    Args:
        contestants: what to run, by name.
        rounds: how many are kept.
        device: "cpu" or "cuda".

    Returns:
        Times of each contestant, one entry a round, and its last result.
    """
    times: dict[str, list[dict]] = {name: [] for name in contestants}
    results = {}
    for turn in range(rounds + 1):
        for name, function in contestants.items():
            taken, results[name] = timed(function, device)
            note = "warm-up" if turn == 0 else f"round {turn}"
            print(
                f"{note:<9}{name:<34} cpu {taken['cpu_s']:8.3f} s"
                f"  wall {taken['wall_s']:8.3f} s",
                flush=True,
            )
            if turn:
                times[name].append(taken)
    return times, results


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {
        "median": statistics.median(values),
        "lowest": min(values),
        "highest": max(values),
    }


def clock(device: str) -> str:
    """Which time is compared: of all CPU threads, or the wall's on an accelerator."""
    return "wall_s" if device == "cuda" else "cpu_s"


def ratio(
    times: dict[str, list[dict]], name: str, reference: str, key: str = "cpu_s"
) -> dict[str, float]:
    """Time of `name` over that of `reference`, round by round."""
    pairs = zip(times[name], times[reference], strict=True)
    return spread([own[key] / other[key] for own, other in pairs])


def count_flops(step: Callable, *args: object) -> float:
    """Floating point operations of a step's matrix products, as they are executed."""
    with FlopCounterMode(display=False) as counter:
        step(*args)
    return float(counter.get_total_flops())


def matmul(dtype: torch.dtype, device: str = "cpu") -> tuple[Callable, float]:
    """Products of a size the Q-Former has, and their floating point operations.

    Run among the contestants it gives the rate that this machine reaches at that
    moment, the limit of everything that consists of such products.
    """
    rows, inner, columns = 1536, 768, 3072
    left = torch.randn(rows, inner, dtype=dtype, device=device)
    right = torch.randn(inner, columns, dtype=dtype, device=device)
    flops = 2 * rows * inner * columns
    repeats = 20

    def product():
        for _ in range(repeats):
            torch.mm(left, right)

    if device == "cuda":
        product()
        taken, _ = timed(product, device)
        repeats = max(repeats, round(repeats * CUDA_BUSY_S / taken["wall_s"]))
    return product, float(flops * repeats)


def write(result: dict, output: str | Path, bars: dict[str, dict], label: str) -> None:
    """JSON to `output`, and beside it the same name as PNG with one bar an entry.

    Without bars, no PNG.

    Args:
        result: everything that was found out.
        output: path of the JSON file.
        bars: name -> spread.
        label: of the axis.
    """
    output = Path(output)
    output.write_text(json.dumps(result, indent=1, default=str) + "\n")
    if not bars:
        return
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(
        figsize=(7, 0.8 + 0.4 * len(bars)), layout="constrained"
    )
    names = list(bars)[::-1]
    middle = [bars[n]["median"] for n in names]
    below = [bars[n]["median"] - bars[n]["lowest"] for n in names]
    above = [bars[n]["highest"] - bars[n]["median"] for n in names]
    drawn = axis.barh(names, middle, xerr=(below, above), color="tab:blue", capsize=3)
    axis.bar_label(drawn, fmt="%.3g", padding=6)
    axis.margins(x=0.15)
    axis.set_xlabel(label)
    figure.savefig(output.with_suffix(".png"), dpi=120)
    pyplot.close(figure)
    print(f"{output} and {output.with_suffix('.png')}")
