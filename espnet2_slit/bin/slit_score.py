#!/usr/bin/env python3
"""Score decoded test sets: scores.json, items.npz, RESULTS.md and an HTML report."""

import argparse
import datetime
import importlib.metadata
import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet2_slit.common.files import write_text
from espnet2_slit.scoring.controls import (
    ControlRow,
    compare_with_control,
    control_folders,
    controls_json,
    controls_markdown,
)
from espnet2_slit.scoring.examples import audio_sources
from espnet2_slit.scoring.findings import findings
from espnet2_slit.scoring.folds import average_folds
from espnet2_slit.scoring.metrics.captioning import CaptionOptions
from espnet2_slit.scoring.metrics.score_table import (
    ScoreTable,
    escape_markdown,
    markdown_tables,
    protocol_lines,
    read_scores,
    write_items,
    write_scores,
)
from espnet2_slit.scoring.read import ScoringError, decoded_sets
from espnet2_slit.scoring.report import write_report
from espnet2_slit.scoring.test_sets import score_predictions, score_set
from espnet2_slit.scoring.train_log import training_stages


def str2bool(value: str) -> bool:
    """true or false, as ESPnet's options take them."""
    if value.lower() in ("true", "1", "yes"):
        return True
    if value.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, found {value!r}")


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Score decoded test sets, or any system's predictions for them.",
        epilog="Examples: "
        "slit_score --decode_dir exp/mini_instruction/decode_mini --data_dir data; "
        "slit_score --predictions test_caption:caption=captions.txt "
        "--predictions test_caption:retrieval=embeddings.npz --data_dir data "
        "--system clap --output_dir exp/clap/scores; "
        "slit_score --folds exp/fold1/decode exp/fold2/decode --output_dir exp/folds",
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to score (one of the first three)")
    what.add_argument(
        "--decode_dir", type=Path, help="Holds one folder per decoded set"
    )
    what.add_argument(
        "--predictions",
        action="append",
        default=[],
        metavar="SET:TASK=FILE",
        help="Another system's predictions: `id text` lines (caption, "
        "question_answering, classification) or an .npz (retrieval: audio_ids, "
        "text_audio_ids and similarity, or audio and text embeddings; "
        "classification: ids, labels and scores, or audio and text embeddings) or JSON "
        'lines (moments: {"qid": id, "pred_relevant_windows": [[start, end, score], '
        "...]}). "
        "Repeatable",
    )
    what.add_argument(
        "--folds",
        nargs="+",
        type=Path,
        default=[],
        help="Directories already scored, one per fold: writes the mean",
    )
    what.add_argument(
        "--data_dir", type=Path, default=Path("data"), help="Holds the sets' data"
    )
    what.add_argument(
        "--test_sets",
        default="",
        help="Names, separated by blanks; default: every folder in --decode_dir",
    )
    what.add_argument(
        "--output_dir", type=Path, help="Default: --decode_dir; needed without it"
    )
    what.add_argument("--system", default="", help="Name in tables; default: from path")
    what.add_argument(
        "--peers",
        nargs="*",
        default=[],
        metavar="NAME=SCORES.JSON",
        help="Other systems' scores to show beside, NAME= is optional",
    )
    _add_metric_options(parser)
    return parser


def _add_metric_options(parser: argparse.ArgumentParser) -> None:
    captions = parser.add_argument_group("caption metrics")
    captions.add_argument(
        "--tokenizer",
        choices=("auto", "ptb_java", "python"),
        default="auto",
        help="auto: COCO's Java tokenizer where it runs, else Python",
    )
    captions.add_argument("--java", default="java", help="The Java executable")
    captions.add_argument("--skip_meteor", type=str2bool, default=False)
    captions.add_argument("--skip_spice", type=str2bool, default=False)
    captions.add_argument("--spice_jar", default="", help="spice-1.0.jar with lib/")
    captions.add_argument("--sbert_model", default="", help="Folder, for FENSE")
    captions.add_argument("--fluency_model", default="", help="Checkpoint, for FENSE")
    captions.add_argument(
        "--fluency_base", default="", help="Folder of the detector's BERT"
    )
    captions.add_argument("--device", default="cpu", help="For FENSE's models")
    output = parser.add_argument_group("output")
    output.add_argument("--resamples", type=int, default=1000, help="Of the bootstrap")
    output.add_argument("--seed", type=int, default=0, help="Of the bootstrap")
    output.add_argument("--report", type=str2bool, default=True, help="HTML report")
    output.add_argument(
        "--exp_dirs",
        nargs="*",
        type=Path,
        help="Training folders for learning curves; default: the experiment that holds "
        "--decode_dir and its other stages",
    )
    output.add_argument("--log_level", default="INFO")


