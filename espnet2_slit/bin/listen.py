"""Commands of `slit` that say something of audio files, or embed them."""

import argparse
import json
from pathlib import Path
from typing import Any

from espnet2_slit.bin import shared
from espnet2_slit.common.names import ROUTES


def add_commands(add: shared.Add) -> None:
    """Their options."""
    command = add("caption", caption, "describe audio files")
    shared.add_files(command)
    command.add_argument("--instruction", help="other wording than the default")
    command.add_argument(
        "--window_s",
        type=shared.seconds,
        help="a caption for each window of so many seconds, in audio of any length",
    )
    shared.add_generation(command, rerank=True)
    shared.add_model(command)

    command = add("ask", ask, "answer a question about audio files")
    command.add_argument("question")
    shared.add_files(command)
    command.add_argument(
        "--candidates",
        nargs="+",
        metavar="ANSWER",
        help="choose the likeliest of these, or of the lines of one file",
    )
    shared.add_generation(command)
    shared.add_model(command)

    command = add("classify", classify, "choose among labels, any labels")
    shared.add_files(command)
    command.add_argument(
        "--labels",
        nargs="+",
        required=True,
        help="two or more labels, or one file with a label on each line",
    )
    command.add_argument(
        "--route",
        choices=ROUTES,
        help="how labels are scored (default: similarity where the system has it)",
    )
    shared.add_model(command)

    command = add("embed", embed, "write embeddings of audio files or texts (.npz)")
    shared.add_files(command, nargs="*")
    command.add_argument("--texts", nargs="+", default=[], help="texts to embed, too")
    command.add_argument(
        "--output", required=True, help=".npz: files, audio (N,Q,E), texts, text (M,E)"
    )
    shared.add_model(command)


def caption(args: argparse.Namespace) -> int:
    """`slit caption`."""
    slit = shared.load(args)
    pairs = shared.in_steps(
        args.files,
        args.batch_size,
        lambda some: slit.caption(
            some,
            instruction=args.instruction,
            window_s=args.window_s,
            options=shared.generation(args),
        ),
    )
    if not args.window_s:
        return shared.put(args, "caption", pairs)
    windows = ((file, {"captions": [vars(c) for c in found]}) for file, found in pairs)

    def lines(result: dict) -> str:
        rows = result["captions"]
        return "\n".join(
            f"{shared.times(r['start_s'], r['end_s'])}\t{r['text']}" for r in rows
        )

    return shared.put(args, "captions", windows, lines)


def ask(args: argparse.Namespace) -> int:
    """`slit ask`."""
    slit = shared.load(args)
    candidates = shared.lines_of(args.candidates) if args.candidates else None
    pairs = shared.in_steps(
        args.files,
        args.batch_size,
        lambda some: slit.answer(
            some, args.question, candidates=candidates, options=shared.generation(args)
        ),
    )
    return shared.put(args, "answer", pairs)


def classify(args: argparse.Namespace) -> int:
    """`slit classify`."""
    labels = shared.lines_of(args.labels)
    slit = shared.load(args)
    default = "similarity" if slit.representation else "language_model"
    pairs = shared.in_steps(
        args.files,
        args.batch_size,
        lambda some: [
            {"label": one.label, "scores": one.scores}
            for one in slit.classify(some, labels, route=args.route or default)
        ],
    )
    return shared.put(args, "label", pairs, lambda result: result["label"])


def embed(args: argparse.Namespace) -> int:
    """`slit embed`."""
    if not args.files and not args.texts:
        args.parser.error("give files, --texts, or both")
    import numpy as np

    from espnet2_slit.common.files import atomic

    slit = shared.load(args)
    content: dict[str, Any] = {}
    if args.files:
        pairs = list(shared.in_steps(args.files, args.batch_size, slit.embed_audio))
        if pairs:
            content["files"] = np.array([file for file, _ in pairs])
            content["audio"] = np.stack([row for _, row in pairs])
    if args.texts:
        content["texts"] = np.array(args.texts)
        content["text"] = slit.embed_text(args.texts)
    if not content:
        return 1
    with atomic(Path(args.output)) as stream:
        np.savez(stream, **content)
    shapes = {name: list(array.shape) for name, array in content.items()}
    if args.json:
        print(json.dumps({"output": args.output, **shapes}))
    else:
        wide = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        print(f"{args.output}: {wide}")
    return 0 if len(content.get("files", ())) == len(args.files) else 1
