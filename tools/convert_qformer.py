#!/usr/bin/env python3
"""Convert Q-Former weights between this package, LAVIS, BERT and transformers.

    import  BERT, LAVIS or transformers weights -> a file for ESPnet's --init_param
    export  a trained model file -> a folder for InstructBlipQFormerModel

Examples:
    python tools/convert_qformer.py import blip2_pretrained.pth start.pth \
        --encoder_width 768        # other encoder: its side starts at random
    python tools/convert_qformer.py export exp/run/valid.loss.best.pth qformer_hf
"""

from __future__ import annotations

import argparse
import logging

import torch

from espnet2_slit.common.weights import read_weights as read_file
from espnet2_slit.model.objectives import RepresentationHeads
from espnet2_slit.model.qformer import QFormer
from espnet2_slit.model.qformer_weights import (
    ENCODER_SIDE,
    export_to_transformers,
    load_pretrained_qformer,
    our_names,
    qformer_sizes,
    read_weights,
)

QFORMER, HEADS = "qformer.", "heads."  # names in the model files of this package


def import_weights(args: argparse.Namespace) -> None:
    """Source -> state dict with the names of a RepresentationModel."""
    kind, weights = our_names(read_weights(args.source), args.modality)
    sizes = qformer_sizes(weights, args.num_heads)
    reinitialise = list(args.reinitialise)
    if args.encoder_width not in (None, sizes.get("encoder_width")):
        reinitialise += ENCODER_SIDE
    for name in ("encoder_width", "num_queries", "vocab_size", "cross_attention_every"):
        if getattr(args, name) is not None:
            sizes[name] = getattr(args, name)
    if kind == "bert" and {"encoder_width", "num_queries"} - sizes.keys():
        raise SystemExit("BERT weights need --encoder_width and --num_queries")
    torch.manual_seed(args.seed)
    qformer = QFormer(**sizes, bos_id=sizes["vocab_size"] - 1)
    heads = None
    if "heads.audio_projection.weight" in weights:
        joint_width = weights["heads.audio_projection.weight"].size(0)
        heads = RepresentationHeads(qformer.width, joint_width)
    load_pretrained_qformer(
        qformer, args.source, heads, tuple(reinitialise), args.modality
    )
    state = {QFORMER + name: t for name, t in qformer.state_dict().items()}
    if heads is not None:
        state |= {HEADS + name: t for name, t in heads.state_dict().items()}
    torch.save(state, args.output)
    logging.info("wrote %s: %d weights", args.output, len(state))


def export_weights(args: argparse.Namespace) -> None:
    """Model file of this package -> folder of transformers."""
    state = read_file(args.source)
    weights = {
        name.removeprefix(QFORMER): tensor
        for name, tensor in state.items()
        if name.startswith(QFORMER)
    }
    if not weights:
        raise SystemExit(
            f"{args.source} has no weights named {QFORMER}*; expected a model file "
            "of this package, such as valid.loss.best.pth"
        )
    sizes = qformer_sizes(weights, args.num_heads)
    if sizes.get("max_windows", 1) > 1:
        sizes["frames_per_window"] = 1  # only its shape matters here
    qformer = QFormer(**sizes, bos_id=sizes["vocab_size"] - 1)
    qformer.load_state_dict(weights)
    heads = None
    projection = state.get(f"{HEADS}audio_projection.weight")
    if projection is not None:
        heads = RepresentationHeads(qformer.width, projection.size(0))
        heads.load_state_dict(
            {
                name.removeprefix(HEADS): tensor
                for name, tensor in state.items()
                if name.startswith(HEADS)
            }
        )
    folder = export_to_transformers(qformer, args.output, heads)
    logging.info("wrote %s", folder)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("import", import_weights), ("export", export_weights)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("source")
        command.add_argument("output")
        command.add_argument(
            "--num_heads", type=int, help="attention heads; default width / 64"
        )
    command = commands.choices["import"]
    command.add_argument("--modality", default="audio", help="of X-InstructBLIP")
    command.add_argument("--encoder_width", type=int, help="of our audio encoder")
    command.add_argument("--num_queries", type=int, help="for BERT")
    command.add_argument("--cross_attention_every", type=int, help="for BERT")
    command.add_argument("--vocab_size", type=int, help="with new tokens, e.g. [DEC]")
    command.add_argument("--seed", type=int, default=0, help="of what starts at random")
    command.add_argument(
        "--reinitialise",
        nargs="*",
        default=[],
        help="patterns of our names that may start at random",
    )
    return parser


def main(cmd: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = get_parser().parse_args(cmd)
    args.function(args)


if __name__ == "__main__":
    main()
