#!/usr/bin/env python3
"""One step of audio-text pre-training (stage 1) against its peers.

A step is forward, backward and AdamW of a BERT-base Q-Former with the three losses on
frozen features, at B=16, T=496 frames of 768 and captions of 20-30 tokens. The
contestants take turns within one process:

    slit          ours: `RepresentationModel`, float32
    slit_bf16     the same with `precision: bfloat16`, the mode shipped for CPUs
    slit_medium   float32 through oneDNN (set_float32_matmul_precision medium)
    compiled      ours, each layer through torch.compile (only where --only names it)
    compiled_bf16 the same with `precision: bfloat16`
    unfilled_bf16 ours in bfloat16 without rows filled up to a multiple (only where
                  --only names it; tells something with --vary)
    transformers  the same losses written plainly on Blip2QFormerModel (SDPA)
    lavis         LAVIS' own forward from --lavis DIR (a checkout), unchanged
    lavis_bf16    the same under bfloat16 autocast
    lavis_medium  the same through oneDNN

Before the clock starts, they get the same weights and two clips (so that each hard
negative is forced) without dropout, and their losses must agree to 1e-4. Plain matrix
products run among them; their rate is the limit of what the machine can do.

    python bench/stage1_step.py --lavis ~/LAVIS --output stage1.json
    python bench/stage1_step.py --batch 4 --only slit transformers --rounds 3
    python bench/stage1_step.py --lavis ~/LAVIS --device cuda --output gpu.json

Memory is the peak during a step above what is held between steps; on a CPU it is
measured in a process of its own for each contestant. With --vary every step gets
another batch, as in training, with captions of other lengths.
"""

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from alternate import (
    alternate,
    clock,
    count_flops,
    machine,
    matmul,
    ratio,
    spread,
    write,
)
from stage1_peers import BOS, CLS, MAX_TEXT, PAD, SEP, VOCAB, Lavis, Transformers

from espnet2_slit.model import packed_text
from espnet2_slit.model.espnet_model import RepresentationModel
from espnet2_slit.model.qformer import QFormer

CONTESTANTS = (
    "slit",
    "slit_bf16",
    "slit_medium",
    "compiled",
    "compiled_bf16",
    "unfilled_bf16",
    "transformers",
    "lavis",
    "lavis_bf16",
    "lavis_medium",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def get_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=496, help="10 s of BEATs")
    parser.add_argument("--width", type=int, default=768, help="of the frames")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--gather", default="detach", help="as LAVIS; see objectives")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--lavis", help="checkout of salesforce/LAVIS")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS)
    parser.add_argument("--vary", action="store_true", help="another batch each step")
    parser.add_argument("--no_memory", action="store_true")
    parser.add_argument("--memory_of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--output", help="JSON; a plot goes beside it")
    return parser


