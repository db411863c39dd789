#!/usr/bin/env python3
"""A stage-1 step on two ranks against the same global batch on one.

Three processes with one thread each: one trains alone; two are ranks of one training,
with gloo and DistributedDataParallel, and half of the batch each. They take turns, who
waits computes nothing. Between the steps they run matrix products, one process alone
and two side by side: what the second core adds to those is the limit of what it can add
to a step, less than 2 where both share a memory bus or are threads of one core.

    python bench/ranks.py --output ranks.json
    python bench/ranks.py --precision bfloat16 --batch 32 --rounds 5
"""

import argparse
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection

import torch
from alternate import machine, matmul, ratio, spread, write
from stage1_step import DTYPES, make_batch, our_model

GROUPS = {"one": [0], "two": [1, 2]}  # which processes


def get_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16, help="over all ranks")
    parser.add_argument("--frames", type=int, default=496, help="10 s of BEATs")
    parser.add_argument("--width", type=int, default=768, help="of the frames")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--precision", default="float32", choices=tuple(DTYPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="JSON; a plot goes beside it")
    return parser


def serve(pipe: Connection, args: argparse.Namespace, rank: int, store: str) -> None:
    """Do what the pipe asks for, and send back the seconds it took.

    Args:
        pipe: gives "step" or "products", or "" for the end.
        args: of the command line.
        rank: 0 or 1 of two; -1 trains alone.
        store: of the two ranks.
    """
    torch.set_num_threads(1)
    part = args.batch if rank < 0 else args.batch // 2
    batch = make_batch(args, args.batch)
    if rank >= 0:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", world_size=2, rank=rank
        )
        batch = {k: v[rank * part : (rank + 1) * part] for k, v in batch.items()}
    longest = int(batch["qformer_text_lengths"].max())
    batch["qformer_text"] = batch["qformer_text"][:, :longest]
    bare = our_model(args).train()
    bare.precision = args.precision
    model = bare
    if rank >= 0:
        model = torch.nn.parallel.DistributedDataParallel(bare)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = model(**batch)[0]
        loss.backward()
        optimizer.step()
        if not loss.isfinite():
            raise SystemExit(f"loss of rank {rank}: {loss.item()}")

    product, _ = matmul(DTYPES[args.precision])

    def products() -> None:
        for _ in range(5):
            product()

    pipe.send("ready")
    while wanted := pipe.recv():
        start = time.perf_counter()
        {"step": step, "products": products}[wanted]()
        pipe.send(time.perf_counter() - start)


def ask(pipes: list[Connection], what: str) -> float:
    """Wall seconds until the last of these processes is done."""
    try:
        for pipe in pipes:
            pipe.send(what)
        return max(pipe.recv() for pipe in pipes)
    except (BrokenPipeError, EOFError):
        raise SystemExit(
            f"a process ended before {what}: its message is above; if there is none,"
            " the system killed it for want of memory (take a smaller --batch)"
        ) from None


def main() -> None:
    """Start, race, print, write."""
    args = get_parser().parse_args()
    args.gather, args.gradient_checkpointing, args.device = "full", False, "cpu"
    if args.batch % 2:
        raise SystemExit(f"--batch: expected an even number, found {args.batch}")
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    times: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ends, workers = [], []
        for rank in (-1, 0, 1):
            mine, theirs = context.Pipe()
            work = args, rank, f"{folder}/store"
            workers.append(context.Process(target=serve, args=(theirs, *work)))
            workers[-1].start()
            theirs.close()  # the other end is the process' alone: it shows its death
            ends.append(mine)
        try:
            for end in ends:
                end.recv()
            for turn in range(args.rounds + 1):
                for what in ("products", "step"):
                    for group, members in GROUPS.items():
                        taken = ask([ends[i] for i in members], what)
                        note = "warm-up" if turn == 0 else f"round {turn}"
                        print(
                            f"{note:<9}{what:<10}{group:<5}{taken:8.3f} s", flush=True
                        )
                        if turn:
                            name = f"{what}_{group}"
                            times.setdefault(name, []).append({"wall_s": taken})
            for end in ends:
                end.send("")
        finally:
            for worker in workers:
                worker.join(timeout=10)
                worker.terminate()
    speedup = ratio(times, "step_one", "step_two", "wall_s")
    twice = ratio(times, "products_one", "products_two", "wall_s")
    limit = {name: 2 * value for name, value in twice.items()}
    for name, found in (("step", speedup), ("products", limit)):
        rounded = {k: round(v, 2) for k, v in found.items()}
        print(f"two ranks do {rounded} times as much as one: {name}")
    if args.output:
        result = {
            "what": "stage-1 step on two ranks against one, the same global batch",
            "settings": vars(args),
            "machine": machine(),
            "times": times,
            "speedup": speedup,
            "speedup_of_products": limit,
        }
        bars = {
            name: spread([t["wall_s"] for t in times[name]])
            for name in ("step_one", "step_two")
        }
        write(result, args.output, bars, f"seconds of a step, batch {args.batch}")


if __name__ == "__main__":
    main()
