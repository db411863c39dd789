#!/usr/bin/env python3
"""slit: caption, ask, classify, embed and search audio with a trained system."""

import argparse
import contextlib
import importlib
import logging
import sys
import warnings
from typing import Any, Callable, Sequence

from espnet2_slit.bin import listen, search, servers, shared, systems

# Commands with a program of their own; what follows the word goes to it unchanged.
PROGRAMS = {
    "score": ("slit_score", "score decoded test sets, or another system's predictions"),
    "compare": ("slit_compare", "compare scored systems"),
    "data": ("slit_data", "check, mend, join, cut and make data directories"),
    "corpus": ("slit_corpus", "make data directories of public corpora"),
    "encode": ("slit_encode", "cache frames of the frozen audio encoder"),
    "train": ("slit_train", "run one training (recipes call it)"),
    "decode": ("slit_inference", "decode evaluation sets"),
    "fetch": ("slit_fetch", "fetch a frozen part by a short name, with its checksums"),
    "pack": ("slit_pack", "link, pack and publish a system"),
}


def get_parser() -> argparse.ArgumentParser:
    """Command line of slit."""
    parser = argparse.ArgumentParser(
        prog="slit",
        description=__doc__,
        epilog="The model may also be given by the variable SLIT_MODEL. Exit status:"
        " 0 done, 1 something failed, 2 wrong command line.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run, parser=command)
        command.add_argument("--json", action="store_true", help="print JSON lines")
        return command

    for family in (listen, search, systems, servers):
        family.add_commands(add)
    command = add("completion", completion, "print what makes the Tab key work")
    command.add_argument("shell", choices=["bash", "zsh", "tcsh", "fish"])
    for name, (program, text) in PROGRAMS.items():
        commands.add_parser(name, help=f"{text}: see slit {name} --help ({program})")
    return parser


def completion(args: argparse.Namespace) -> int:
    """`slit completion`."""
    try:
        import shtab
    except ImportError as error:
        raise ImportError(
            "slit completion needs shtab, which is not installed."
            " Run: python -m pip install shtab"
        ) from error
    parser = get_parser()
    (choices,) = [a.choices for a in parser._actions if a.dest == "command"]
    commands: Any = choices  # name -> parser
    with contextlib.redirect_stdout(sys.stderr):  # ESPnet prints while imported
        for name, (program, _) in PROGRAMS.items():
            module = importlib.import_module(f"espnet2_slit.bin.{program}")
            commands[name] = module.get_parser()
    for command in commands.values():
        for action in command._actions:
            if action.dest in ("folder", "index"):
                action.complete = shtab.DIRECTORY
            elif action.choices is None and action.nargs != 0:
                action.complete = shtab.FILE
    print(shtab.complete(parser, args.shell))
    return 0


def main(cmd: Sequence[str] | None = None) -> int:
    """Entry point: 0 done, 1 something failed, 2 wrong command line."""
    words = list(sys.argv[1:] if cmd is None else cmd)
    if words and words[0] in PROGRAMS:
        module = importlib.import_module(f"espnet2_slit.bin.{PROGRAMS[words[0]][0]}")
        return module.main(words[1:]) or 0
    args = get_parser().parse_args([_option(word) for word in words])
    warnings.simplefilter("ignore", FutureWarning)  # torch's, of what ESPnet calls
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    # What was mended in a file, or left out, is said; the libraries' warnings are not.
    logging.getLogger("espnet2_slit").setLevel(logging.WARNING)
    try:
        if getattr(args, "files", None):
            args.files = shared.files_below(args.files)
        return args.run(args)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        logging.debug("", exc_info=True)
        print(f"slit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("slit: stopped", file=sys.stderr)
        return 130


def _option(word: str) -> str:
    """--top-k as --top_k, which ESPnet's options look like."""
    name, equals, value = word.partition("=")
    if name.startswith("--"):
        name = "--" + name[2:].replace("-", "_")
    return name + equals + value


if __name__ == "__main__":
    sys.exit(main())