def make_batch(args: argparse.Namespace, batch: int, seed: int = 0) -> dict:
    """Synthetic features and captions, all clips of full length."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(20, 31, (batch,), generator=generator)
    text = torch.randint(1000, 30000, (batch, MAX_TEXT), generator=generator)
    text[:, 0] = CLS
    text[torch.arange(batch), lengths - 1] = SEP
    text[torch.arange(MAX_TEXT) >= lengths[:, None]] = PAD
    names = torch.arange(batch)[:, None]
    content = {
        "feats": torch.randn(batch, args.frames, args.width, generator=generator),
        "feats_lengths": torch.full((batch,), args.frames),
        "qformer_text": text,
        "qformer_text_lengths": lengths,
        "clip_id": names,
        "text_id": names + batch,
    }
    return {name: tensor.to(args.device) for name, tensor in content.items()}


def our_model(args: argparse.Namespace) -> RepresentationModel:
    """With the same random weights at every call."""
    torch.manual_seed(0)
    bert = QFormer(
        args.width,
        VOCAB,
        layers=args.layers,
        dropout=args.dropout,
        bos_id=BOS,
        gradient_checkpointing=args.gradient_checkpointing,
    )
    return RepresentationModel(bert, joint_width=256, gather=args.gather)


class Family:
    """A model with its optimizer; the number formats of it share both.

    Args:
        name: "slit", "compiled", "unfilled", "transformers" or "lavis".
        args: of the command line.
    """

    def __init__(self, name: str, args: argparse.Namespace):
        ours = our_model(args)
        peers = {"transformers": Transformers, "lavis": Lavis}
        self.model = peers[name](args, ours) if name in peers else ours
        self.model.to(args.device).train()
        if name == "compiled":
            for layer in self.model.qformer.layers:
                layer.compile()
        # the peers' own choice is AdamW's default; ours is what the recipe sets
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-6, fused=None if name in peers else True
        )
        self.device = args.device
        self.row_multiple = 1 if name == "unfilled" else packed_text.ROW_MULTIPLE

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        """The three losses by name."""
        if isinstance(self.model, RepresentationModel):
            _, stats, _ = self.model(**batch)
            names = "contrastive", "matching", "generation"
            return {name: stats[f"loss_{name}"] for name in names}
        return self.model(batch)

    def step(self, batch: dict, mode: str = "") -> None:
        """Forward, backward, AdamW; mode "", "bf16" or "medium"."""
        bf16, is_ours = mode == "bf16", isinstance(self.model, RepresentationModel)
        precision = "medium" if mode == "medium" else "highest"
        torch.set_float32_matmul_precision(precision)
        self.optimizer.zero_grad(set_to_none=True)
        if is_ours:
            packed_text.ROW_MULTIPLE = self.row_multiple
            self.model.precision = "bfloat16" if bf16 else "float32"
            # ESPnet's collate pads no further than the longest caption
            text = batch["qformer_text"][:, : int(batch["qformer_text_lengths"].max())]
            loss = self.model(**batch | {"qformer_text": text})[0]
        else:
            kind = torch.autocast(self.device, torch.bfloat16)
            with kind if bf16 else contextlib.nullcontext():
                loss = sum(self.model(batch).values())
        loss.backward()
        self.optimizer.step()
        torch.set_float32_matmul_precision("highest")
        if not loss.isfinite():
            raise SystemExit(f"loss of {type(self.model).__name__}: {loss.item()}")


@torch.no_grad()
def check_equal(families: list[str], args: argparse.Namespace) -> float:
    """Largest difference of a loss between the families, float32, no dropout."""
    changes = {"dropout": 0.0, "layers": 4, "device": "cpu"}
    small = argparse.Namespace(**vars(args) | changes)
    batch = make_batch(small, 2, seed=1)
    ours = our_model(small)
    generator = torch.Generator().manual_seed(7)
    for parameter in ours.parameters():
        if parameter.dim() > 1:  # initial weights would not show mistakes
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * 0.03)
    results = {}
    for name in families:
        family = Family(name, small)
        if isinstance(family.model, RepresentationModel):
            family.model.load_state_dict(ours.state_dict())
        else:
            family.model.copy(ours)
        losses = family.losses(batch)
        results[name] = torch.stack([losses[k].squeeze() for k in sorted(losses)])
        print(f"losses of {name}: {[round(v, 5) for v in results[name].tolist()]}")
    first = results[families[0]]
    worst = max((found - first).abs().max().item() for found in results.values())
    if not worst < 1e-4:
        raise SystemExit(
            f"the contestants' losses differ by {worst:.2e}, so they do not do the "
            f"same work: {results}"
        )
    return worst


def peak_extra_mb(name: str, args: argparse.Namespace) -> float:
    """Peak memory of a step above the level between steps."""
    if args.device == "cuda":  # counts its tensors by itself
        extra = measure_memory(name, args)
        torch.cuda.empty_cache()
        return extra
    command = [sys.executable, __file__, *sys.argv[1:], "--memory_of", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"memory of {name} not measured: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(name: str, args: argparse.Namespace) -> float:
    """`peak_extra_mb` in this process."""
    name, _, mode = name.partition("_")
    family = Family(name, args)
    batch = make_batch(args, args.batch)
    family.step(batch, mode)
    family.optimizer.zero_grad(set_to_none=True)
    if args.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        family.step(batch, mode)
        extra = torch.cuda.max_memory_allocated() - before
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _status_kb("VmRSS")
        family.step(batch, mode)
        extra = (_status_kb("VmHWM") - before) * 1024
    return extra / 2**20


def _status_kb(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise SystemExit(f"no {key} in /proc/self/status; measure on Linux")


def main() -> None:
    """Check, measure memory, race, print, write."""
    args = get_parser().parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(measure_memory(args.memory_of, args)))
        return
    left_out = ("compiled", "unfilled") + (() if args.lavis else ("lavis",))
    names = args.only or [n for n in CONTESTANTS if not n.startswith(left_out)]
    if any("lavis" in name for name in names) and not args.lavis:
        raise SystemExit("give --lavis DIR, a checkout of salesforce/LAVIS")
    family_names = list(dict.fromkeys(name.split("_")[0] for name in names))
    difference = check_equal(family_names, args)
    memory = {}
    if not args.no_memory:
        memory = {name: peak_extra_mb(name, args) for name in names}

    families = {name: Family(name, args) for name in family_names}
    seeds = range(args.rounds + 1 if args.vary else 1)  # the warm-up takes one, too
    batches = [make_batch(args, args.batch, seed) for seed in seeds]
    flops = {name: count_flops(f.step, batches[0]) for name, f in families.items()}

    def racer(name: str) -> Callable:
        family, _, mode = name.partition("_")
        mine = itertools.cycle(batches)  # the same ones for every contestant
        return lambda: families[family].step(next(mine), mode)

    racers, limits = {}, {}
    for kind, dtype in DTYPES.items():
        racers[f"matmul_{kind}"], limits[kind] = matmul(dtype, args.device)
    racers |= {name: racer(name) for name in names}
    times, _ = alternate(racers, args.rounds, args.device)

    key = clock(args.device)
    ratios, rate_share = {}, {}
    for name in names:
        for reference in names:
            theirs = reference.split("_")[0]
            compared = theirs in ("transformers", "lavis")
            compared |= theirs == "slit" and name.startswith(("compiled", "unfilled"))
            if reference != name and compared:
                ratios[f"{name}/{reference}"] = ratio(times, name, reference, key)
        family, _, mode = name.partition("_")
        kind = "bfloat16" if mode == "bf16" else "float32"
        perfect = flops["slit" if "slit" in flops else family] / limits[kind]
        shares = ratio(times, f"matmul_{kind}", name, key)
        rate_share[name] = {k: perfect * v for k, v in shares.items()}
    print(f"TFLOP in matrix products: { {k: v / 1e12 for k, v in flops.items()} }")
    for name, found in ratios.items():
        print(f"{name:<28}{ {k: round(v, 3) for k, v in found.items()} }")
    for name, found in rate_share.items():
        size = f", {memory[name]:.0f} MB extra" if memory else ""
        print(f"{name}: {found['median']:.2f} of the matmul rate on our TFLOP{size}")
    if args.output:
        result = {
            "what": "stage-1 step: forward, backward, AdamW",
            "settings": vars(args) | {"lavis": bool(args.lavis)},
            "machine": machine(args.device),
            "losses_differ_by": difference,
            "flops": flops,
            "times": times,
            "time_ratios": ratios,
            "share_of_matmul_rate": rate_share,
            "peak_extra_mb": memory,
        }
        bars = {name: spread([t[key] for t in times[name]]) for name in names}
        write(result, args.output, bars, f"{key} of a step, batch {args.batch}")


if __name__ == "__main__":
    main()
