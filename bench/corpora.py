#!/usr/bin/env python3
"""Time and memory of preparing a corpus of WavCaps' size: its JSON to training sets.

python bench/corpora.py --rows 25000 100000 400000

Every row has its clip, a link to one of a few sounds, so headers are really read. What
is timed is `slit corpus prepare`: reading, finding and probing the audio, writing the
caption and the instruction sets, and the leakage check.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

WORDS = (
    "a dog barks while rain falls on the roof of an old house and birds sing".split()
)
# parts of WavCaps and their share of its 403,050 rows
PARTS = (
    ("FreeSound", "fsd_final.json", 262_300),
    ("AudioSet_SL", "as_final.json", 108_317),
    ("BBC_Sound_Effects", "bbc_final.json", 31_201),
    ("SoundBible", "sb_final.json", 1_232),
)


def generate(root, rows):
    """WavCaps' layout with about `rows` rows; folders of at most 1,000 links."""
    random = np.random.default_rng(0)
    sounds = []
    for number in range(8):
        sounds.append(root / f"sound{number}.flac")
        soundfile.write(sounds[-1], 0.1 * random.standard_normal(16000), 32000)
    total = sum(share for *_, share in PARTS)
    for part, file, share in PARTS:
        count = max(round(rows * share / total), 1)
        with open(root / file, "w", encoding="utf-8") as out:
            out.write('{"num_captions_per_audio": 1, "data": [')
            for n in range(count):
                name = f"Y{n:011d}.wav" if part == "AudioSet_SL" else str(n)
                caption = " ".join(random.choice(WORDS, 9)) + f", {n}."
                row = {"id": name, "caption": caption, "duration": 0.5}
                row |= {"title": "t", "description": "words " * 30, "audio": "wav_path"}
                out.write((", " if n else "") + json.dumps(row))
                folder = root / f"{part}_flac" / str(n // 1000)
                if n % 1000 == 0:
                    folder.mkdir(parents=True)
                stem = name.removesuffix(".wav")
                os.link(sounds[n % 8], folder / f"{stem}.flac")
            out.write("]}")
    for name in ("test_ac", "ub8k_esc50_vggsound"):
        path = root / f"blacklist_exclude_{name}.json"
        path.write_text(json.dumps({"AudioSet": [], "FreeSound": ["17"]}))


def validation_set(root):
    """A small Clotho: a recipe needs something to validate and to test on."""
    header = "file_name," + ",".join(f"caption_{n}" for n in range(1, 6)) + "\n"
    for split in ("development", "validation", "evaluation"):
        (root / split).mkdir(parents=True)
        row = f"{split}.wav," + ",".join(["A bell rings"] * 5) + "\n"
        (root / f"clotho_captions_{split}.csv").write_text(header + row)
        soundfile.write(root / split / f"{split}.wav", np.zeros(16000), 32000)


def main():
    """Prints a line for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[25_000, 100_000, 400_000]
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes that probe audio"
    )
    parser.add_argument("--folder", type=Path, help="where files are made and removed")
    args = parser.parse_args()
    print(
        f"{'rows':>9}{'CPU s':>9}{'wall s':>9}{'ms a row':>10}{'peak MB':>9}",
        flush=True,
    )
    for rows in args.rows:
        with tempfile.TemporaryDirectory(dir=args.folder) as made:
            made = Path(made)
            (made / "wavcaps").mkdir()
            generate(made / "wavcaps", rows)
            validation_set(made / "clotho")
            command = f"prepare --corpora wavcaps,clotho --root wavcaps={made}/wavcaps"
            command += f" --root clotho={made}/clotho --out {made}/data"
            command += f" --jobs {args.jobs}"
            module = [sys.executable, "-m", "espnet2_slit.bin.slit_corpus"]
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
            subprocess.run([*module, *command.split()], check=True, capture_output=True)
            after, wall = (
                resource.getrusage(resource.RUSAGE_CHILDREN),
                time.time() - start,
            )
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            with open(made / "data" / "train_caption" / "text", "rb") as lines:
                found = sum(1 for _ in lines)
            # the largest child so far: sizes must grow
            peak = after.ru_maxrss / 1024
            print(
                f"{found:>9,}{cpu:>9.1f}{wall:>9.1f}"
                f"{1000 * cpu / found:>10.3f}{peak:>9.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
