#!/usr/bin/env python3
"""Decode evaluation sets with a trained system (single files: slit caption, ...)."""

import argparse
import contextlib
import logging
import sys
from pathlib import Path

from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str2bool


def get_parser():
    """Command line of slit_inference."""
    parser = argparse.ArgumentParser(
        description="Decode evaluation sets: captions, answers, scores of labels, and"
        " similarities. A decoded set is kept; a killed run continues. For single files"
        " use slit caption, slit ask, slit classify or slit search.",
    )
    parser.add_argument(
        "--model",
        required=True,
        help="experiment folder, archive of slit_pack, or Hugging Face repository",
    )
    group = parser.add_argument_group("evaluation set")
    group.add_argument(
        "--data_dir",
        nargs="+",
        required=True,
        help="the sets, with or without cached features",
    )
    group.add_argument(
        "--output_dir", nargs="+", required=True, help="where each set's results go"
    )
    group.add_argument(
        "--audio",
        choices=["auto", "features", "waveform"],
        default="auto",
        help="auto: cached features where feats.json is there",
    )
    group.add_argument(
        "--control",
        nargs="+",
        default=[],
        choices=["silence", "noise", "shuffled"],
        help="decode each set again with other audio in place of its own, into"
        " control_<name> beside it; slit_score then shows what listening adds",
    )
    group.add_argument("--job", type=int, default=1, help="number of this job, from 1")
    group.add_argument(
        "--num_jobs", type=int, default=1, help="jobs that share the set"
    )
    group.add_argument(
        "--merge",
        type=str2bool,
        default=None,
        help="join what the jobs wrote (one job alone does it itself)",
    )
    group = parser.add_argument_group("decoding; these come before --config")
    group.add_argument("--config", help="YAML, e.g. conf/decode.yaml")
    for task in ("caption", "question_answering"):
        group.add_argument(
            f"--{task}",
            action=NestedDictAction,
            default=None,
            help="e.g. num_beams=1 max_new_tokens=30",
        )
    group.add_argument(
        "--choice_orders",
        type=int,
        help="orders in which the options of questions with choices are shown",
    )
    group.add_argument("--rerank", type=int, help="candidates for the matching head")
    group.add_argument(
        "--rerank_scale",
        type=float,
        help="of the cosine that is added to the matching logit",
    )
    group.add_argument("--seed", type=int, help="for sampling")
    group.add_argument("--batch_size", type=int, default=16, help="clips in a batch")
    group.add_argument("--ngpu", type=int, default=0, help="0: CPU")
    group.add_argument("--audio_encoder", help="its weights, if they have moved")
    group.add_argument("--language_model", help="its folder, if it has moved")
    group.add_argument("--qformer_tokenizer", help="its folder, if it has moved")
    group.add_argument("--log_level", type=str.upper, default="INFO")
    return parser


def check(parser, args):
    """Options that need or exclude each other; ends with status 2."""
    if len(args.data_dir) != len(args.output_dir):
        parser.error("--data_dir needs as many --output_dir")
    if not 1 <= args.job <= args.num_jobs:
        parser.error(f"--job {args.job}: expected a number from 1 to {args.num_jobs}")


def device_of(args):
    """CPU, or this job's GPU where several jobs share a machine."""
    if not args.ngpu:
        return "cpu"
    import torch

    return f"cuda:{(args.job - 1) % max(torch.cuda.device_count(), 1)}"


def load(args):
    """The system and how to decode; costs seconds to import, so not for --help."""
    from espnet2_slit.inference.decode_options import DecodeOptions
    from espnet2_slit.inference.slit import SLIT

    options = DecodeOptions.from_config(
        args.config,
        caption=args.caption,
        question_answering=args.question_answering,
        choice_orders=args.choice_orders,
        rerank=args.rerank,
        rerank_scale=args.rerank_scale,
        seed=args.seed,
    )
    slit = SLIT.from_pretrained(
        args.model,
        device=device_of(args),
        batch_size=args.batch_size,
        audio_encoder=args.audio_encoder,
        language_model=args.language_model,
        qformer_tokenizer=args.qformer_tokenizer,
    )
    return slit, options.of_system(slit)


def run_sets(slit, args, options):
    """Decode evaluation sets one after the other.

    Raises:
        InferenceError: the system can do none of the tasks of all of them.
    """
    from espnet2_slit.inference.decoding import decode_set
    from espnet2_slit.inference.requests import InferenceError
    from espnet2_slit.scoring.controls import control_folder

    decoded = []
    for data_dir, output_dir in zip(args.data_dir, args.output_dir, strict=True):
        own = Path(output_dir)
        folders = {"": own}
        for heard in args.control:
            folders[heard] = control_folder(own.parent, heard) / own.name
        for heard, folder in folders.items():
            done = decode_set(
                slit,
                data_dir,
                folder,
                options,
                args.audio,
                args.job,
                args.num_jobs,
                args.merge,
                heard,
            )
            decoded.append(done)
            if done is not None:
                tasks = ", ".join(done["tasks"]) or "none of its tasks"
                logging.info("%s: complete (%s)", folder, tasks)
    if not any(done is None or done["tasks"] for done in decoded):
        names = ", ".join(map(str, args.data_dir))
        why = {
            task: why for done in decoded for task, why in done["not_decoded"].items()
        }
        raise InferenceError(f"{names}: the system can do none of their tasks: {why}")


def main(cmd=None):
    """Entry point: 0 done, 1 bad input or model, 2 wrong command line."""
    parser = get_parser()
    args = parser.parse_args(cmd)
    check(parser, args)
    logging.basicConfig(
        level=args.log_level,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    try:
        # Whatever libraries print while they load, this command writes files alone.
        with contextlib.redirect_stdout(sys.stderr):
            slit, options = load(args)
            run_sets(slit, args, options)
    except (ValueError, OSError, RuntimeError) as error:
        logging.debug("", exc_info=True)
        print(f"slit_inference: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
