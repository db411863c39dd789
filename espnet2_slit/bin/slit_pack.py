#!/usr/bin/env python3
"""Link experiments to a system, pack it, publish it."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet2.utils.types import str2bool

from espnet2_slit.inference.pack import pack, publish
from espnet2_slit.inference.system import link


def get_parser() -> argparse.ArgumentParser:
    """Command line of slit_pack."""
    parser = argparse.ArgumentParser(
        description="--link FOLDER: write slit.json, which names the trained parts of"
        " a system. --exp FOLDER --outpath FILE: pack it into an archive of ESPnet's"
        " model zoo. --exp FOLDER --upload NAME: publish it on Hugging Face, or in an"
        " existing empty folder.",
    )
    parser.add_argument("--link", metavar="FOLDER", help="where slit.json goes")
    parser.add_argument("--representation", metavar="EXP", help="representation model")
    parser.add_argument(
        "--generator", metavar="EXP", help="generative or instruction model"
    )
    parser.add_argument(
        "--model_file", default="", help="weights in both (default: the best there is)"
    )
    parser.add_argument("--exp", metavar="FOLDER", help="system to pack or publish")
    parser.add_argument("--outpath", metavar="FILE", help="archive, .zip or .tgz")
    parser.add_argument(
        "--upload", metavar="NAME", help="owner/name, or an existing empty folder"
    )
    parser.add_argument("--private", type=str2bool, default=False)
    parser.add_argument(
        "--include_frozen",
        type=str2bool,
        default=False,
        help="pack the frozen encoder and language model too, so that the archive"
        " needs nothing else; mind their licences and size",
    )
    parser.add_argument(
        "--option", nargs="*", default=[], metavar="FILE", help="more files to pack"
    )
    parser.add_argument(
        "--licence", default="", help="of the trained weights, SPDX name"
    )
    parser.add_argument("--licence_file", help="its text, packed as LICENSE")
    parser.add_argument("--name", default="", help="for the model card")
    parser.add_argument(
        "--datasets",
        nargs="*",
        default=[],
        help="names on the Hugging Face Hub of what it was trained on",
    )
    parser.add_argument("--card", default="", help="opening text of the model card")
    return parser


def results_of(folder: str) -> list[Path]:
    """RESULTS.md of an experiment: its own, or that of its newest decoding."""
    found = [*Path(folder).glob("RESULTS.md"), *Path(folder).glob("*/RESULTS.md")]
    return sorted(found, key=lambda path: path.stat().st_mtime)[-1:]


def pack_as_asked(args: argparse.Namespace, outpath: str) -> None:
    """Pack as the command line says."""
    pack(
        args.exp,
        outpath,
        include_frozen=args.include_frozen,
        results=[*results_of(args.exp), *args.option],
        licence=args.licence,
        licence_file=args.licence_file,
        name=args.name,
        card=args.card,
        datasets=args.datasets,
    )
    size = Path(outpath).stat().st_size
    logging.info("packed %s (%.1f MB)", outpath, size / 1e6)


def main(cmd: Sequence[str] | None = None) -> int:
    """Entry point: 0 done, 1 bad input, 2 wrong command line."""
    parser = get_parser()
    args = parser.parse_args(cmd)
    if not args.link and not (args.exp and (args.outpath or args.upload)):
        parser.error("give --link FOLDER, or --exp FOLDER with --outpath or --upload")
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    try:
        if args.link:
            experiments = [e for e in (args.representation, args.generator) if e]
            path = link(args.link, experiments, args.model_file)
            logging.info("wrote %s", path)
        if args.outpath:
            pack_as_asked(args, args.outpath)
        if args.upload:
            archive = args.outpath or str(Path(args.exp) / ".upload.zip")
            try:
                if not args.outpath:
                    pack_as_asked(args, archive)
                place = publish(archive, args.upload, args.private)
            finally:
                if not args.outpath:
                    Path(archive).unlink(missing_ok=True)
            logging.info("published: %s", place)
    except (ValueError, OSError) as error:
        logging.debug("", exc_info=True)
        print(f"slit_pack: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