def environment() -> dict[str, str]:
    """What the scores were made with, in the order ESPnet's RESULTS.md lists it."""

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else "not in a git checkout"

    return {
        "date": datetime.datetime.now()
        .astimezone()
        .strftime("%a %b %d %H:%M:%S %Z %Y"),
        "python version": sys.version.replace("\n", " "),
        "espnet version": f"espnet {version('espnet')}",
        "espnet2_slit version": f"espnet2_slit {version('espnet2_slit')}",
        "pytorch version": f"pytorch {version('torch')}",
        "Git hash": git("rev-parse", "HEAD"),
        "Commit date": git("log", "-1", "--format=%cd"),
    }


def parse_prediction(text: str) -> tuple[str, str, Path]:
    """SET:TASK=FILE -> (set, task, path)."""
    left, separator, path = text.partition("=")
    name, colon, task = left.rpartition(":")
    if not (separator and colon and name and path):
        raise ScoringError(
            f"--predictions: expected SET:TASK=FILE, e.g. "
            f"test_caption:caption=captions.txt; found {text!r}"
        )
    return name, task, Path(path)


def parse_peer(text: str) -> ScoreTable:
    """[NAME=]SCORES.JSON -> ScoreTable."""
    name, separator, rest = text.rpartition("=")
    path = Path(rest)
    if path.is_dir():
        path = path / "scores.json"
    if not path.is_file():
        raise ScoringError(f"--peers: expected a scores.json, found none at {path}")
    table, _ = read_scores(path)
    if separator:
        table.system = name
    return table


@dataclass
class Scored:
    """What one call has scored.

    Attributes:
        table: the scores.
        folders: {set: data directory}.
        controls: scores beside those with other audio.
    """

    table: ScoreTable
    folders: dict[str, Path] = field(default_factory=dict)
    controls: list[ControlRow] = field(default_factory=list)


def score(args: argparse.Namespace) -> Scored:
    """Fill the table.

    Raises:
        ScoringError: not one thing to score, or files that do not fit together.
    """
    chosen = [bool(args.decode_dir), bool(args.predictions), bool(args.folds)]
    if sum(chosen) != 1:
        raise ScoringError(
            "expected one of --decode_dir, --predictions and --folds, found "
            f"{sum(chosen)}"
        )
    if args.folds:
        system = args.system or args.output_dir.name
        return Scored(average_folds(args.folds, system, args.resamples, args.seed))
    options = CaptionOptions(
        tokenizer=args.tokenizer,
        java=args.java,
        meteor=not args.skip_meteor,
        spice=not args.skip_spice,
        spice_jar=args.spice_jar,
        sbert_model=args.sbert_model,
        fluency_model=args.fluency_model,
        fluency_base=args.fluency_base,
        device=args.device,
    )
    folders: dict[str, Path] = {}
    try:
        if args.predictions:
            system = args.system or args.output_dir.name
            table = ScoreTable(system, args.resamples, args.seed)
            for text in args.predictions:
                name, task, path = parse_prediction(text)
                folders[name] = existing(args.data_dir / name)
                logging.info("Scoring %s of %s from %s", task, name, path)
                score_predictions(table, folders[name], task, path, options)
            return Scored(table, folders)
        system = args.system or f"{args.decode_dir.resolve().parent.name}"
        table = ScoreTable(system, args.resamples, args.seed)
        names = args.test_sets.split() or decoded_sets(args.decode_dir)
        if not names:
            raise ScoringError(
                f"{args.decode_dir}: expected a folder for each decoded set, found none"
            )
        for name in names:
            folders[name] = existing(args.data_dir / name)
            logging.info("Scoring %s", name)
            score_set(table, folders[name], args.decode_dir / name, options)
        return Scored(table, folders, score_controls(args, table, folders, options))
    finally:
        options.close()


