"""What the commands of `slit` share: options, opening a system, results by file."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Sequence

if TYPE_CHECKING:
    from espnet2_slit.inference.slit import SLIT

# (name, run, help) -> the parser of a new command
Add = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]

FILES_PER_STEP = 4  # batches between two moves of the progress bar


def positive(word: str) -> int:
    """A whole number above 0."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {word}")
    return number


def seconds(word: str) -> float:
    """A number above 0."""
    number = float(word)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, found {word}")
    return number


def add_files(command: argparse.ArgumentParser, nargs: str = "+") -> None:
    """Audio files."""
    command.add_argument(
        "files", nargs=nargs, help="audio of any rate and channels, or folders of it"
    )


def add_generation(command: argparse.ArgumentParser, rerank: bool = False) -> None:
    """How texts are written."""
    group = command.add_argument_group("writing")
    group.add_argument("--num_beams", type=positive)
    group.add_argument("--max_new_tokens", type=positive)
    if rerank:
        group.add_argument(
            "--rerank", type=positive, help="of so many beams, the one that fits best"
        )


def add_model(command: argparse.ArgumentParser) -> None:
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


def load(args: argparse.Namespace) -> SLIT:
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


def bar(total: int) -> Any:
    """A progress bar on stderr, on a terminal only."""
    from tqdm import tqdm

    return tqdm(total=total, unit="file", file=sys.stderr, disable=None, leave=False)


def lines_of(values: list[str]) -> list[str]:
    """Values of the command line, or the lines of the one file they name."""
    if len(values) == 1 and Path(values[0]).is_file():
        from espnet2_slit.common.files import read_lines

        return read_lines(values[0])
    return values


def files_below(paths: Iterable[str]) -> list[str]:
    """The files, and of each folder the audio in it, in order."""
    from espnet2_slit.inference.search_index import find_audio

    found: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            inside = [os.path.join(path, name) for name in find_audio(path)]
            found += inside or [path]  # which is named as one that cannot be read
        else:
            found.append(path)
    return found


def in_steps(
    files: Sequence[str], batch_size: int, work: Callable[[Sequence[str]], Any]
) -> Iterator[tuple[str, Any]]:
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


def put(
    args: argparse.Namespace,
    name: str,
    pairs: Iterable[tuple[str, Any]],
    text: Callable[[Any], str] = str,
) -> int:
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


def generation(args: argparse.Namespace) -> dict[str, int]:
    """Fields of GenerationOptions that were given."""
    return {
        name: getattr(args, name)
        for name in ("num_beams", "max_new_tokens", "rerank")
        if getattr(args, name, None) is not None
    }


def times(start_s: float, end_s: float) -> str:
    """A place in a clip as two columns of seconds."""
    return f"{start_s:.2f}\t{end_s:.2f}"
