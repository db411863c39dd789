#!/usr/bin/env python3
"""Make the mini corpus: synthesised sound scenes with true captions, questions, labels.

Writes audio, `scenes.jsonl` (what is heard when) and the data directories of the
recipe. What there is to hear, how it sounds and how it is said is in `mini/`. Knows
nothing of models.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import soundfile
from mini.languages import ENGLISH, LANGUAGES
from mini.scenes import VERSION, Scene, plan_corpus, plan_recordings, scene_to_json
from mini.sets import write_data_dirs
from mini.sounds import SAMPLE_RATE, render, render_recording

from espnet2_slit.common.files import atomic, write_atomically, write_json

LOGGER = logging.getLogger("mini")
SIZES = {
    "train": 2400,
    "valid": 160,
    "test": 200,
    "test_unseen": 200,
    "test_class": 8,
    "test_class_unseen": 20,
    "test_moments": 40,
}
UNITS = {
    "test_class": "clips per class",
    "test_class_unseen": "clips per class",
    "test_moments": "recordings of 30 to 60 s",
}


def _render_to_file(task):
    scene, seed, path = task
    make = render if isinstance(scene, Scene) else render_recording
    waveform = make(scene, seed)
    if not path.exists():
        with atomic(path) as stream:
            soundfile.write(stream, waveform, SAMPLE_RATE, "PCM_16", format="FLAC")
    return scene.clip, hashlib.blake2b(waveform.tobytes(), digest_size=16).hexdigest()


def _render_all(tasks, jobs):
    """Write the audio of (scene, seed, path) tasks; one digest for that of scenes."""
    started = time.monotonic()
    digests = {}
    with contextlib.ExitStack() as stack:
        results = map(_render_to_file, tasks)
        if jobs > 1:
            spawn = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(jobs, mp_context=spawn))
            results = pool.map(_render_to_file, tasks, chunksize=32)
        for clip, digest in results:
            digests[clip] = digest
            if len(digests) % 500 == 0 or len(digests) == len(tasks):
                done, seconds = f"{len(digests)} of {len(tasks)}", time.monotonic()
                LOGGER.info(f"Mini corpus: {done} clips, {seconds - started:.0f} s")
    clips = sorted(scene.clip for scene, _, _ in tasks if isinstance(scene, Scene))
    text = "".join(f"{clip} {digests[clip]}\n" for clip in clips)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def make_corpus(data_dir, audio_dir, seed, sizes, jobs=2, language=ENGLISH):
    """Make the whole corpus, or nothing if it is there already.

    Args:
        data_dir: Path for the data directories.
        audio_dir: Path for the audio files and scenes.jsonl.
        seed: of scenes, sounds and words.
        sizes: as `SIZES`.
        jobs: processes that render audio; the result does not depend on it.
        language: Language, of the texts; the audio is the same for all.

    Returns:
        dict: what was made, also in audio_dir/corpus.json, which is written last.
    """
    wanted = {"version": VERSION, "seed": seed, "sizes": sizes}
    stamp = audio_dir / "corpus.json"
    splits = plan_corpus(seed, sizes)
    recordings = plan_recordings(seed, sizes["test_moments"])
    scenes = [scene for split in splits.values() for scene in split]
    sounds = scenes + recordings
    paths = {
        sound.clip: audio_dir / sound.clip.rsplit("_", 1)[0] / f"{sound.clip}.flac"
        for sound in sounds
    }
    found = json.loads(stamp.read_text()) if stamp.exists() else {}
    is_other = {key: found.get(key) for key in wanted} != wanted
    if not is_other and all(path.exists() for path in paths.values()):
        LOGGER.info("Mini corpus: %d clips are there (%s)", len(sounds), stamp)
    else:
        if found and is_other:
            LOGGER.info("Mini corpus: other settings than in %s, making anew", stamp)
            for path in paths.values():
                path.unlink(missing_ok=True)
        stamp.unlink(missing_ok=True)
        tasks = [(sound, seed, paths[sound.clip]) for sound in sounds]
        digest = _render_all(tasks, jobs)
        write_atomically(audio_dir / "scenes.jsonl", map(scene_to_json, scenes))
        found = {
            **wanted,
            "clips": len(sounds),
            "hours": round(sum(sound.duration_s for sound in sounds) / 3600, 3),
            "audio_digest": digest,
        }
        write_json(stamp, found, indent=2)
    # Text costs a second: always written, so the directories are always right.
    audio = {clip: str(path) for clip, path in paths.items()}
    write_data_dirs(splits, recordings, seed, data_dir, audio, language)
    return found


def main():
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--audio-dir", type=Path, default=Path("downloads/mini/audio"))
    parser.add_argument("--seed", type=int, default=1)
    for name, size in SIZES.items():
        option = "--" + name.replace("_", "-")
        unit = UNITS.get(name, "clips")
        parser.add_argument(option, type=int, default=size, help=unit)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="of the texts")
    args = parser.parse_args()
    # Only our own progress: ESPnet reports every layer it initialises.
    logging.basicConfig(format="%(asctime)s %(message)s", force=True)
    LOGGER.setLevel(logging.INFO)
    sizes = {name: getattr(args, name) for name in SIZES}
    how = args.seed, sizes, args.jobs, LANGUAGES[args.lang]
    made = make_corpus(args.data_dir, args.audio_dir, *how)
    LOGGER.info("Mini corpus: %s", made)


if __name__ == "__main__":
    main()
