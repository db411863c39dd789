#!/usr/bin/env python3
"""Time and peak memory of finding moments in long audio, by its length.

Each length is a process of its own, which writes noise of 44.1 kHz and asks for a
moment in it.

    python bench/long_audio.py --model exp/mini_instruction --minutes 2 60
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RATE = 44100


def get_parser():
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="with a representation part")
    parser.add_argument("--minutes", type=int, nargs="+", default=[2, 60])
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    return parser


def peak_mib():
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measure(model, minutes):
    """Figures of one length."""
    import numpy as np
    import soundfile

    from espnet2_slit import SLIT

    slit = SLIT.from_pretrained(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.wav"
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for minute in range(minutes):
                random = np.random.default_rng(minute)
                file.write(0.1 * random.standard_normal(60 * RATE))
        short = (np.random.default_rng(0).standard_normal(RATE) * 0.1, RATE)
        slit.moments("a dog barks", short)  # loads the encoder
        before, wall, cpu = peak_mib(), time.perf_counter(), time.process_time()
        slit.moments("a dog barks", path)
        return {
            "minutes": minutes,
            "wall_s": round(time.perf_counter() - wall, 1),
            "cpu_s": round(time.process_time() - cpu, 1),
            "peak_before_mib": before,
            "peak_mib": peak_mib(),
        }


def main(cmd=None):
    """Measure each length in a process of its own."""
    args = get_parser().parse_args(cmd)
    if args.alone:
        print(json.dumps(measure(args.model, args.minutes[0])))
        return 0
    for minutes in args.minutes:
        command = [sys.executable, __file__, "--alone", "--model", args.model]
        command += ["--minutes", str(minutes)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout.splitlines()[-1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
