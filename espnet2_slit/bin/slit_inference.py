#!/usr/bin/env python3
"""Use a trained system: on single files, or on a whole evaluation set."""

import argparse
import contextlib
import json
import logging
import sys
from pathlib import Path

from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str2bool

TASKS = ("caption", "answer", "classify", "search")


def get_parser():
    """Command line of slit_inference."""
    parser = argparse.ArgumentParser(
        description="Caption, answer, classify or search single files (--task, files),"
        " or decode an evaluation set (--data_dir and --output_dir). A"
        " decoded set is kept; a killed run continues.",
    )
    parser.add_argument(
        "--model",
        required=True,
        help="experiment folder, archive of slit_pack, or Hugging Face repository",
    )
    group = parser.add_argument_group("single files")
    group.add_argument("--task", choices=TASKS, help="what to do with the files")
    group.add_argument(
        "files", nargs="*", help="audio of any format, rate and channels"
    )
    group.add_argument("--question", help="for answer")
    group.add_argument("--text", help="for search")
    group.add_argument("--instruction", help="other wording than the default")
    group.add_argument(
        "--labels",
        nargs="+",
        default=[],
        help="for classify, and for answer to choose among; or one file with a label"
        " on each line",
    )
    group.add_argument(
        "--route",
        choices=["similarity", "matching", "language_model"],
        help="how labels are scored (default: similarity if the system has that part)",
    )
    group.add_argument("--top_k", type=int, default=10, help="results of a search")
    group.add_argument("--json", action="store_true", help="print JSON, a line a file")
    group = parser.add_argument_group("evaluation set")
    group.add_argument(
        "--data_dir", nargs="+", help="the sets, with or without cached features"
    )
    group.add_argument("--output_dir", nargs="+", help="where each set's results go")
    group.add_argument(
        "--audio",
        choices=["auto", "features", "waveform"],
        default="auto",
        help="auto: cached features where feats.json is there",
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
    group.add_argument(
        "--log_level", type=str.upper, help="default: INFO for sets, WARNING for files"
    )
    return parser


def check(parser, args):
    """Options that need or exclude each other; ends with status 2."""
    if bool(args.task) == bool(args.data_dir):
        parser.error("give either --task and files, or --data_dir and --output_dir")
    if len(args.data_dir or []) != len(args.output_dir or []):
        parser.error("--data_dir needs as many --output_dir")
    if args.task and not args.files:
        parser.error(f"--task {args.task} needs audio files")
    if args.task == "answer" and not args.question:
        parser.error("--task answer needs --question")
    if args.task == "classify" and not args.labels:
        parser.error("--task classify needs --labels")
    if args.task == "search" and not args.text:
        parser.error("--task search needs --text")
    if not 1 <= args.job <= args.num_jobs:
        parser.error(f"--job {args.job}: expected a number from 1 to {args.num_jobs}")


def device_of(args):
    """CPU, or this job's GPU where several jobs share a machine."""
    if not args.ngpu:
        return "cpu"
    import torch

    return f"cuda:{(args.job - 1) % max(torch.cuda.device_count(), 1)}"


def labels_of(values):
    """Labels from the command line, or from the lines of one file."""
    if len(values) == 1 and Path(values[0]).is_file():
        from espnet2_slit.common.files import read_lines

        return read_lines(values[0])
    return values


def load(args):
    """The system and how to decode; costs seconds to import, so not for --help."""
    from espnet2_slit.inference.decoding import DecodeOptions
    from espnet2_slit.inference.slit import SLIT

    options = DecodeOptions.from_config(
        args.config,
        caption=args.caption,
        question_answering=args.question_answering,
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
    """Decode evaluation sets one after the other."""
    from espnet2_slit.inference.decoding import decode_set

    for data_dir, output_dir in zip(args.data_dir, args.output_dir, strict=True):
        done = decode_set(
            slit,
            data_dir,
            output_dir,
            options,
            args.audio,
            args.job,
            args.num_jobs,
            args.merge,
        )
        if done is not None:
            logging.info("%s: complete (%s)", output_dir, ", ".join(done["tasks"]))


def run_files(slit, args, options):
    """(files, results) of the task, best first for a search."""
    files, labels = args.files, labels_of(args.labels)
    if args.task == "caption":
        results = slit.caption(
            files, instruction=args.instruction, options=options.generation("caption")
        )
    elif args.task == "answer":
        results = slit.answer(
            files,
            args.question,
            candidates=labels or None,
            options=options.generation("question_answering"),
        )
    elif args.task == "classify":
        default = "similarity" if slit.representation else "language_model"
        found = slit.classify(
            files,
            labels,
            route=args.route or default,
            label_templates=options.label_templates,
            instruction=args.instruction,
        )
        if args.json:
            results = [{"label": one.label, "scores": one.scores} for one in found]
        else:
            results = [one.label for one in found]
    else:
        hits = slit.search(args.text, files, top_k=args.top_k, rerank=options.rerank)
        files = [files[hit.index] for hit in hits]
        results = [round(hit.score, 4) for hit in hits]
    return files, results


def print_results(args, files, results):
    """A line for each file: its name, if there are several, and the result."""
    for file, result in zip(files, results, strict=True):
        if args.json:
            print(json.dumps({"file": file, args.task: result}, ensure_ascii=False))
        elif len(files) == 1 and args.task != "search":
            print(result)
        else:
            print(f"{file}\t{result}")


def main(cmd=None):
    """Entry point: 0 done, 1 bad input or model, 2 wrong command line."""
    parser = get_parser()
    args = parser.parse_args(cmd)
    check(parser, args)
    logging.basicConfig(
        level=args.log_level or ("INFO" if args.data_dir else "WARNING"),
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    try:
        # Whatever libraries print while they load, standard output is for results.
        with contextlib.redirect_stdout(sys.stderr):
            slit, options = load(args)
            if args.data_dir:
                run_sets(slit, args, options)
                return 0
            files, results = run_files(slit, args, options)
    except (ValueError, OSError, RuntimeError) as error:
        logging.debug("", exc_info=True)
        print(f"slit_inference: {error}", file=sys.stderr)
        return 1
    print_results(args, files, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
