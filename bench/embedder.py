#!/usr/bin/env python3
"""What 8 bits cost: ONNX graphs of `slit export --onnx DIR --quantize` on a test set.

Searches the clips of a set by its texts with the graphs alone, once in float32 and once
with matrices of 8 bits: largest difference of an embedding, recall at 1 from text to
audio, and the time of a batch of clips and of 64 texts, taking turns.

    slit export --onnx embedder --quantize --model exp/mini_instruction
    python bench/embedder.py --embedder embedder --data data/test_caption

Paths in wav.scp that are relative start where this is called.
"""

import argparse
import functools
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from alternate import alternate, machine, ratio, spread, write
from tokenizers import Tokenizer

from espnet2_slit.data.audio import read_audio
from espnet2_slit.data.kaldi_dir import read_map
from espnet2_slit.scoring.metrics.retrieval import text_to_audio
from espnet2_slit.scoring.read import read_references

FORMS = {"float32": "", "int8": ".int8"}


def get_parser():
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--embedder", type=Path, required=True, help="with both forms")
    parser.add_argument("--data", type=Path, required=True, help="a caption set")
    parser.add_argument("--batch_size", type=int, default=8, help="clips at once")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="JSON of all figures")
    return parser


class Embedder:
    """Graphs of one form.

    Args:
        folder: that the export has written.
        suffix: of the form.
        threads: of onnxruntime.
    """

    def __init__(self, folder, suffix, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.audio, self.text = (
            onnxruntime.InferenceSession(
                str(folder / f"{name}{suffix}.onnx"),
                options,
                providers=["CPUExecutionProvider"],
            )
            for name in ("audio", "text")
        )

    def embed_audio(self, clips):
        """Clips of unequal length -> (B, Q, E)."""
        speech, lengths = padded(clips, np.float32)
        return self.audio.run(None, {"speech": speech, "lengths": lengths})[0]

    def embed_text(self, rows):
        """Rows of ids -> (S, E)."""
        ids, lengths = padded(rows, np.int64)
        return self.text.run(None, {"ids": ids, "lengths": lengths})[0]


def padded(rows, dtype):
    """Rows of unequal length side by side, and their lengths."""
    lengths = np.array([len(row) for row in rows])
    values = np.zeros((len(rows), lengths.max()), dtype)
    for place, row in zip(values, rows, strict=True):
        place[: len(row)] = row
    return values, lengths


def in_batches(embed, rows, size):
    """All rows, `size` at once."""
    parts = [embed(rows[i : i + size]) for i in range(0, len(rows), size)]
    return np.concatenate(parts)


def main(cmd=None):
    """Embed the set in both forms, search, take turns on the clock."""
    args = get_parser().parse_args(cmd)
    facts = json.loads((args.embedder / "onnx.json").read_text())
    tokenizer = Tokenizer.from_file(str(args.embedder / "tokenizer.json"))
    paths = read_map(args.data / "wav.scp")
    clips = [read_audio(path, facts["sample_rate"]) for path in paths.values()]
    longest = max(len(clip) for clip in clips) / facts["sample_rate"]
    if longest > facts["longest_s"]:
        raise SystemExit(
            f"{args.data}: expected clips of {facts['longest_s']:g} s at most, found"
            f" {longest:.1f} s. Take a set of shorter clips."
        )
    references = read_references(args.data)
    place = {clip: i for i, clip in enumerate(paths)}
    owner = np.array([place[clip] for clip, texts in references.items() for _ in texts])
    texts = [text for texts in references.values() for text in texts]
    rows = [tokenizer.encode(text).ids[: facts["max_text_length"]] for text in texts]
    forms = {
        form: Embedder(args.embedder, suffix, args.threads)
        for form, suffix in FORMS.items()
    }
    result = {"machine": machine(), "clips": len(clips), "texts": len(texts)}
    found = {}
    for form, graphs in forms.items():
        audio = in_batches(graphs.embed_audio, clips, args.batch_size)
        text = in_batches(graphs.embed_text, rows, 64)
        similarity = np.einsum("se,bqe->sbq", text, audio).max(axis=2)
        scores = text_to_audio(similarity, owner).scores
        found[form] = audio, text
        result[form] = {
            "text_to_audio_recall_at_1": 100 * scores["recall_at_1"].value,
            "bytes": sum(
                (args.embedder / f"{name}{FORMS[form]}.onnx").stat().st_size
                for name in ("audio", "text")
            ),
        }
    for i, name in enumerate(("audio", "text")):
        one, other = (found[form][i] for form in FORMS)
        result[f"{name}_largest_difference"] = float(np.abs(one - other).max())
        result[f"{name}_mean_cosine"] = float((one * other).sum(-1).mean())
    for name, given in (("audio", clips[: args.batch_size]), ("text", rows[:64])):
        calls = {
            form: functools.partial(getattr(graphs, f"embed_{name}"), given)
            for form, graphs in forms.items()
        }
        times, _ = alternate(calls, args.rounds)
        result[f"{name}_cpu_ms"] = {
            form: spread([1e3 * taken["cpu_s"] for taken in turns])
            for form, turns in times.items()
        }
        result[f"{name}_int8_over_float32"] = ratio(times, "int8", "float32")
    print(json.dumps(result, indent=1))
    if args.output:
        write(result, args.output, {}, "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
