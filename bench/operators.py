#!/usr/bin/env python3
"""How many operators a stage-1 step starts on an accelerator, counted on a CPU.

What an accelerator waits for at small batches is the number of kernels, not their
size. The path of an accelerator is run here on a small model with BERT-base's number of
layers, for the count depends on no other size, and every operator that computes
something (views and allocations do not) is counted as it is dispatched. Attention and
dropout count as the one kernel, forward and backward, that they are on an accelerator.

    python bench/operators.py
    python bench/operators.py --precision bfloat16 --kinds 20
"""

import argparse
import collections

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from espnet2_slit.model import cpu_attention, packed_text, qformer
from espnet2_slit.model.espnet_model import RepresentationModel
from espnet2_slit.model.qformer import QFormer

ALLOCATES = ("detach", "_unsafe_view", "alias", "lift_fresh", "_reshape_alias")
HEADS, WIDTH, FRAMES, TEXT, VOCAB = 12, 24, 10, 9, 100


def get_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--precision", default="float32", help="or bfloat16")
    parser.add_argument("--kinds", type=int, default=12, help="that are listed")
    return parser


class Count(TorchDispatchMode):
    """Operators that compute, by part of the step and name."""

    def __init__(self):
        super().__init__()
        self.part, self.found = "", collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if not function.is_view and "empty" not in name and name not in ALLOCATES:
            self.found[self.part, name] += 1
        return function(*args, **(kwargs or {}))


class _OneKernel(torch.autograd.Function):
    """Stands for attention: one operator each way, its output as a kernel leaves it."""

    @staticmethod
    def forward(ctx, query, key, value):
        ctx.save_for_backward(query, key, value)
        count, heads, length, width = query.shape
        return query.new_empty(count, length, heads, width).transpose(1, 2).fill_(0.1)

    @staticmethod
    def backward(ctx, grad):
        query, key, value = ctx.saved_tensors
        return torch.zeros_like(query), key.detach(), value.detach()


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask=None, **_) -> Tensor:
    """In place of `scaled_dot_product_attention`."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # as PyTorch does at each call
        zeros = attn_mask.new_zeros(attn_mask.shape, dtype=query.dtype)
        zeros.masked_fill_(~attn_mask, float("-inf"))
    return _OneKernel.apply(query, key, value)


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False):
    """In place of `dropout`, the operator that accelerators have."""
    return torch.native_dropout(x, p, training)[0] if training and p else x


def make(args: argparse.Namespace) -> tuple[RepresentationModel, dict[str, Tensor]]:
    """Model and batch."""
    torch.manual_seed(0)
    bert = QFormer(
        WIDTH,
        VOCAB,
        width=WIDTH,
        layers=args.layers,
        heads=HEADS,
        feed_forward=2 * WIDTH,
        dropout=args.dropout,
        bos_id=5,
        max_text_length=TEXT,
    )
    model = RepresentationModel(bert, joint_width=8, precision=args.precision)
    text = torch.randint(6, VOCAB, (args.batch, TEXT))
    names = torch.arange(args.batch)[:, None]
    batch = {
        "feats": torch.randn(args.batch, FRAMES, WIDTH),
        "feats_lengths": torch.full((args.batch,), FRAMES),
        "qformer_text": text,
        "qformer_text_lengths": torch.full((args.batch,), TEXT),
        "clip_id": names,
        "text_id": names + args.batch,
    }
    return model.train(), batch


def main() -> None:
    """Count and print."""
    args = get_parser().parse_args()
    for room in (packed_text, qformer):
        room.is_on_host = lambda tensor: False
    cpu_attention.HALF = ()  # the path for CPUs
    F.dropout, F.scaled_dot_product_attention = dropout, attention
    model, batch = make(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    for _ in range(2):  # the first step makes the optimizer's state
        with Count() as count:
            count.part = "forward"
            loss = model(**batch)[0]
            count.part = "backward"
            loss.backward()
            count.part = "optimizer"
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    print(f"operators of a step, {args.layers} layers, {args.precision}")
    for part in ("forward", "backward", "optimizer"):
        named = {n: c for (p, n), c in count.found.items() if p == part}
        most = sorted(named.items(), key=lambda x: -x[1])[: args.kinds]
        shown = ", ".join(f"{name} {number}" for name, number in most)
        print(f"  {part:<10}{sum(named.values()):>6}   {shown}")
    print(f"  {'all':<10}{sum(count.found.values()):>6}")


if __name__ == "__main__":
    main()
