#!/usr/bin/env python3
"""Stage 1 of a recipe on a folder of recordings against a plain loop over soundfile.

slit     `prepare_sets`: every clip opened, decoded and checked, those of another
         rate, form or channel count converted and written, lists and report made
plain    soundfile.read of each, torchaudio's resampling where the rate is another,
         and soundfile.write of what was converted: no checks, no lists
read     soundfile.read of each, no more

python bench/prepare.py --audio downloads/mini/audio/mini_test --clips 200
"""

import argparse
import tempfile
from itertools import count
from pathlib import Path

import soundfile
import torch
import torchaudio
from alternate import alternate, machine, ratio, spread, write

from espnet2_slit.data.audio import is_audio
from espnet2_slit.data.prepare import Options, prepare_sets


def data_directory(recordings: str, clips: int, folder: Path) -> list[Path]:
    """The first recordings below a folder, and a data directory of a sample each."""
    found = sorted(p.resolve() for p in Path(recordings).rglob("*") if is_audio(p))
    files = found[:clips]
    folder.mkdir()
    for name, line in (("wav.scp", "{0} {1}"), ("text", "{0} a sound")):
        lines = [line.format(f"clip{i:06d}", f) for i, f in enumerate(files)]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def main() -> None:
    """List, alternate, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--audio", required=True, help="folder of recordings")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--rate", type=int, default=16000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="JSON; a plot goes beside it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        source, turns = Path(work) / "source", count()
        files = data_directory(args.audio, args.clips, source)

        def slit() -> int:
            target = Path(work) / f"turn{next(turns)}" / "set"
            options = Options(sample_rate=args.rate)
            prepare_sets([(source, target)], options, progress=lambda line: None)
            return len((target / "wav.scp").read_text().splitlines())

        def plain() -> int:
            folder = Path(work) / f"turn{next(turns)}"
            folder.mkdir()
            for i, path in enumerate(files):
                audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
                if rate == args.rate and audio.shape[1] == 1:
                    continue
                mono = torch.from_numpy(audio.mean(axis=1))
                mono = torchaudio.functional.resample(mono, rate, args.rate)
                soundfile.write(folder / f"{i}.flac", mono.numpy(), args.rate)
            return len(files)

        def read() -> int:
            return sum(soundfile.read(path)[1] > 0 for path in files)

        contestants = {"slit": slit, "plain": plain, "read": read}
        times, results = alternate(contestants, args.rounds)
    if set(results.values()) != {len(files)}:
        raise SystemExit(f"expected {len(files)} clips of each, found {results}")
    seconds = {n: spread([t["cpu_s"] for t in taken]) for n, taken in times.items()}
    rates = {name: len(files) / found["median"] for name, found in seconds.items()}
    ratios = {name: ratio(times, "slit", name) for name in ("plain", "read")}
    print({name: f"{rate:.0f} clips a CPU second" for name, rate in rates.items()})
    print(f"slit's CPU time over theirs: {ratios}")
    if args.output:
        result = {"settings": vars(args), "machine": machine(), "ratios": ratios}
        write(result | {"times": times}, args.output, seconds, "CPU s")


if __name__ == "__main__":
    main()
