#!/usr/bin/env python3
"""Fetch a frozen part by a short name, with its licence and checksums."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet2_slit.common import hub


def get_parser() -> argparse.ArgumentParser:
    """Command line of slit fetch."""
    parser = argparse.ArgumentParser(
        prog="slit fetch",
        description=f"{__doc__} What was fetched is written to {hub.SOURCE} beside it.",
        epilog="HF_ENDPOINT names a mirror of the Hugging Face Hub. Exit status: 0"
        " done, 1 something failed, 2 wrong command line.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="of --list, or a repository owner/name"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of one part (default: downloads/NAME)"
    )
    parser.add_argument(
        "--revision", help="branch, tag or commit (default: the newest, or the table's)"
    )
    parser.add_argument("--list", action="store_true", help="show the short names")
    parser.add_argument(
        "--about",
        action="store_true",
        help="show size, licence and checksums of NAME or of a folder, fetch nothing",
    )
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    return parser


def show_table(as_json: bool) -> None:
    """Print the short names, what they stand for, and the options that take them."""
    width = max(map(len, hub.PARTS))
    for name, part in hub.PARTS.items():
        if as_json:
            use = part.use.partition(" ")[0]
            row = {"name": name, "repository": part.repository, "use": use}
            print(json.dumps(row))
        else:
            print(f"{name:{width}}  {part.repository}  ({part.use.split('{')[0]}...)")


def show_about(name: str, as_json: bool) -> int:
    """Print what a part is; the exit status."""
    try:
        facts = hub.about(name)
    except (hub.HubError, OSError) as error:
        print(f"slit fetch: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps({"name": name, **facts}, ensure_ascii=False))
        return 0
    sums = ", ".join(digest or "not stated" for digest in facts["sha256"])
    print(
        f"{name}, {facts['bytes'] / 1e6:,.0f} MB, licence {facts['licence']},"
        f" {facts['where']}, sha256 {sums}"
    )
    return 0


def main(cmd: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = get_parser()
    args = parser.parse_args(cmd)
    if args.list:
        show_table(args.json)
        return 0
    if not args.names:
        parser.error("give a NAME, or --list")
    if args.out and len(args.names) > 1:
        parser.error("--out takes one NAME")
    status = 0
    for name in args.names:
        if args.about:
            status |= show_about(name, args.json)
            continue
        out = args.out or Path("downloads") / name.rpartition("/")[2]
        try:
            facts = hub.fetch(
                name, out, args.revision, lambda line: print(line, file=sys.stderr)
            )
        except (hub.HubError, OSError) as error:
            print(f"slit fetch: {error}", file=sys.stderr)
            status = 1
            continue
        if args.json:
            print(json.dumps({"folder": str(out), **facts}, ensure_ascii=False))
        else:
            print(f"{out}: licence {facts['licence']}")
            if facts["use"]:
                print(f"  {facts['use']}")
    return status


if __name__ == "__main__":
    sys.exit(main())
