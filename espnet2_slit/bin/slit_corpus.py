#!/usr/bin/env python3
"""Makes data directories of public corpora, and what is made from them.

python -m espnet2_slit.bin.slit_corpus esc50 --root /corpora/ESC-50 --test_fold 1
python -m espnet2_slit.bin.slit_corpus esc50 --help     the options of one corpus
python -m espnet2_slit.bin.slit_corpus instruction data/a data/b --out data/train
"""

import argparse
import inspect
import logging
import os
import re
import sys
import typing
from pathlib import Path
from typing import Any

from espnet2_slit.common.names import SAMPLE_TASKS
from espnet2_slit.common.templates import TEMPLATES
from espnet2_slit.data.clips import sample_clips
from espnet2_slit.data.corpora import (
    READERS,
    Corpus,
    CorpusError,
    Limits,
    build_sets,
    compose,
    fetch,
    hub,
    instruction,
    recipe,
    webdataset,
)
from espnet2_slit.data.corpora.espnet_recipe import FORMS, Reading, Source
from espnet2_slit.data.corpora.espnet_recipe import make_recipe_sets as recipe_sets
from espnet2_slit.data.corpora.espnet_recipe import read_recipe_set
from espnet2_slit.data.kaldi_dir import DataDirError, read_pairs


def boolean(word: str) -> bool:
    """true or false, as on ESPnet's command lines."""
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, found {word}")
    return word.lower() == "true"


def pair(word: str) -> tuple[str, str]:
    """NAME=VALUE as a pair."""
    name, equals, value = word.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {word}")
    return name, value


def reader_options(
    reader: type[Corpus],
) -> typing.Iterator[tuple[str, type, Any, str]]:
    """(name, type, default, help) of each constructor keyword after root."""
    described = dict(
        re.findall(
            r"^ {8}(\w+): (.+?)(?=^ {8}\w+:|^ {0,4}\S|\Z)",
            reader.__doc__ or "",
            re.M | re.S,
        )
    )
    hints = typing.get_type_hints(reader.__init__)
    for name, parameter in inspect.signature(reader.__init__).parameters.items():
        if name not in ("self", "root"):
            text = " ".join(described[name].split()).replace("%", "%%")
            yield name, hints[name], parameter.default, text


