#!/usr/bin/env python3
"""The layers of BEATs with ESPnet's attention and with ours, random weights.

    python bench/beats_attention.py
    python bench/beats_attention.py --precision bfloat16 --batch 1
    python bench/beats_attention.py --train --width 144 --heads 4 --batch 24

The default is BEATs base's size, four clips of 10 s and 3 of its 12 layers.
"""

import argparse

import torch
from alternate import alternate, machine, ratio, spread, write
from torch import Tensor

from espnet2_slit.common.compat import BeatsEncoder
from espnet2_slit.common.precision import autocast
from espnet2_slit.model.audio_encoder.beats_attention import use_lean_attention


def make(args: argparse.Namespace, fast: bool) -> BeatsEncoder:
    """ESPnet's encoder; the weights do not depend on `fast`."""
    torch.manual_seed(0)
    config = {
        "encoder_layers": args.layers,
        "encoder_embed_dim": args.width,
        "encoder_ffn_embed_dim": 4 * args.width,
        "encoder_attention_heads": args.heads,
        "relative_position_embedding": True,
        "num_buckets": 320,
        "max_distance": 800,
        "gru_rel_pos": True,
        "deep_norm": True,
        "conv_pos_groups": args.width // 48,
    }
    none = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop")
    encoder = BeatsEncoder(1, beats_config={**config, **dict.fromkeys(none, 0.0)})
    if fast:
        use_lean_attention(encoder)
    return encoder.train(args.train)


def main() -> None:
    """Compare, alternate, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=496)
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--precision", default="float32", help="or bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", help="JSON; a plot goes beside it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    features = torch.randn(args.batch, args.frames, args.width)

    def turn(encoder: BeatsEncoder) -> Tensor:
        with torch.set_grad_enabled(args.train), autocast(args.precision):
            found = encoder.encoder(features.clone())[0]
        if args.train:
            found.float().square().mean().backward()
            encoder.zero_grad()
        return found.detach().float()

    encoders = {"ours": make(args, True), "espnet": make(args, False)}
    contestants = {name: (lambda e=e: turn(e)) for name, e in encoders.items()}
    times, results = alternate(contestants, args.rounds)
    difference = float((results["ours"] - results["espnet"]).abs().max())
    print(f"largest difference of a frame's number: {difference:.1e}")
    found = ratio(times, "ours", "espnet")
    print(f"our time over ESPnet's, CPU seconds: {found}")
    seconds = {n: spread([t["cpu_s"] for t in taken]) for n, taken in times.items()}
    print({name: f"{one['median'] * 1e3:.0f} ms" for name, one in seconds.items()})
    if args.output:
        result = {"settings": vars(args), "machine": machine(), "ratio": found}
        write(result | {"times": times}, args.output, seconds, "CPU s")


if __name__ == "__main__":
    main()