def score_controls(
    args: argparse.Namespace,
    table: ScoreTable,
    folders: dict[str, Path],
    options: CaptionOptions,
) -> list[ControlRow]:
    """Score the same sets as decoded with other audio, where they were."""
    rows = []
    for heard, decoded in control_folders(args.decode_dir).items():
        control = ScoreTable(heard, args.resamples, args.seed)
        for name, folder in folders.items():
            if (decoded / name).is_dir():
                logging.info("Scoring %s, heard: %s", name, heard)
                score_set(control, folder, decoded / name, options.quick())
        rows += compare_with_control(table, control, heard)
    return rows


def existing(folder: Path) -> Path:
    """The folder, or an error that lists those beside it."""
    if not folder.is_dir():
        siblings = sorted(p.name for p in folder.parent.glob("*/"))
        raise ScoringError(
            f"{folder}: expected the data of this set, found "
            f"{', '.join(siblings) or 'nothing'} in {folder.parent}; set --data_dir"
        )
    return folder


def results_markdown(
    scored: Scored,
    peers: Sequence[ScoreTable],
    command: str,
    env: dict[str, str],
    title: str,
) -> str:
    """RESULTS.md in the form of ESPnet's show_*_result.sh."""
    table = scored.table
    lines = ["<!-- Generated by espnet2_slit/bin/slit_score.py -->", "# RESULTS"]
    lines += ["## Environments"]
    for name, value in env.items():
        indent = "  " if name == "Commit date" else ""
        lines.append(f"{indent}- {name}: `{value}`")
    lines += ["", f"## {title}", "", "```sh", command, "```", ""]
    lines += [
        "**score** [95 % bootstrap interval] (chance). R@, mAP, accuracy and exact "
        "match in %.",
        "",
        markdown_tables(table, peers),
        *([controls_markdown(scored.controls)] if scored.controls else []),
        "### Protocol",
        "",
        protocol_lines(table),
        "",
    ]
    said = findings(table)
    if said:
        lines += ["### Warnings", "", *(f"- {escape_markdown(s)}" for s in said), ""]
    return "\n".join(lines)


def write_results(
    args: argparse.Namespace,
    scored: Scored,
    peers: Sequence[ScoreTable],
    command: str,
) -> None:
    """items.npz, scores.json, RESULTS.md and the report, each whole or not at all."""
    env = environment()
    title = str(args.decode_dir or args.output_dir)
    table = scored.table
    more: dict[str, Any] = {"command": command, "environment": env}
    if scored.controls:
        more["controls"] = controls_json(scored.controls)
    write_items(args.output_dir / "items.npz", table)
    write_scores(args.output_dir / "scores.json", table, **more)
    results = results_markdown(scored, peers, command, env, title)
    write_text(args.output_dir / "RESULTS.md", results)
    if args.report:
        stages = training_stages(args.decode_dir, args.exp_dirs)
        write_report(
            args.output_dir / "report" / "index.html",
            table,
            peers=peers,
            sources=audio_sources(table, scored.folders, args.decode_dir),
            decode_dir=args.decode_dir,
            stages=stages,
            environment=env | {"command": command},
        )


def main(cmd: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(
        level=args.log_level,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    words = sys.argv[1:] if cmd is None else cmd
    command = shlex.join(["python", "-m", "espnet2_slit.bin.slit_score", *words])
    if args.output_dir is None:
        if args.decode_dir is None:
            get_parser().error("--output_dir is needed without --decode_dir")
        args.output_dir = args.decode_dir
    try:
        peers = [parse_peer(text) for text in args.peers]
        scored = score(args)
    except (ValueError, OSError) as error:
        logging.error("%s", error)
        return 1
    try:
        write_results(args, scored, peers, command)
    except OSError as error:
        logging.error("%s: cannot write the results (%s)", args.output_dir, error)
        return 1
    table = scored.table
    print(markdown_tables(table, peers))
    print(controls_markdown(scored.controls), end="")
    counts = {"scores": len(table.rows), "sets": len({r.set for r in table.rows})}
    counts["not computed"] = sum(bool(r.note) for r in table.rows)
    logging.info("%s in %s", json.dumps(counts), args.output_dir)
    for sentence in findings(table):
        logging.warning("%s", sentence)
    return 0


if __name__ == "__main__":
    sys.exit(main())
