#!/usr/bin/env python3
"""slit: caption, ask, classify, embed and search audio with a trained system."""

import argparse
import contextlib
import importlib
import json
import logging
import os
import sys
import warnings
from pathlib import Path

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
FILES_PER_STEP = 4  # batches between two moves of the progress bar


def get_parser():
    """Command line of slit."""
    parser = argparse.ArgumentParser(
        prog="slit",
        description=__doc__,
        epilog="The model may also be given by the variable SLIT_MODEL. Exit status:"
        " 0 done, 1 something failed, 2 wrong command line.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, run, text):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run, parser=command)
        command.add_argument("--json", action="store_true", help="print JSON lines")
        return command

    add_listening(add)
    add_searching(add)
    add_serving(add)
    for name, (program, text) in PROGRAMS.items():
        commands.add_parser(name, help=f"{text}: see slit {name} --help ({program})")
    return parser


def add_listening(add):
    """Commands that say something of audio files."""
    command = add("caption", caption, "describe audio files")
    add_files(command)
    command.add_argument("--instruction", help="other wording than the default")
    command.add_argument(
        "--window_s",
        type=seconds,
        help="a caption for each window of so many seconds, in audio of any length",
    )
    add_generation(command, rerank=True)
    add_model(command)

    command = add("ask", ask, "answer a question about audio files")
    command.add_argument("question")
    add_files(command)
    command.add_argument(
        "--candidates",
        nargs="+",
        metavar="ANSWER",
        help="choose the likeliest of these, or of the lines of one file",
    )
    add_generation(command)
    add_model(command)

    command = add("classify", classify, "choose among labels, any labels")
    add_files(command)
    command.add_argument(
        "--labels",
        nargs="+",
        required=True,
        help="two or more labels, or one file with a label on each line",
    )
    command.add_argument(
        "--route",
        choices=["similarity", "matching", "language_model"],
        help="how labels are scored (default: similarity where the system has it)",
    )
    add_model(command)

    command = add("embed", embed, "write embeddings of audio files or texts (.npz)")
    add_files(command, nargs="*")
    command.add_argument("--texts", nargs="+", default=[], help="texts to embed, too")
    command.add_argument(
        "--output", required=True, help=".npz: files, audio (N,Q,E), texts, text (M,E)"
    )
    add_model(command)


def add_searching(add):
    """Commands that find audio."""
    command = add("index", index, "embed a folder of audio, for search")
    command.add_argument("folder")
    command.add_argument("--index", help="where it is kept (FOLDER/.slit_index)")
    command.add_argument(
        "--rebuild", action="store_true", help="also another model's index"
    )
    add_model(command)

    command = add("search", search, "find the audio that a text describes")
    command.add_argument("text")
    command.add_argument("folder", help="of audio; indexed first where it is not yet")
    command.add_argument("--index", help="where the index is (FOLDER/.slit_index)")
    command.add_argument("--top_k", type=positive, default=10)
    command.add_argument(
        "--rerank",
        type=int,
        default=0,
        help="best candidates that the matching head listens to again (0: none)",
    )
    command.add_argument(
        "--moments", action="store_true", help="where in the files, not which files"
    )
    add_model(command)

    command = add(
        "moments", moments, "find when in audio, of any length, a text is true"
    )
    command.add_argument("text")
    add_files(command)
    command.add_argument("--top_k", type=positive, default=10, help="of all files")
    command.add_argument(
        "--window_s",
        type=seconds,
        nargs="+",
        help="lengths of the windows that are compared (2.5 5 10)",
    )
    add_model(command)


def add_serving(add):
    """Commands around a system: what it is, and where others use it."""
    command = add(
        "prompt-embeds", embed_prompts, "write what vLLM takes as prompt_embeds (.pt)"
    )
    add_files(command)
    command.add_argument("--out", required=True, help="folder of <file>.pt")
    command.add_argument("--instruction", help="other wording than a caption's")
    add_model(command)

    command = add("export", export, "write the embedder for onnxruntime (extra: onnx)")
    command.add_argument("--onnx", required=True, metavar="DIR", help="folder to make")
    command.add_argument(
        "--quantize", action="store_true", help="also with weights of 8 bits"
    )
    add_model(command)

    command = add("info", info, "what is in a checkpoint, without building it")
    command.add_argument("model", nargs="?", default=os.environ.get("SLIT_MODEL"))

    command = add("import", import_system, "open a released system of another project")
    command.add_argument(
        "kind", choices=["xinstructblip"], help="whose: X-InstructBLIP"
    )
    command.add_argument(
        "--qformer",
        required=True,
        help="audio_qformer.pth or audio_qformer_improved.pth",
    )
    command.add_argument(
        "--audio_encoder", required=True, help="BEATs_iter3_plus_AS2M.pt"
    )
    command.add_argument(
        "--language_model", required=True, help="folder of Vicuna v1.1, 7b or 13b"
    )
    command.add_argument("--out", required=True, help="experiment folder to make")
    command.add_argument(
        "--qformer_tokenizer",
        default="bert-base-uncased",
        help="folder or Hugging Face name (bert-base-uncased)",
    )
    command.add_argument(
        "--layout",
        choices=["auto", "plain", "chat"],
        default="auto",
        help="words around audio and prompt: plain for audio_qformer.pth, chat (USER:,"
        " ASSISTANT:) for audio_qformer_improved.pth; auto: by the file's name",
    )
    command.add_argument(
        "--heads", type=positive, help="attention heads (default: width / 64)"
    )
    command.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float16",
        help="of the language model (float16)",
    )

    add("doctor", doctor, "what works on this machine, what is missing, how to add it")

    command = add("demo", demo, "a page to try a system in the browser (extra: demo)")
    command.add_argument("--folder", help="of audio, to be searched from the page")
    command.add_argument("--host", default="127.0.0.1", help="0.0.0.0: whole network")
    command.add_argument("--port", type=int, default=7860)
    add_model(command)

    command = add("serve", serve, "an HTTP server of a system (extra: serve)")
    command.add_argument("--folder", help="of audio, to be searched")
    command.add_argument("--host", default="127.0.0.1", help="0.0.0.0: whole network")
    command.add_argument("--port", type=int, default=8000)
    command.add_argument(
        "--token",
        default=os.environ.get("SLIT_TOKEN", ""),
        help="that requests must bear (better by the variable SLIT_TOKEN)",
    )
    command.add_argument("--max_mb", type=seconds, default=100.0, help="of a request")
    command.add_argument(
        "--max_seconds", type=seconds, default=3600.0, help="of an upload's audio"
    )
    command.add_argument(
        "--max_waiting", type=positive, default=256, help="requests in the queue"
    )
    add_model(command)

    command = add("mcp", mcp, "tools for assistants on this machine (extra: mcp)")
    command.add_argument("--folder", help="of audio, to be searched")
    add_model(command)

    command = add("completion", completion, "print what makes the Tab key work")
    command.add_argument("shell", choices=["bash", "zsh", "tcsh", "fish"])