def get_parser() -> argparse.ArgumentParser:
    """The command line: one word a corpus, with its own options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, reader in READERS.items():
        text = inspect.getdoc(inspect.getmodule(reader)) or ""
        one = commands.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_corpus_options(one, reader)
        one.set_defaults(run=make_corpus)
    add_fetch(commands)
    add_prepare(commands)
    add_recipe(commands)
    add_recipe_sets(commands)
    add_hub(commands)
    add_instruction(commands)
    add_label_captions(commands)
    add_compose(commands)
    add_webdataset(commands)
    return parser


def add_fetch(commands: Any) -> None:
    """The command that fetches archives."""
    known = [name for name, reader in READERS.items() if reader.mirror]
    text = "fetch a corpus' archives from a public mirror, with checksums"
    one = commands.add_parser("fetch", help=text, description=f"{text}.")
    one.add_argument(
        "corpus",
        nargs="?",
        choices=known,
        help="one with published checksums; others: --md5 and --base_url",
    )
    one.add_argument("--out", type=Path, required=True, help="where the files go")
    one.add_argument(
        "--base_url",
        help="another mirror: http, https, file:// or a folder; {name} in it stands "
        "for the file, else the name is added",
    )
    one.add_argument(
        "--md5",
        type=Path,
        metavar="FILE",
        help="what to fetch and its checksums, as md5sum writes them: `<md5>  <name>`",
    )
    one.add_argument(
        "--files", default="", help="only these of them, comma-separated (default: all)"
    )
    one.add_argument("--unpack", type=boolean, default=True, help="default: true")
    one.add_argument(
        "--keep",
        type=boolean,
        default=True,
        help="keep archives that are unpacked (default: true)",
    )
    one.set_defaults(run=fetch_archives)


def add_limits(one: argparse.ArgumentParser) -> None:
    """What audio to accept."""
    limits = Limits()
    one.add_argument(
        "--min_duration", type=float, default=limits.min_duration, help="seconds"
    )
    one.add_argument(
        "--max_duration",
        type=float,
        default=limits.max_duration,
        help="seconds, 0: any",
    )
    one.add_argument(
        "--long",
        choices=("keep", "crop", "drop"),
        default=limits.long,
        help="what becomes of clips above --max_duration",
    )
    one.add_argument(
        "--no-probe",
        "--no_probe",
        dest="probe",
        action="store_false",
        help="look at sizes only, not into the files (slow file servers)",
    )
    one.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1))


def read_limits(args: argparse.Namespace) -> Limits:
    """The options of add_limits."""
    return Limits(
        args.min_duration, args.max_duration, args.long, args.probe, args.jobs
    )


def add_prepare(commands: Any) -> None:
    """The command that makes all sets of a recipe."""
    one = commands.add_parser(
        "prepare", help="all training and test sets of a recipe from several corpora"
    )
    one.add_argument(
        "--corpora", default="", help=f"to train and test on, of: {' '.join(READERS)}"
    )
    one.add_argument("--zero_shot", default="", help="to test on only, of the same")
    one.add_argument(
        "--root",
        type=pair,
        action="append",
        default=[],
        metavar="CORPUS=DIR",
        help="where a corpus is; corpora without one are an error; repeatable",
    )
    one.add_argument(
        "--set",
        type=pair,
        action="append",
        default=[],
        metavar="CORPUS.OPTION=VALUE",
        help="an option of a corpus, e.g. esc50.test_fold=2; repeatable",
    )
    one.add_argument(
        "--out", type=Path, default=Path("data"), help="parent of the sets"
    )
    one.add_argument("--presence", type=int, default=1)
    one.add_argument("--verification", type=int, default=0)
    one.add_argument("--alpha", type=float, help="see the command instruction")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument(
        "--label_captions",
        type=boolean,
        help="make captions of labels, too (default: where nothing else has captions)",
    )
    one.add_argument(
        "--keep_leaking",
        action="store_true",
        help="train on recordings that a test set has, too",
    )
    add_limits(one)
    one.set_defaults(run=prepare)


def add_reading(one: argparse.ArgumentParser) -> None:
    """How a directory of another ESPnet recipe is to be read."""
    one.add_argument("--task", choices=SAMPLE_TASKS, default="caption")
    one.add_argument(
        "--label_names", type=Path, help="lines `word name` for labels that are numbers"
    )
    one.add_argument(
        "--multi_label",
        type=boolean,
        help="true: each word of `text` is a label (as20k/cls1); false: all is one",
    )
    one.add_argument("--zero_shot", type=boolean, default=False)


def add_recipe(commands: Any) -> None:
    """The command that reads another ESPnet recipe's data directory."""
    one = commands.add_parser(
        "espnet", help="a data directory of another ESPnet recipe (text_spk1.., labels)"
    )
    one.add_argument("source", type=Path, help="the recipe's data/<set>")
    one.add_argument("--out", type=Path, required=True, help="data directory to write")
    one.add_argument("--form", choices=tuple(FORMS), default="train")
    add_reading(one)
    one.set_defaults(run=make_recipe_set)


def add_recipe_sets(commands: Any) -> None:
    """The command that makes all sets from those of other ESPnet recipes."""
    text = "all training and test sets from data directories of other ESPnet recipes"
    one = commands.add_parser("espnet_sets", help=text, description=text)
    one.add_argument("--from", dest="folder", type=Path, required=True, metavar="DIR")
    for name in ("train", "valid"):
        one.add_argument(f"--{name}", required=True, help="name of a directory there")
    one.add_argument(
        "--test", nargs="+", default=[], help="names, apart by blanks or commas"
    )
    add_reading(one)
    more = one.add_argument_group("questions of another recipe, besides these")
    more.add_argument("--questions_from", type=Path, metavar="DIR")
    more.add_argument("--questions_train", metavar="SET")
    more.add_argument("--questions_valid", metavar="SET")
    more.add_argument("--questions_test", nargs="+", default=[], metavar="SET")
    one.add_argument(
        "--out", type=Path, default=Path("data"), help="parent of the sets"
    )
    one.set_defaults(run=make_recipe_sets)


