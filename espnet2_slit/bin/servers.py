"""Commands of `slit` that keep running for others: a page, HTTP, tools."""

import argparse
import contextlib
import os
import sys

from espnet2_slit.bin import shared


def add_commands(add: shared.Add) -> None:
    """Their options."""
    command = add("demo", demo, "a page to try a system in the browser (extra: demo)")
    command.add_argument("--folder", help="of audio, to be searched from the page")
    command.add_argument("--host", default="127.0.0.1", help="0.0.0.0: whole network")
    command.add_argument("--port", type=int, default=7860)
    shared.add_model(command)

    command = add("serve", serve, "an HTTP server of a system (extra: serve)")
    command.add_argument("--folder", help="of audio, to be searched")
    command.add_argument("--host", default="127.0.0.1", help="0.0.0.0: whole network")
    command.add_argument("--port", type=int, default=8000)
    command.add_argument(
        "--token",
        default=os.environ.get("SLIT_TOKEN", ""),
        help="that requests must bear (better by the variable SLIT_TOKEN)",
    )
    command.add_argument(
        "--max_mb", type=shared.seconds, default=100.0, help="of a request"
    )
    command.add_argument(
        "--max_seconds",
        type=shared.seconds,
        default=3600.0,
        help="of an upload's audio",
    )
    command.add_argument(
        "--max_waiting", type=shared.positive, default=256, help="requests in the queue"
    )
    shared.add_model(command)

    command = add("mcp", mcp, "tools for assistants on this machine (extra: mcp)")
    command.add_argument("--folder", help="of audio, to be searched")
    shared.add_model(command)


def demo(args: argparse.Namespace) -> int:
    """`slit demo`."""
    from espnet2_slit.inference.demo import launch

    launch(shared.load(args), args.folder, args.host, args.port)
    return 0


def serve(args: argparse.Namespace) -> int:
    """`slit serve`."""
    from espnet2_slit.inference.serve import Limits, run

    limits = Limits(args.max_mb, args.max_seconds, args.max_waiting)
    slit = shared.load(args)
    print(f"slit: serving on http://{args.host}:{args.port}/docs", file=sys.stderr)
    run(slit, args.folder, args.host, args.port, args.token, limits)
    return 0


def mcp(args: argparse.Namespace) -> int:
    """`slit mcp`."""
    from espnet2_slit.inference.mcp import build_server

    with contextlib.redirect_stdout(sys.stderr):  # the protocol owns it
        server = build_server(shared.load(args), args.folder)
    server.run()
    return 0
