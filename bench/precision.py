#!/usr/bin/env python3
"""Does training in bfloat16 learn what training in float32 does? Their loss curves.

An experiment's stage is trained anew for some steps in both number formats, from the
same weights on the same batches, step by step in turn. A third training, in float32
from weights that were rounded to bfloat16 once, shows how far two curves part through
a small disturbance alone (hard negatives are drawn, so it grows). The table shows the
mean loss of each tenth of the training. Run it where the experiment's relative paths
lead:

    cd egs2/slit/slit1
    python ../../../bench/precision.py exp/mini_representation --output precision.json
"""

import argparse
import copy
import statistics
from itertools import islice
from pathlib import Path

import torch
from alternate import machine, spread, timed, write

from espnet2_slit.common import compat
from espnet2_slit.task import SLITTask

compat.prepare_espnet_import()

from espnet2.train.distributed_utils import DistributedOption  # noqa: E402

PRECISIONS = ("float32", "bfloat16")
CONTROL = "float32, rounded start"


def get_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", help="trained from cached features")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3, help="after 20 steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="JSON; a plot of the CPU times beside it")
    return parser


def main() -> None:
    """Train both, print, write."""
    args = get_parser().parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    config = Path(args.experiment) / "config.yaml"
    first, options = SLITTask.build_model_from_file(config, with_audio_encoder=False)
    models = {name: copy.deepcopy(first) for name in (*PRECISIONS, CONTROL)}
    with torch.no_grad():
        for parameter in models[CONTROL].parameters():
            parameter.copy_(parameter.bfloat16())
    optimizers = {}
    for precision, model in models.items():
        model.precision = "float32" if precision == CONTROL else precision
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizers[precision] = torch.optim.AdamW(trained, lr=args.lr, fused=True)
    options.num_workers, options.batch_size, options.seed = 0, args.batch, args.seed
    factory = SLITTask.build_iter_factory(options, DistributedOption(), mode="train")

    def step(precision: str, batch: dict) -> float:
        optimizers[precision].zero_grad(set_to_none=True)
        loss = models[precision](**batch)[0]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(models[precision].parameters(), 5.0)
        optimizers[precision].step()
        return loss.item()

    losses = {precision: [] for precision in models}
    seconds = {precision: [] for precision in models}
    for i, (_, batch) in enumerate(islice(factory.build_iter(1), args.steps)):
        for precision in models:
            for group in optimizers[precision].param_groups:
                group["lr"] = args.lr * min(1, (i + 1) / 20)
            torch.manual_seed(i)  # both draw the same dropout
            taken, loss = timed(lambda p=precision, b=batch: step(p, b))
            losses[precision].append(loss)
            seconds[precision].append(taken["cpu_s"])
    count = len(losses["float32"])
    size = max(count // 10, 1)
    rows = []
    print("steps     " + "".join(f"{name:>24}" for name in models))
    for start in range(0, count - size + 1, size):
        means = [statistics.mean(losses[p][start : start + size]) for p in models]
        rows.append({"first": start, "last": start + size - 1, "losses": means})
        columns = "".join(f"{mean:24.4f}" for mean in means)
        print(f"{start:4d}-{start + size - 1:<5d}{columns}")
    bars = {precision: spread(values) for precision, values in seconds.items()}
    print({name: round(bar["median"], 3) for name, bar in bars.items()}, "CPU s a step")
    if args.output:
        result = {
            "what": "loss of training in float32 and bfloat16, the same batches",
            "settings": vars(args),
            "machine": machine(),
            "tenths": rows,
            "losses": losses,
            "cpu_s": bars,
        }
        write(result, args.output, bars, "CPU s of a step")


if __name__ == "__main__":
    main()