def add_hub(commands: Any) -> None:
    """The command that reads Hugging Face data sets."""
    text = "a data directory of a Hugging Face data set (by name, or on disk)"
    one = commands.add_parser("hf", help=text, description=text)
    one.add_argument("name", help="on the Hub, or a folder of save_to_disk")
    one.add_argument("--config", default="", help="where the data set has several")
    one.add_argument("--split", default="train")
    one.add_argument(
        "--streaming",
        type=boolean,
        default=True,
        help="read it as it comes; false: fetch all of it first (default: true)",
    )
    one.add_argument("--out", type=Path, required=True, help="data directory to write")
    columns = hub.Columns()
    one.add_argument("--audio_column", default=columns.audio)
    one.add_argument(
        "--text_column", default=columns.text, help="caption, answer or label"
    )
    one.add_argument("--question_column", default="")
    one.add_argument("--choices_column", default="", help="options of a question")
    one.add_argument("--category_column", default="")
    one.add_argument("--task", choices=SAMPLE_TASKS, default="caption")
    one.add_argument("--form", choices=tuple(FORMS), default="train")
    one.add_argument("--corpus", default="", help="name shown beside scores")
    one.add_argument("--limit", type=int, default=0, help="rows to read, 0: all")
    one.set_defaults(run=make_of_hub)


def make_of_hub(args: argparse.Namespace) -> None:
    """Makes a data directory of a Hugging Face data set."""
    rows = hub.hub_rows(
        args.name, args.split, args.audio_column, args.config, args.streaming
    )
    columns = hub.Columns(
        args.audio_column,
        args.text_column,
        args.question_column,
        args.choices_column,
        args.category_column,
    )
    corpus = args.corpus or Path(args.name).name
    report = hub.write_rows(
        rows, args.out, columns, args.task, args.form, corpus, args.limit
    )
    print("\n".join(report.lines()))


def add_instruction(commands: Any) -> None:
    """The command that mixes data directories into an instruction set."""
    one = commands.add_parser(
        "instruction", help="an instruction set from caption, question and label sets"
    )
    one.add_argument("sources", type=Path, nargs="+", help="data directories")
    one.add_argument("--out", type=Path, required=True, help="data directory to write")
    one.add_argument(
        "--presence", type=int, default=1, help="yes/no questions a labelled clip"
    )
    one.add_argument(
        "--verification", type=int, default=0, help="yes/no questions a caption"
    )
    one.add_argument(
        "--alpha",
        type=float,
        help="thin out and repeat so that shares are size^alpha (0.5: square root); "
        "without it ESPnet's sampler can do so every epoch, from category2utt",
    )
    one.add_argument("--size", type=int, default=0, help="samples with --alpha")
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=make_instruction)


def add_label_captions(commands: Any) -> None:
    """The command that makes sentences of labels."""
    one = commands.add_parser(
        "label_captions", help="captions of a label set, for the first two trainings"
    )
    one.add_argument("source", type=Path, help="data directory with labels in text")
    one.add_argument("--out", type=Path, required=True, help="data directory to write")
    one.set_defaults(run=make_label_captions)


def add_compose(commands: Any) -> None:
    """The command that composes scenes of labelled recordings."""
    text = "scenes of one to three labelled recordings, with captions and questions"
    one = commands.add_parser("compose", help=text, description=f"{text}.")
    one.add_argument(
        "--from",
        dest="sources",
        type=Path,
        nargs="+",
        required=True,
        metavar="SET",
        help="data directories with a label a clip in `text`; a set is composed of its"
        " own recordings alone, a scene of those of one fold",
    )
    one.add_argument("--out", type=Path, required=True, help="parent of the sets")
    for split, count in (("train", 2000), ("valid", 200), ("test", 300)):
        one.add_argument(
            f"--{split}", type=int, default=count, help=f"scenes ({count})"
        )
    one.add_argument("--wordings", type=int, default=5, help="captions a scene (5)")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument(
        "--tables",
        type=Path,
        metavar="DIR",
        help="of an earlier run: make the sound of its plans, instead of new ones",
    )
    one.set_defaults(run=make_scenes)


def add_webdataset(commands: Any) -> None:
    """The command that reads shards."""
    text = "a data directory of webdataset shards (tar archives of audio and texts)"
    one = commands.add_parser("webdataset", help=text, description=f"{text}.")
    one.add_argument("shards", nargs="+", help="paths, also {000..127}, {a,b}, *, ?")
    one.add_argument("--out", type=Path, required=True, help="data directory to write")
    one.add_argument(
        "--audio_dir", type=Path, required=True, help="where audio is copied to"
    )
    one.add_argument("--split", choices=webdataset.SPLITS, default="train")
    one.add_argument(
        "--text_keys",
        nargs="+",
        default=list(webdataset.TEXT_KEYS),
        help="of a sample's JSON, by preference",
    )
    one.add_argument("--corpus", default="", help="name shown beside scores")
    one.set_defaults(run=make_from_shards)