def positive(word):
    """A whole number above 0."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {word}")
    return number


def seconds(word):
    """A number above 0."""
    number = float(word)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, found {word}")
    return number


def add_files(command, nargs="+"):
    """Audio files."""
    command.add_argument(
        "files", nargs=nargs, help="audio of any rate and channels, or folders of it"
    )


def add_generation(command, rerank=False):
    """How texts are written."""
    group = command.add_argument_group("writing")
    group.add_argument("--num_beams", type=positive)
    group.add_argument("--max_new_tokens", type=positive)
    if rerank:
        group.add_argument(
            "--rerank", type=positive, help="of so many beams, the one that fits best"
        )


def add_model(command):
    """Which system, and on what."""
    group = command.add_argument_group("model")
    group.add_argument(
        "--model",
        default=os.environ.get("SLIT_MODEL"),
        help="experiment folder, archive, or Hugging Face repository (SLIT_MODEL)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--batch_size", type=positive, default=16)
    group.add_argument("--audio_encoder", help="its weights, if they have moved")
    group.add_argument("--language_model", help="its folder, if it has moved")
    group.add_argument("--qformer_tokenizer", help="its folder, if it has moved")


# ------------------------------------------------------------------------- helpers


def load(args):
    """The system that the command line names."""
    if not args.model:
        args.parser.error("give --model, or set SLIT_MODEL")
    import torch
    from transformers.utils.logging import disable_progress_bar

    from espnet2_slit.inference.slit import SLIT

    disable_progress_bar()  # of loading weights; the files' own bar follows
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return SLIT.from_pretrained(
        args.model,
        device=device,
        batch_size=args.batch_size,
        audio_encoder=args.audio_encoder,
        language_model=args.language_model,
        qformer_tokenizer=args.qformer_tokenizer,
    )


def bar(total, unit="file"):
    """A progress bar on stderr, on a terminal only."""
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, file=sys.stderr, disable=None, leave=False)


def lines_of(values):
    """Values of the command line, or the lines of the one file they name."""
    if len(values) == 1 and Path(values[0]).is_file():
        from espnet2_slit.common.files import read_lines

        return read_lines(values[0])
    return values


def files_below(paths):
    """The files, and of each folder the audio in it, in order."""
    from espnet2_slit.inference.search_index import find_audio

    found = []
    for path in paths:
        if os.path.isdir(path):
            inside = [os.path.join(path, name) for name in find_audio(path)]
            found += inside or [path]  # which is named as one that cannot be read
        else:
            found.append(path)
    return found


def in_steps(files, batch_size, work):
    """Run `work` on some files at a time, as a generator of (file, result).

    A file that cannot be used is told on stderr and has no result.

    Args:
        files: paths.
        batch_size: clips of one batch.
        work: list of files -> results in their order.
    """
    from espnet2_slit.inference.one_by_one import each, fault_of

    step = batch_size * FILES_PER_STEP
    with bar(len(files)) as shown:
        for start in range(0, len(files), step):
            some = files[start : start + step]
            for file, result in each(some, work):
                if isinstance(result, Exception):
                    shown.write(f"slit: {fault_of(file, result)}", file=sys.stderr)
                else:
                    yield file, result
            shown.update(len(some))


def put(args, name, pairs, text=str):
    """Print a line for each file; 1 if a file is without result."""
    done = 0
    for file, result in pairs:
        done += 1
        if args.json:
            result = result if isinstance(result, dict) else {name: result}
            line = json.dumps({"file": file, **result}, ensure_ascii=False)
        elif len(args.files) == 1:
            line = text(result)
        else:
            line = f"{file}\t{text(result)}"
        print(line, flush=True)
    return 0 if done == len(args.files) else 1


def generation(args):
    """Fields of GenerationOptions that were given."""
    return {
        name: getattr(args, name)
        for name in ("num_beams", "max_new_tokens", "rerank")
        if getattr(args, name, None) is not None
    }


# ------------------------------------------------------------------------- commands


def caption(args):
    """`slit caption`."""
    slit = load(args)
    pairs = in_steps(
        args.files,
        args.batch_size,
        lambda some: slit.caption(
            some,
            instruction=args.instruction,
            window_s=args.window_s,
            options=generation(args),
        ),
    )
    if not args.window_s:
        return put(args, "caption", pairs)
    windows = ((file, {"captions": [vars(c) for c in found]}) for file, found in pairs)

    def lines(result):
        rows = result["captions"]
        return "\n".join(
            f"{times(r['start_s'], r['end_s'])}\t{r['text']}" for r in rows
        )

    return put(args, "captions", windows, lines)


def times(start_s, end_s):
    """A place in a clip as two columns of seconds."""
    return f"{start_s:.2f}\t{end_s:.2f}"


def ask(args):
    """`slit ask`."""
    slit = load(args)
    candidates = lines_of(args.candidates) if args.candidates else None
    pairs = in_steps(
        args.files,
        args.batch_size,
        lambda some: slit.answer(
            some, args.question, candidates=candidates, options=generation(args)
        ),
    )
    return put(args, "answer", pairs)


def classify(args):
    """`slit classify`."""
    labels = lines_of(args.labels)
    slit = load(args)
    default = "similarity" if slit.representation else "language_model"
    pairs = in_steps(
        args.files,
        args.batch_size,
        lambda some: [
            {"label": one.label, "scores": one.scores}
            for one in slit.classify(some, labels, route=args.route or default)
        ],
    )
    return put(args, "label", pairs, lambda result: result["label"])


def embed(args):
    """`slit embed`."""
    if not args.files and not args.texts:
        args.parser.error("give files, --texts, or both")
    import numpy as np

    from espnet2_slit.common.files import atomic

    slit = load(args)
    content = {}
    if args.files:
        pairs = list(in_steps(args.files, args.batch_size, slit.embed_audio))
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


def embed_prompts(args):
    """`slit prompt-embeds`."""
    from espnet2_slit.inference.prompt_embeds import write_prompt_embeds

    slit = load(args)
    written = write_prompt_embeds(slit, args.files, args.out, args.instruction)
    pairs = zip(args.files, [str(path) for path in written], strict=True)
    return put(args, "prompt_embeds", pairs)


def export(args):
    """`slit export`."""
    from espnet2_slit.inference.export import export_onnx

    facts = export_onnx(load(args), args.onnx, args.quantize)
    if args.json:
        print(json.dumps(facts))
        return 0
    for name, graph in facts["graphs"].items():
        print(
            f"{args.onnx}/{name}.onnx: {', '.join(graph['inputs'])} -> vectors,"
            f" {graph['error']:.1e} from PyTorch, {graph['milliseconds']:.1f} ms"
        )
    if facts["encoder_left_out"]:
        print(f"without the audio encoder: {facts['encoder_left_out']}")
    return 0


def update_index(args, slit, rebuild=False):
    """Bring an index up to date: (index, report)."""
    from espnet2_slit.inference.search_index import DEFAULT_NAME, SearchIndex

    found = SearchIndex(args.index or Path(args.folder).expanduser() / DEFAULT_NAME)
    shown = None

    def progress(done, total):
        nonlocal shown
        if shown is None:
            shown = bar(total)
        shown.update(done - shown.n)

    try:
        return found, found.update(slit, args.folder, rebuild, progress)
    finally:
        if shown is not None:
            shown.close()


def index(args):
    """`slit index`."""
    slit = load(args)
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


def search(args):
    """`slit search`."""
    slit = load(args)
    found, _ = update_index(args, slit)
    hits = found.search(slit, args.text, args.top_k, args.rerank, args.moments)
    print_hits(args, hits, args.moments)
    return 0


def print_hits(args, hits, places):
    """A line for each hit, with its place in the file where wanted."""
    for hit in hits:
        if args.json:
            place = {"start_s": hit.start_s, "end_s": hit.end_s}
            row = {"file": hit.item, "score": hit.score, **place}
            print(json.dumps(row, ensure_ascii=False))
        else:
            place = f"\t{times(hit.start_s, hit.end_s)}" if places else ""
            print(f"{hit.score:.4f}\t{hit.item}{place}")


def moments(args):
    """`slit moments`."""
    from espnet2_slit.inference.windows import MOMENT_WINDOWS_S

    slit = load(args)
    window_s = args.window_s or MOMENT_WINDOWS_S
    # One file at a time: each may be an hour long.
    pairs = in_steps(
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


def info(args):
    """`slit info`."""
    if not args.model:
        args.parser.error("give a model, or set SLIT_MODEL")
    from espnet2_slit.inference.system_info import describe_source

    facts = describe_source(args.model)
    if args.json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    print(f"{facts['folder']}\n  can: {', '.join(facts['can'])}")
    print(f"  licence of the trained weights: {facts['licence']}")
    for name, part in facts["parts"].items():
        sizes = ", ".join(f"{k} {v}" for k, v in part["qformer"].items())
        settings = ", ".join(f"{k} {v}" for k, v in part["training"].items())
        print(f"\n{name}: {part['model']}, {part['parameters']:,} trained weights")
        print(f"  file         {part['model_file']}")
        print(f"  Q-Former     {sizes or 'default sizes'}")
        print(f"  trained on   {', '.join(part['trained_on']) or 'not recorded'}")
        print(f"  validated on {', '.join(part['validated_on']) or 'not recorded'}")
        print(f"  started from {', '.join(part['initialized_from']) or 'scratch'}")
        print(f"  settings     {settings}")
    print("\nfrozen parts")
    for name, part in facts["frozen"].items():
        print(f"  {name}: {part['name']} {part['kind']}".rstrip())
        print(f"    where    {part['where']}")
        print(f"    sha256   {part['sha256'] or 'not recorded'}")
        print(f"    licence  {part['licence']}")
    for path in facts["results"]:
        print(f"\nscores: {path}")
    return 0


def import_system(args):
    """`slit import`."""
    from espnet2_slit.inference.import_xinstructblip import import_xinstructblip

    report = import_xinstructblip(
        args.qformer,
        args.audio_encoder,
        args.language_model,
        args.out,
        args.qformer_tokenizer,
        args.layout,
        args.heads,
        args.dtype,
    )
    if args.json:
        print(json.dumps({"out": args.out, **vars(report)}))
        return 0
    sizes = ", ".join(f"{name} {size}" for name, size in report.sizes.items())
    print(
        f"{args.out}: {report.loaded} weights of {report.source} loaded, none missing,"
        f" {len(report.buffers)} buffers not needed; words around audio and prompt:"
        f" {report.layout}\n  Q-Former: {sizes}"
    )
    for note in report.notes:
        print(f"  {note}")
    return 0


def doctor(args):
    """`slit doctor`."""
    from espnet2_slit.inference.doctor import MISSING, OK, examine

    checks = examine()
    if args.json:
        print(json.dumps([vars(check) for check in checks], ensure_ascii=False))
    else:
        for check in checks:
            print(f"{check.status:9}{check.name:18}{check.found}")
            if check.remedy:
                print(f"{'':27}-> {check.remedy}")
    wrong = [check.name for check in checks if check.status == MISSING]
    if wrong:
        print(f"slit: cannot work without: {', '.join(wrong)}", file=sys.stderr)
        return 1
    if not args.json:
        absent = [check.name for check in checks if check.status != OK]
        print(f"\nAll that is needed is there. Without: {', '.join(absent) or 'none'}")
    return 0


def demo(args):
    """`slit demo`."""
    from espnet2_slit.inference.demo import launch

    launch(load(args), args.folder, args.host, args.port)
    return 0


def serve(args):
    """`slit serve`."""
    from espnet2_slit.inference.serve import Limits, run

    limits = Limits(args.max_mb, args.max_seconds, args.max_waiting)
    slit = load(args)
    print(f"slit: serving on http://{args.host}:{args.port}/docs", file=sys.stderr)
    run(slit, args.folder, args.host, args.port, args.token, limits)
    return 0


def mcp(args):
    """`slit mcp`."""
    from espnet2_slit.inference.mcp import build_server

    with contextlib.redirect_stdout(sys.stderr):  # the protocol owns it
        server = build_server(load(args), args.folder)
    server.run()
    return 0


def completion(args):
    """`slit completion`."""
    try:
        import shtab
    except ImportError as error:
        raise ImportError(
            "slit completion needs shtab, which is not installed."
            " Run: python -m pip install shtab"
        ) from error
    parser = get_parser()
    (commands,) = [a for a in parser._actions if a.dest == "command"]
    with contextlib.redirect_stdout(sys.stderr):  # ESPnet prints while imported
        for name, (program, _) in PROGRAMS.items():
            module = importlib.import_module(f"espnet2_slit.bin.{program}")
            commands.choices[name] = module.get_parser()
    for command in commands.choices.values():
        for action in command._actions:
            if action.dest in ("folder", "index"):
                action.complete = shtab.DIRECTORY
            elif action.choices is None and action.nargs != 0:
                action.complete = shtab.FILE
    print(shtab.complete(parser, args.shell))
    return 0


def main(cmd=None):
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
            args.files = files_below(args.files)
        return args.run(args)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        logging.debug("", exc_info=True)
        print(f"slit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("slit: stopped", file=sys.stderr)
        return 130


def _option(word):
    """--top-k as --top_k, which ESPnet's options look like."""
    name, equals, value = word.partition("=")
    if name.startswith("--"):
        name = "--" + name[2:].replace("-", "_")
    return name + equals + value


if __name__ == "__main__":
    sys.exit(main())
