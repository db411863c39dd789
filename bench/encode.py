#!/usr/bin/env python3
"""Encoding a folder of recordings once, against a plain loop over the same encoder.

slit     `slit encode`: clips of like length in one batch, 16 bits a value, shards that
         a killed job goes on from, checksums, an index
plain    soundfile.read, the encoder on this clip alone, numpy.save

    python bench/encode.py --audio downloads/mini/audio/mini_test --clips 200 \\
        --encoder beats --encoder_path downloads/mini/audio_encoder.pt

Recordings are mono and have the encoder's rate (`slit data prepare` makes them so).
"""

import argparse
import tempfile
from itertools import count
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml
from alternate import alternate, machine, ratio, spread, write

from espnet2_slit.data import feature_cache
from espnet2_slit.data.audio import is_audio
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
    parser.add_argument("--encoder_conf", nargs="*", default=[], help="name=value")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="JSON; a plot goes beside it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    files = sorted(p.resolve() for p in Path(args.audio).rglob("*") if is_audio(p))
    files = files[: args.clips]
    words = dict(word.split("=", 1) for word in args.encoder_conf)
    conf = {name: yaml.safe_load(value) for name, value in words.items()}
    encoder = build_audio_encoder(args.encoder, path=args.encoder_path, **conf).eval()
    with tempfile.TemporaryDirectory() as work:
        source, turns = Path(work) / "source", count()
        source.mkdir()
        for name, line in (("wav.scp", "{0} {1}"), ("text", "{0} a sound")):
            lines = [line.format(f"clip{i:06d}", f) for i, f in enumerate(files)]
            (source / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

        def slit() -> int:
            target = Path(work) / f"turn{next(turns)}"
            plan = feature_cache.plan(source, encoder.identity(), [], 1000)
            feature_cache.encode(plan, encoder, target)
            facts = feature_cache.encoder_facts(encoder)
            return feature_cache.merge(plan, source, target, facts)["num_frames"]

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
        times, results = alternate(contestants, args.rounds)
    if len(set(results.values())) > 1:
        raise SystemExit(f"expected as many frames of both, found {results}")
    seconds = {n: spread([t["cpu_s"] for t in taken]) for n, taken in times.items()}
    rates = {name: len(files) / found["median"] for name, found in seconds.items()}
    print({name: f"{rate:.1f} clips a CPU second" for name, rate in rates.items()})
    print(f"slit's CPU time over the loop's: {ratio(times, 'slit', 'plain')}")
    if args.output:
        found = {"plain": ratio(times, "slit", "plain")}
        result = {"settings": vars(args), "machine": machine(), "ratios": found}
        write(result | {"times": times}, args.output, seconds, "CPU s")


if __name__ == "__main__":
    main()