def add_corpus_options(one: argparse.ArgumentParser, reader: type[Corpus]) -> None:
    """Options all corpora share, then those of this reader."""
    one.add_argument("--root", type=Path, required=True, help="the corpus")
    one.add_argument(
        "--out", type=Path, default=Path("data"), help="parent of the sets"
    )
    one.add_argument(
        "--splits",
        default="",
        help=f"comma-separated, from: {', '.join(reader.splits)}",
    )
    one.add_argument(
        "--name",
        type=pair,
        action="append",
        default=[],
        metavar="SPLIT=NAME",
        help=f"name of a set, default {reader.name}_SPLIT; repeatable",
    )
    one.add_argument(
        "--audio_dir",
        type=Path,
        action="append",
        default=[],
        help="folder of audio, searched recursively; repeatable",
    )
    one.add_argument(
        "--form",
        choices=("auto", "train", "evaluation"),
        default="auto",
        help="train: one line an annotation; evaluation: one line a clip, references",
    )
    one.add_argument("--zero_shot", type=boolean, help="claim written to set.json")
    add_limits(one)
    own = one.add_argument_group(f"options of {reader.name}")
    for name, kind, default, text in reader_options(reader):
        own.add_argument(
            f"--{name}",
            type=boolean if kind is bool else kind,
            default=default,
            help=f"{text} (default: {default})",
        )


def make_corpus(args: argparse.Namespace) -> None:
    """Builds the sets of one corpus and prints their reports."""
    reader = READERS[args.command]
    options = {name: getattr(args, name) for name, *_ in reader_options(reader)}
    reports = build_sets(
        reader(args.root, **options),
        args.out,
        splits=[s for s in args.splits.split(",") if s],
        audio_dirs=args.audio_dir,
        limits=read_limits(args),
        names=dict(args.name),
        evaluation={"auto": None, "train": False, "evaluation": True}[args.form],
        zero_shot=args.zero_shot,
    )
    for report in reports:
        print(report.text())


def fetch_archives(args: argparse.Namespace) -> None:
    """Fetches, checks and unpacks; says what and how much."""
    logging.getLogger().setLevel(logging.INFO)
    mirror = READERS[args.corpus].mirror if args.corpus else None
    base_url = args.base_url or (mirror and mirror.base_url)
    md5 = fetch.read_md5(args.md5) if args.md5 else (mirror and mirror.md5)
    if not (base_url and md5):
        raise CorpusError(
            "fetch what? Name a corpus with published checksums, or give both "
            "--base_url URL and --md5 FILE"
        )
    wanted = [name for name in args.files.split(",") if name]
    unknown = [name for name in wanted if name not in md5]
    if unknown:
        raise CorpusError(
            f"--files: expected some of {', '.join(md5)}; found {', '.join(unknown)}"
        )
    md5 = {name: digest for name, digest in md5.items() if not wanted or name in wanted}
    fetch.fetch(fetch.Mirror(base_url, md5), args.out, args.unpack, args.keep)
    print(f"{args.out}: {len(md5)} files")


def open_corpora(
    names: str, roots: dict[str, str], options: dict[str, str]
) -> list[Corpus]:
    """Readers of the corpora named in a blank- or comma-separated list."""
    found = []
    for name in names.replace(",", " ").split():
        if name not in READERS:
            raise CorpusError(f"expected corpora of {', '.join(READERS)}; found {name}")
        if not roots.get(name):
            raise CorpusError(
                f"{name}: where is it? Give --root {name}=DIR, or set "
                f"{name.upper()} in db.sh or in the environment."
            )
        kinds = {n: kind for n, kind, *_ in reader_options(READERS[name])}
        given = {}
        for option, value in options.items():
            owner, _, keyword = option.partition(".")
            if owner == name:
                if keyword not in kinds:
                    raise CorpusError(
                        f"{name} has the options {', '.join(kinds) or '(none)'}; "
                        f"found {keyword}"
                    )
                kind = kinds[keyword]
                given[keyword] = boolean(value) if kind is bool else kind(value)
        found.append(READERS[name](Path(roots[name]), **given))
    return found


