#!/usr/bin/env python3
"""What stands before the audio, read once for all rows of a batch, against with each.

A chat model's head (system words, the start of the user's turn) is the same for every
row. Contestants take turns on the loss of a batch and its gradient by the prefix, the
part of a training step that the language model takes; losses must agree first.

    python bench/shared_head.py --language_model /models/smollm2-135m-instruct
"""

import argparse

import torch
from alternate import alternate, machine, ratio, spread, write

from espnet2_slit.common.padded import Padded
from espnet2_slit.common.precision import autocast
from espnet2_slit.model.load_language_model import load_language_model

LORA = {"r": 16, "target_modules": "all-linear"}


def main() -> None:
    """Load, compare, alternate, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--language_model", required=True, help="folder or hub name")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--caption", default="burning logs crackle softly")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="JSON; a plot goes beside it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    contestants, losses = {}, {}
    for kind, lora in (("frozen", None), ("lora", LORA)):
        lm = load_language_model(args.language_model, lora=lora)
        prefix = torch.randn(args.batch, args.queries, lm.width) * 0.1
        ids = torch.tensor([lm.encode_target(args.caption)] * args.batch)
        print(f"{kind}: {len(lm.text.head)} tokens before the audio")

        def step(lm=lm, prefix=prefix, ids=ids, shared=True):
            lm._shares_head = shared
            trained = [prefix.clone().requires_grad_(), *lm.adapters.values()]
            with autocast(args.precision, torch.device("cpu")):
                total = lm.loss(Padded(trained[0]), None, Padded(ids))[0]
            torch.autograd.grad(total, trained)
            return float(total)

        for name, shared in (("once", True), ("each row", False)):
            key = f"{kind}, {name}"
            contestants[key] = lambda step=step, shared=shared: step(shared=shared)
            losses[key] = contestants[key]()
        both = losses[f"{kind}, once"], losses[f"{kind}, each row"]
        if abs(both[0] - both[1]) > 0.02 * both[1]:
            raise SystemExit(f"{kind}: losses differ: {both}")
    times, _ = alternate(contestants, args.rounds)
    ratios = {
        kind: ratio(times, f"{kind}, once", f"{kind}, each row")
        for kind in ("frozen", "lora")
    }
    print(ratios)
    if args.output:
        bars = {n: spread([t["cpu_s"] for t in taken]) for n, taken in times.items()}
        result = {"settings": vars(args), "machine": machine(), "losses": losses}
        write(result | {"ratios": ratios, "times": times}, args.output, bars, "CPU s")


if __name__ == "__main__":
    main()
