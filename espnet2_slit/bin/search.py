"""Commands of `slit` that find audio by a text: files, or moments in them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable

from espnet2_slit.bin import shared

if TYPE_CHECKING:
    from espnet2_slit.inference.search_index import IndexReport, SearchIndex
    from espnet2_slit.inference.slit import SLIT


def add_commands(add: shared.Add) -> None:
    """Their options."""
    command = add("index", index, "embed a folder of audio, for search")
    command.add_argument("folder")
    command.add_argument("--index", help="where it is kept (FOLDER/.slit_index)")
    command.add_argument(
        "--rebuild", action="store_true", help="also another model's index"
    )
    shared.add_model(command)

    command = add("search", search, "find the audio that a text describes")
    command.add_argument("text")
    command.add_argument("folder", help="of audio; indexed first where it is not yet")
    command.add_argument("--index", help="where the index is (FOLDER/.slit_index)")
    command.add_argument("--top_k", type=shared.positive, default=10)
    command.add_argument(
        "--rerank",
        type=int,
        default=0,
        help="best candidates that the matching head listens to again (0: none)",
    )
    command.add_argument(
        "--moments", action="store_true", help="where in the files, not which files"
    )
    shared.add_model(command)

    command = add(
        "moments", moments, "find when in audio, of any length, a text is true"
    )
    command.add_argument("text")
    shared.add_files(command)
    command.add_argument(
        "--top_k", type=shared.positive, default=10, help="of all files"
    )
    command.add_argument(
        "--window_s",
        type=shared.seconds,
        nargs="+",
        help="lengths of the windows that are compared (2.5 5 10)",
    )
    shared.add_model(command)


def update_index(
    args: argparse.Namespace, slit: SLIT, rebuild: bool = False
) -> tuple[SearchIndex, IndexReport]:
    """Bring an index up to date: (index, report)."""
    from espnet2_slit.inference.search_index import DEFAULT_NAME, SearchIndex

    found = SearchIndex(args.index or Path(args.folder).expanduser() / DEFAULT_NAME)
    shown: Any = None

    def progress(done: int, total: int) -> None:
        nonlocal shown
        if shown is None:
            shown = shared.bar(total)
        shown.update(done - shown.n)

    try:
        return found, found.update(slit, args.folder, rebuild, progress)
    finally:
        if shown is not None:
            shown.close()


def index(args: argparse.Namespace) -> int:
    """`slit index`."""
    slit = shared.load(args)
    found, report = update_index(args, slit, args.rebuild)
    if args.json:
        print(json.dumps({"index": str(found.path), **vars(report)}))
    else:
        print(
            f"{found.path}: {report.kept + report.added} clips ({report.kept} kept,"
            f" {report.added} added, {report.removed} removed,"
            f" {len(report.skipped)} unreadable)"
        )
    return 1 if report.skipped and not report.kept + report.added else 0


def search(args: argparse.Namespace) -> int:
    """`slit search`."""
    slit = shared.load(args)
    found, _ = update_index(args, slit)
    hits = found.search(slit, args.text, args.top_k, args.rerank, args.moments)
    print_hits(args, hits, args.moments)
    return 0


def print_hits(args: argparse.Namespace, hits: Iterable[Any], places: bool) -> None:
    """A line for each hit, with its place in the file where wanted."""
    for hit in hits:
        if args.json:
            row = {"file": hit.item, "score": hit.score}
            row |= {"start_s": hit.start_s, "end_s": hit.end_s}
            print(json.dumps(row, ensure_ascii=False))
        else:
            place = f"\t{shared.times(hit.start_s, hit.end_s)}" if places else ""
            print(f"{hit.score:.4f}\t{hit.item}{place}")


def moments(args: argparse.Namespace) -> int:
    """`slit moments`."""
    from espnet2_slit.inference.windows import MOMENT_WINDOWS_S

    slit = shared.load(args)
    window_s = args.window_s or MOMENT_WINDOWS_S
    # One file at a time: each may be an hour long.
    pairs = shared.in_steps(
        args.files,
        1,
        lambda some: [
            slit.moments(args.text, file, top_k=args.top_k, window_s=window_s)
            for file in some
        ],
    )
    hits, done = [], 0
    for _, found in pairs:
        done += 1
        hits = sorted(hits + found, key=lambda hit: -hit.score)[: args.top_k]
    print_hits(args, hits, True)
    return 0 if done == len(args.files) else 1
