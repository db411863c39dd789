#!/usr/bin/env python3
"""Cost per sample from a thousand samples to a million: loader, samplers, scoring.

Ids and captions are generated, lengths vary, and the frames of a trained experiment's
cache are shared by all, so that only the number of samples grows. Flat figures per
sample mean that nothing in the way of data searches or copies what it has.

    lists    reading the data directory's files into ESPnet's data set
    sampler  making the batches of an epoch and shuffling them
    loader   reading and collating batches of cached frames
    scoring  CIDEr-D, BLEU and ROUGE-L of tokenised captions

Run it where the experiment's relative paths lead:

    cd egs2/slit/slit1
    python ../../../bench/growth.py exp/mini_representation --output growth.json
"""

import argparse
import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import torch
from alternate import machine, spread, timed, write
from scoring import make_captions

from espnet2_slit.common import compat
from espnet2_slit.scoring.metrics.captioning import ngram_scores, rouge_l
from espnet2_slit.task import SLITTask
from espnet2_slit.task.options import read_options

compat.prepare_espnet_import()

from espnet2.train.distributed_utils import DistributedOption  # noqa: E402


def get_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", help="trained from cached features")
    parser.add_argument("--samples", type=int, nargs="+", default=[1000, 10**5, 10**6])
    parser.add_argument("--batches", type=int, default=20, help="that are read")
    parser.add_argument("--batch_type", default="unsorted")
    parser.add_argument("--largest_scoring", type=int, default=10**5)
    parser.add_argument("--output", help="JSON; a plot goes beside it")
    return parser


def make_data(folder: Path, options: argparse.Namespace, samples: int) -> None:
    """A data directory of `samples` captions on the cache's clips; set the options."""
    audio = next(
        path
        for path, name, _ in options.train_data_path_and_name_and_type
        if name == "feats"
    )
    shapes = dict(
        line.split(maxsplit=1)
        for line in Path(audio).with_name("feats_shape").open(encoding="utf-8")
    )
    clips = [line.split(maxsplit=1) for line in Path(audio).open(encoding="utf-8")]
    names = "feats", "shape", "text", "clip"
    streams = [(folder / name).open("w", encoding="utf-8") for name in names]
    for i in range(samples):
        key, place = clips[i * 7919 % len(clips)]  # a prime: neighbours differ
        words = f"a sound {i} " + "and another " * (i % 4)
        row = place.strip(), shapes[key].strip(), words, f"clip{i // 5}"
        for stream, content in zip(streams, row, strict=True):
            stream.write(f"sample_{i:08d} {content}\n")
    for stream in streams:
        stream.close()
    options.train_shape_file = [str(folder / "shape")]
    options.train_data_path_and_name_and_type = [
        (str(folder / "feats"), "feats", "kaldi_ark"),
        (str(folder / "text"), "text", "text"),
        (str(folder / "clip"), "clip", "text"),
    ]


def measure(args: argparse.Namespace, samples: int) -> dict:
    """What a new process needs: the peak of another size would hide this one's."""
    context = get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, mp_context=context) as pool,
    ):
        return pool.submit(measure_here, Path(folder), args, samples).result()


def measure_here(folder: Path, args: argparse.Namespace, samples: int) -> dict:
    """Microseconds of CPU a sample, and the memory that the lists add at their peak."""
    torch.set_num_threads(1)
    options = read_options(Path(args.experiment) / "config.yaml", {})
    options.num_workers, options.batch_type = 0, args.batch_type
    make_data(folder, options, samples)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    single = DistributedOption()
    lists, factory = timed(
        lambda: SLITTask.build_iter_factory(options, single, mode="train")
    )
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sampler, batches = timed(lambda: factory.build_iter(1))
    loader, read = timed(
        lambda: sum(len(names) for names, _ in islice(batches, args.batches))
    )
    found = {
        "lists": lists["cpu_s"] / samples,
        "sampler": sampler["cpu_s"] / samples,
        "loader": loader["cpu_s"] / read,
    }
    if samples <= args.largest_scoring:
        hypotheses, references = make_captions(samples)
        hypotheses = [text.split() for text in hypotheses]
        references = [[text.split() for text in texts] for texts in references]
        scoring, _ = timed(
            lambda: (
                ngram_scores(hypotheses, references),
                rouge_l(hypotheses, references),
            )
        )
        found["scoring"] = scoring["cpu_s"] / samples
    found = {f"{name}_us": value * 1e6 for name, value in found.items()}
    return found | {"lists_bytes": (after - before) * 1024 / samples}


def main() -> None:
    """Grow, print, write."""
    args = get_parser().parse_args()
    rows, bars = {}, {}
    for samples in sorted(args.samples):
        rows[samples] = measure(args, samples)
        print(samples, {k: round(v, 1) for k, v in rows[samples].items()}, flush=True)
        for name, value in rows[samples].items():
            if name.endswith("_us"):
                bars[f"{name[:-3]}, {samples:,}"] = spread([value])
    if args.output:
        result = {
            "what": "CPU microseconds a sample, by the number of samples",
            "settings": vars(args),
            "machine": machine(),
            "samples": rows,
        }
        write(result, args.output, dict(sorted(bars.items())), "CPU us a sample")


if __name__ == "__main__":
    main()
