#!/usr/bin/env python3
"""Encoding a folder of recordings once, against a plain loop over the same encoder.

slit     `slit encode`: clips of like length in one batch, 16 bits a value, shards that
         a killed job goes on from, checksums, an index
within   the same, all threads in each product, one batch at a time (with --threads 2)
plain    soundfile.read, the encoder on this clip alone, numpy.save

    python bench/encode.py --audio downloads/mini/audio/mini_test --clips 200 \\
        --encoder beats --encoder_path downloads/mini/audio_encoder.pt

Recordings are mono and have the encoder's rate (`slit data prepare` makes them so).
"""

import argparse
import tempfile
from itertools import count
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile
import torch
from alternate import alternate, machine, ratio, spread, write
from espnet2.utils.nested_dict_action import NestedDictAction
from prepare import data_directory

from espnet2_slit.data import feature_cache
from espnet2_slit.model.audio_encoder import build_audio_encoder


def main() -> None:
    """List, compare, alternate, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--audio", required=True, help="folder of recordings")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--encoder", default="beats")
    parser.add_argument("--encoder_path", required=True)
    parser.add_argument(
        "--encoder_conf", action=NestedDictAction, default={}, help="name=value"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="JSON; a plot goes beside it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    conf = {"path": args.encoder_path, **args.encoder_conf}
    encoder = build_audio_encoder(args.encoder, **conf).eval()
    with tempfile.TemporaryDirectory() as work:
        source, turns = Path(work) / "source", count()
        files = data_directory(args.audio, args.clips, source)

        def slit() -> int:
            target = Path(work) / f"turn{next(turns)}"
            plan = feature_cache.plan(source, encoder.identity(), [], 1000)
            feature_cache.encode(plan, encoder, target)
            facts = feature_cache.encoder_facts(encoder)
            return feature_cache.merge(plan, source, target, facts)["num_frames"]

        def within() -> int:
            with mock.patch.object(feature_cache, "_calls_at_once", lambda device: 1):
                return slit()

        def plain() -> int:
            folder, frames = Path(work) / f"turn{next(turns)}", 0
            folder.mkdir()
            for i, path in enumerate(files):
                audio = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
                with torch.inference_mode():
                    found, lengths = encoder(audio[None], torch.tensor([len(audio)]))
                np.save(folder / f"{i}.npy", found[0, : lengths[0]].float().numpy())
                frames += int(lengths[0])
            return frames

        contestants = {"slit": slit, "plain": plain}
        if args.threads > 1:
            contestants["within"] = within
        times, results = alternate(contestants, args.rounds)
    if len(set(results.values())) > 1:
        raise SystemExit(f"expected as many frames of all, found {results}")
    seconds = {n: spread([t["cpu_s"] for t in taken]) for n, taken in times.items()}
    rates = {name: len(files) / found["median"] for name, found in seconds.items()}
    print({name: f"{rate:.1f} clips a CPU second" for name, rate in rates.items()})
    ratios = {}
    for other in list(times)[1:]:
        ratios[other] = ratio(times, "slit", other)
        wall = ratios[f"{other}, wall time"] = ratio(times, "slit", other, "wall_s")
        print(f"slit's CPU time over that of {other}: {ratios[other]}")
        print(f"its wall time: {wall}")
    if args.output:
        result = {"settings": vars(args), "machine": machine(), "ratios": ratios}
        write(result | {"times": times}, args.output, seconds, "CPU s")


if __name__ == "__main__":
    main()
