"""Data directories on the command line: check, mend, join, cut, make, prepare."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from espnet2_slit.common.files import write_json
from espnet2_slit.data import edit, kaldi_dir, validate
from espnet2_slit.data.kaldi_dir import DataDirError
from espnet2_slit.data.report import Report


def get_parser() -> argparse.ArgumentParser:
    """Command line of slit_data."""
    parser = argparse.ArgumentParser(
        prog="slit_data",
        description="Kaldi-style data directories: a line per sample, sorted bytewise.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    command = add("validate", _validate, "Check directories; names all that is wrong.")
    command.add_argument("directories", nargs="+", type=Path)
    command.add_argument("--no-text", action="store_true", help="text may be missing")

    command = add("fix", _fix, "Sort, drop repeated and broken lines, agree on ids.")
    command.add_argument("directories", nargs="+", type=Path)

    command = add("combine", _combine, "Join directories into one.")
    command.add_argument("target", type=Path)
    command.add_argument("sources", nargs="+", type=Path)

    command = add("subset", _subset, "Take a part; samples of one clip stay together.")
    command.add_argument("source", type=Path)
    command.add_argument("target", type=Path)
    command.add_argument("--count", type=int, help="clips to take: the first ones")
    command.add_argument("--seed", type=int, help="take random ones")
    command.add_argument(
        "--ids", type=Path, help="file with sample or clip ids to take"
    )
    command.add_argument("--exclude", type=Path, help="file with ids to leave out")

    command = add("split", _split, "Cut into near-equal parts TARGET/1, TARGET/2, ...")
    command.add_argument("source", type=Path)
    command.add_argument("target", type=Path)
    command.add_argument("--parts", type=int, required=True)

    command = add(
        "from_manifest", _from_manifest, "Make directories of a CSV or JSONL."
    )
    command.add_argument(
        "manifest", type=Path, help="audio,text[,instruction,task,...]"
    )
    command.add_argument(
        "target", type=Path, help="folder of the directories, e.g. data"
    )
    command.add_argument("--corpus", default="", help="name shown beside scores")
    command.add_argument(
        "--language",
        default="en",
        help="of texts and questions: wording of instructions, and which scores there"
        " are; espnet2_slit/common/wordings has those that are known",
    )
    command.add_argument("--valid-fraction", type=float, default=0.05)
    command.add_argument("--test-fraction", type=float, default=0.1)
    command.add_argument("--seed", type=int, default=0, help="of the drawn splits")

    _prepare_options(
        add("prepare", _prepare, "Check all audio, convert what does not fit.")
    )
    _leakage_options(
        add("leakage", _leakage, "Clips that are both trained and scored on.")
    )

    command = add(
        "list", _list, "Names of the directories of one split below a folder."
    )
    command.add_argument("folder", type=Path)
    command.add_argument("--split", choices=["train", "valid", "test"])
    return parser


def _prepare_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "sets",
        nargs="+",
        type=Path,
        metavar="SET",
        help="data directories, with --out; or one and its target, e.g. dump/raw/SET",
    )
    command.add_argument("--out", type=Path, help="folder of the targets: dump/raw")
    command.add_argument(
        "--leakage",
        choices=("report", "stop", "ignore"),
        default="ignore",
        help="compare training with test sets (with --out); the findings go to"
        " leakage.json beside --out",
    )
    command.add_argument(
        "--train",
        nargs="*",
        default=None,
        metavar="NAME",
        help="training sets of --leakage (default: those whose set.json says train)",
    )
    command.add_argument(
        "--test", nargs="*", default=None, metavar="NAME", help="likewise, test sets"
    )
    command.add_argument("--sample-rate", type=int, default=16000)
    command.add_argument("--min-duration-s", type=float, default=0.05)
    command.add_argument(
        "--max-duration-s", type=float, default=0.0, help="0: no limit"
    )
    command.add_argument("--check", choices=["full", "header"], default="full")
    command.add_argument("--audio-format", choices=["flac", "wav"], default="flac")
    command.add_argument("--audio-dir", type=Path, help="of converted clips")
    command.add_argument("--nj", type=int, default=os.cpu_count())


def _leakage_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--train", nargs="+", type=Path, required=True)
    command.add_argument("--test", nargs="+", type=Path, required=True)
    command.add_argument("--report", type=Path, help="write the findings as JSON")
    command.add_argument(
        "--fail",
        choices=("any", "zero_shot", "never"),
        default="any",
        help="what ends with status 1: any overlap, a broken zero-shot claim, nothing",
    )
    command.add_argument(
        "--drop",
        type=Path,
        metavar="DIR",
        help="write the training directories without these samples to DIR/<name>",
    )


def _validate(args: argparse.Namespace) -> int:
    for directory in args.directories:
        count = validate.validate(directory, require_text=not args.no_text)
        print(f"{directory}: valid, {count:,} samples")
    return 0


def _show(report: Report) -> int:
    print("\n".join(report.lines()), flush=True)
    return 0


def _fix(args: argparse.Namespace) -> int:
    for directory in args.directories:
        _show(edit.fix(directory))
    return 0


def _combine(args: argparse.Namespace) -> int:
    return _show(edit.combine(args.target, args.sources))


def _ids(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    return [key for key, _ in kaldi_dir.read_pairs(path)]


def _subset(args: argparse.Namespace) -> int:
    ids, exclude = _ids(args.ids), _ids(args.exclude)
    return _show(
        edit.subset(args.source, args.target, args.count, ids, exclude, args.seed)
    )


def _split(args: argparse.Namespace) -> int:
    for part in edit.split(args.source, args.target, args.parts):
        print(part)
    return 0


def _from_manifest(args: argparse.Namespace) -> int:
    from espnet2_slit.common import templates
    from espnet2_slit.data import manifest

    report = manifest.from_manifest(
        args.manifest,
        args.target,
        functools.partial(templates.instruction, language=args.language),
        args.corpus,
        (args.valid_fraction, args.test_fraction),
        args.seed,
        args.language,
    )
    report.write(args.target / "manifest_report.json")
    return _show(report)


def _prepare(args: argparse.Namespace) -> int:
    """Several sets in one process, or one with its target.

    slit_data prepare data/train data/test --out dump/raw --leakage report
    slit_data prepare data/train dump/raw/train
    """
    from espnet2_slit.data import prepare

    if args.out is None and len(args.sets) != 2:
        raise DataDirError(
            f"prepare: expected SOURCE TARGET, or sets with --out DIR (dump/raw); found"
            f" {len(args.sets)} directories."
        )
    options = prepare.Options(
        args.sample_rate,
        args.min_duration_s,
        args.max_duration_s,
        args.check,
        args.audio_format,
    )
    pairs = [(args.sets[0], args.sets[-1])]
    if args.out is not None:
        _check_sources(args.sets)
        pairs = [(source, args.out / source.name) for source in args.sets]
    reports = prepare.prepare_sets(pairs, options, args.audio_dir, args.nj)
    for report, (source, target) in zip(reports, pairs, strict=True):
        validate.validate(target, require_text=(source / "text").is_file())
        _show(report)
    if args.leakage == "ignore" or args.out is None:
        return 0
    targets = [target for _, target in pairs]
    train, test = _of_split(targets, args.train, args.test)
    overlapping = _compare(train, test, args.out.parent / "leakage.json")
    print(
        f"{overlapping} of {len(train) * len(test)} pairs of training and test"
        " directories overlap"
    )
    if overlapping and args.leakage == "stop":
        raise DataDirError(
            "training and test sets overlap, see above. `slit_data leakage --drop DIR`"
            " writes the training sets without these clips."
        )
    return 0


def _of_split(
    targets: list[Path], train: list[str] | None, test: list[str] | None
) -> tuple[list[Path], list[Path]]:
    """Training and test sets, by the names given or by what set.json says."""
    found = []
    for split, names in (("train", train), ("test", test)):
        if names is None:
            found.append([t for t in targets if kaldi_dir.split_of(t) == split])
        else:
            found.append([t for t in targets if t.name in names])
    return found[0], found[1]


def _compare(train: list[Path], test: list[Path], report: Path | None) -> int:
    """Prints what training and test sets share; returns how many pairs do."""
    from espnet2_slit.data.corpora import leakage

    rows = leakage.find_overlaps(train, test)
    for row in rows:
        print(row.line())
    if report:
        write_json(report, [asdict(row) for row in rows])
    return sum(bool(row.samples) for row in rows)


def _check_sources(sources: list[Path]) -> None:
    """All sets are there and complete, before the audio of the first is checked."""
    for folder in sources:
        if not (folder / "wav.scp").is_file():
            there = sorted(p.parent.name for p in folder.parent.glob("*/wav.scp"))
            raise DataDirError(
                f"{folder}: expected a data directory with wav.scp. There are "
                f"{', '.join(there) or 'none'}; slit.sh chooses among them by "
                "--train_set, --valid_set and --test_sets."
            )
        if (folder / "text_spk1").is_file() and not (folder / "text").is_file():
            raise DataDirError(
                f"{folder} has text_spk1, ... and no text, as other ESPnet recipes "
                f"keep captions. `slit corpus espnet {folder} --out DIR` completes it "
                "(--form evaluation: to score with); "
                f"in a recipe, --local_data_opts 'espnet --from {folder.parent} --train"
                f" SET --valid SET --test {folder.name}' (local/espnet_data.sh --help)."
            )
        if not any((folder / name).is_file() for name in ("text", "references")):
            raise DataDirError(
                f"{folder} has no text and no references: nothing to learn or score. "
                "asr.sh leaves text_spk1, ... out of dump/raw; take the recipe's "
                "data/, or leave the set out."
            )


def _leakage(args: argparse.Namespace) -> int:
    from espnet2_slit.data.corpora import leakage

    rows = leakage.find_overlaps(list(dict.fromkeys(args.train)), args.test)
    for row in rows:
        print(row.line())
    if args.report:
        facts = [asdict(row) for row in rows]
        write_json(args.report, facts)
    if args.drop is not None:
        for folder in args.train:
            shared = {key for r in rows if r.train == str(folder) for key in r.samples}
            _show(edit.subset(folder, args.drop / folder.name, exclude=shared))
        return 0
    wrong = [
        row
        for row in rows
        if row.samples and (row.zero_shot or args.fail != "zero_shot")
    ]
    print(f"{len(wrong)} of {len(rows)} pairs of training and test directories overlap")
    if wrong:
        print("`slit data leakage --drop DIR` writes the training sets without these")
    return 1 if wrong and args.fail != "never" else 0


def _list(args: argparse.Namespace) -> int:
    if not args.folder.is_dir():
        raise DataDirError(f"{args.folder}: no such folder of data directories.")
    found = (path.parent.name for path in args.folder.glob("*/wav.scp"))
    names = sorted(name for name in found if name[0] != ".")  # unfinished ones
    for name in names:
        if args.split in (None, kaldi_dir.split_of(args.folder / name)):
            print(name)
    return 0


def main(cmd: list[str] | None = None) -> int:
    """Run a command; a directory that is not in order ends with code 1.

    Args:
        cmd: arguments; None: those of the process.

    Returns:
        Exit code.
    """
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        return args.run(args)
    except (DataDirError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"Error: {where}{error.strerror or error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