def prepare(args: argparse.Namespace) -> None:
    """Makes all sets of a recipe and prints their sizes."""
    roots, options = dict(args.root), dict(args.set)
    made, reports = recipe.make(
        recipe.Recipe(
            corpora=open_corpora(args.corpora, roots, options),
            zero_shot=open_corpora(args.zero_shot, roots, options),
            wording=instruction.Wording(
                TEMPLATES, args.presence, args.verification, args.seed
            ),
            alpha=args.alpha,
            label_captions=args.label_captions,
            drop_leaking=not args.keep_leaking,
            limits=read_limits(args),
        ),
        args.out,
    )
    for report in reports:
        print(report.text())
    for name, count in made.items():
        print(f"{args.out / name}: {count:,} samples")


def read_reading(args: argparse.Namespace, form: str = "train") -> Reading:
    """The options of add_reading; from here on the readers' rules are said."""
    logging.getLogger().setLevel(logging.INFO)
    names = dict(read_pairs(args.label_names)) if args.label_names else None
    return Reading(args.task, form, names, args.multi_label, args.zero_shot)


def make_recipe_set(args: argparse.Namespace) -> None:
    """Completes a data directory of another ESPnet recipe."""
    reading = read_reading(args, args.form)
    count = read_recipe_set(args.source, args.out, reading=reading)
    print(f"{args.out}: {count:,} samples of {_clips(args.out):,} clips")


def _clips(folder: Path) -> int:
    return len(set(sample_clips(folder).values()))


def make_recipe_sets(args: argparse.Namespace) -> None:
    """Makes all sets from those of other ESPnet recipes and prints their sizes."""

    def names(words: list[str]) -> list[str]:
        # quotes inside --local_data_opts reach us as signs
        return re.sub("[,\"']", " ", " ".join(words)).split()

    reading = read_reading(args)
    sources = [Source(args.folder, args.train, args.valid, names(args.test), reading)]
    given = (args.questions_from, args.questions_train, args.questions_valid)
    if any(given):
        if not all(given):
            raise CorpusError(
                "--questions_from, --questions_train and --questions_valid belong "
                "together; found only some of them."
            )
        asked = Reading("question_answering", zero_shot=args.zero_shot)
        tests = names(args.questions_test)
        sources.append(Source(given[0], given[1], given[2], tests, asked))
    made = recipe_sets(sources, args.out, instruction.Wording(TEMPLATES, presence=1))
    for name, count in made.items():
        folder = args.out / name
        print(f"{folder}: {count:,} samples of {_clips(folder):,} clips")
    if "train_caption" not in made:
        print(
            "No captions here, so the representation stage has nothing to learn from:"
            " give --train_set train_instruction --valid_set valid_instruction"
            " --skip_representation true, or captions with --from and these with"
            " --questions_from."
        )


def make_instruction(args: argparse.Namespace) -> None:
    """Mixes data directories and prints the size of each category."""
    wording = instruction.Wording(
        TEMPLATES, args.presence, args.verification, args.seed
    )
    counts = instruction.mix(args.sources, args.out, wording, args.alpha, args.size)
    total = sum(counts.values())
    print(f"{args.out}: {total:,} samples")
    for category, count in sorted(counts.items()):
        print(f"  {category:<44}{count:>10,}{count / total:>8.1%}")


def make_label_captions(args: argparse.Namespace) -> None:
    """Makes captions of labels."""
    count = instruction.caption_labels(args.source, args.out)
    print(f"{args.out}: {count:,} samples")


def make_from_shards(args: argparse.Namespace) -> None:
    """Reads shards and prints what came of them."""
    report = webdataset.make_set(
        args.shards, args.out, args.audio_dir, args.split, args.text_keys, args.corpus
    )
    print("\n".join(report.lines()))


def make_scenes(args: argparse.Namespace) -> None:
    """Composes scenes and prints what of."""
    counts = {split: getattr(args, split) for split in ("train", "valid", "test")}
    for report in compose.compose(
        args.sources, args.out, counts, args.seed, args.wordings, args.tables
    ):
        print("\n".join(report.lines()))


def main(cmd: list[str] | None = None) -> None:
    """Runs one command; a corpus that is not as expected ends with a sentence."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    args = get_parser().parse_args(cmd)
    try:
        args.run(args)
    except (CorpusError, DataDirError, ValueError, OSError) as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    main()
