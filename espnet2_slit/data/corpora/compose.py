"""Scenes of 4 to 10 s composed of labelled recordings, with true texts.

Owns plan and sound of a scene: which recordings, from where to where, when, how loud.
A plan is a line of a table from which anybody who has the recordings makes the same
scene. Sentences come from `scene_wording`.

A row of tables/<set>.jsonl, times in seconds, levels in dB re full scale:

    {"id": "esc50_train_scenes-00007", "seconds": 6.2, "fold": "3", "noise_db": -52.0,
     "noise_seed": 71, "events": [{"clip": "esc50-1-30226-A", "label": "dog",
     "onset": 0.31, "start": 1.2, "seconds": 1.5, "rms_db": -23.1, "slot": 0}, ...]}
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from espnet2_slit.common.files import atomic, write_atomically
from espnet2_slit.data import kaldi_dir
from espnet2_slit.data.audio import AudioError, read_audio
from espnet2_slit.data.corpora import scene_wording
from espnet2_slit.data.corpora.base import CAPTION, CLASS, QUESTION
from espnet2_slit.data.corpora.instruction import (
    MULTI_LABEL_SEPARATOR,
    Utterance,
    read_utterances,
)
from espnet2_slit.data.corpora.tables import CorpusError
from espnet2_slit.data.report import Report
from espnet2_slit.data.writer import SetWriter

SAMPLE_RATE = 16000
SECONDS = (4.0, 10.0)
GAP_S = (0.2, 0.5)  # silence that separates sounds for the ear
FADE_S = 0.02  # no click where a recording is cut
SHORTEST_S = 0.3  # of a sound that can be recognised
LEVEL_DB = -23.0  # of each event, before louder and quieter
LOUDER_DB = 10.0  # about twice as loud
NOISE_DB = (-60.0, -45.0)
PEAK = 0.9
# Below the loudest 50 ms by this much a recording is silent: ESC-50 pads with zeros.
ACTIVE_DB = 40.0
FRAME_S = 0.05
QUIETEST_SHARE = 0.3  # of the power of the recording's loudest stretch of that length
# Slots of sounds by number; two letters in one slot sound at once.
ARRANGEMENTS = {
    1: (("a",),),
    2: (("a", "b"), ("ab",), ("a", "b", "a")),
    3: (("a", "b", "c"), ("ab", "c"), ("a", "bc")),
}
SHARES = {1: 0.2, 2: 0.5, 3: 0.3}


@dataclass(frozen=True)
class Event:
    """A stretch of a recording in a scene; see the module's example."""

    clip: str
    label: str
    onset: float
    start: float
    seconds: float
    rms_db: float
    slot: int


@dataclass(frozen=True)
class Scene:
    """A plan; see the module's example."""

    id: str
    seconds: float
    fold: str
    noise_db: float
    noise_seed: int
    events: tuple[Event, ...]

    @property
    def slots(self) -> list[list[str]]:
        """Labels that sound at once, in order of time."""
        count = max(event.slot for event in self.events) + 1
        return [[e.label for e in self.events if e.slot == k] for k in range(count)]

    @property
    def louder(self) -> tuple[str, str] | None:
        """(louder label, quieter label) of a scene of two, where they differ."""
        level = {event.label: event.rms_db for event in self.events}
        if len(level) != 2:
            return None
        (a, x), (b, y) = level.items()
        if abs(x - y) < 0.9 * LOUDER_DB:
            return None
        return (a, b) if x > y else (b, a)

    def row(self) -> str:
        """The line of a table."""
        return json.dumps(asdict(self), ensure_ascii=False)


def read_table(path: Path) -> list[Scene]:
    """Scenes of a table.

    Raises:
        CorpusError: a line is none; names file and line.
    """
    scenes = []
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            events = tuple(Event(**event) for event in row.pop("events"))
            scenes.append(Scene(**row, events=events))
        except (ValueError, TypeError, KeyError) as error:
            raise CorpusError(
                f"{path} line {number}: expected a scene as compose.py writes it,"
                f" found {line[:80]!r} ({error})"
            ) from error
    return scenes


class Recordings:
    """Labelled recordings of one data directory, by fold and label.

    Args:
        folder: data directory with one label a clip in `text`.

    Raises:
        CorpusError: fewer than two labels.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        folds = {}
        if (self.folder / "utt2fold").is_file():
            folds = kaldi_dir.read_map(self.folder / "utt2fold")
        self.clips: dict[str, Utterance] = {}
        self.by_fold: dict[str, dict[str, list[str]]] = {}
        for utterance in read_utterances(self.folder):
            if MULTI_LABEL_SEPARATOR in utterance.text:
                continue  # what of it would be heard is not known
            if utterance.clip in self.clips:
                continue
            self.clips[utterance.clip] = utterance
            labels = self.by_fold.setdefault(folds.get(utterance.id, ""), {})
            labels.setdefault(utterance.text, []).append(utterance.clip)
        self.labels = sorted({name for fold in self.by_fold.values() for name in fold})
        if len(self.labels) < 2:
            raise CorpusError(
                f"{folder}: expected recordings of two or more labels (a label a clip"
                f" in `text`, as slit corpus esc50 writes), found {len(self.labels)}"
            )
        self.read = lru_cache(maxsize=256)(self._read)

    def _read(self, clip: str) -> np.ndarray:
        utterance = self.clips[clip]
        _, start, end = utterance.segment or (clip, 0.0, -1.0)
        return read_audio(utterance.wav, SAMPLE_RATE, start, end)

    def _power(self, clip: str) -> np.ndarray:
        """(n,) power of its frames of FRAME_S."""
        audio = self.read(clip)
        size = round(FRAME_S * SAMPLE_RATE)
        frames = audio[: len(audio) // size * size].reshape(-1, size)
        return np.square(frames, dtype=np.float64).mean(axis=1)

    def active_s(self, clip: str) -> float:
        """Seconds from the first to the last frame that is not silent."""
        first, last = self._active(clip)
        return (last - first) * FRAME_S

    def _active(self, clip: str) -> tuple[int, int]:
        power = self._power(clip)
        if not len(power) or not power.max():
            return 0, 0
        heard = np.flatnonzero(power > power.max() * 10 ** (-ACTIVE_DB / 10))
        return int(heard[0]), int(heard[-1]) + 1

    def stretch(self, clip: str, seconds: float, rng: random.Random):
        """Where its sound is: a stretch, drawn among those that are not much quieter.

        A bark, a pause and a bark: the pause alone is no dog.

        Args:
            clip: id.
            seconds: wanted.
            rng: draws.

        Returns:
            (start, seconds), both in seconds; shorter where less of it is active.
        """
        first, last = self._active(clip)
        frames = max(min(round(seconds / FRAME_S), last - first), 1)
        energy = np.convolve(self._power(clip)[first:last], np.ones(frames), "valid")
        loud = np.flatnonzero(energy >= QUIETEST_SHARE * energy.max())
        start = first + int(loud[rng.randrange(len(loud))])
        return round(start * FRAME_S, 4), round(frames * FRAME_S, 4)


# ------------------------------------------------------------------------- planning


def plan(recordings: Recordings, name: str, count: int, seed: int, report: Report):
    """Plan scenes, each of recordings of one fold.

    Args:
        recordings: to draw from.
        name: of the set, which begins the scenes' ids.
        count: of scenes.
        seed: another seed, other scenes.
        report: counts what was planned, and recordings that could not be used.

    Yields:
        `count` scenes; the same for the same recordings, name and seed.
    """
    folds = sorted(recordings.by_fold)
    for number in range(count):
        rng = random.Random(f"{seed} {name} {number}")
        fold = folds[number % len(folds)]
        scene = None
        while scene is None:
            scene = _plan_one(recordings, f"{name}-{number:05d}", fold, rng, report)
        report.note(f"{len({e.label for e in scene.events})} sounds")
        yield scene


def _plan_one(recordings, identity, fold, rng, report) -> Scene | None:
    labels = recordings.by_fold[fold]
    numbers = [n for n in SHARES if n <= len(labels)]
    number = rng.choices(numbers, [SHARES[n] for n in numbers])[0]
    shape = rng.choice(ARRANGEMENTS[number])
    names = rng.sample(sorted(labels), number)
    clips = {}
    for letter, label in zip("abc", names, strict=False):
        clips[letter] = _usable(recordings, labels[label], rng, report)
        if clips[letter] is None:
            return None
    quiet = rng.choice("ab") if number == 2 and rng.random() < 0.5 else ""
    total = rng.uniform(*SECONDS)
    share = (total - GAP_S[1] * (len(shape) + 1)) / len(shape)
    at, events = rng.uniform(*GAP_S), []
    for slot, letters in enumerate(shape):
        pieces = {
            letter: recordings.stretch(clips[letter], share * rng.uniform(0.8, 1), rng)
            for letter in letters
        }
        longest = max(seconds for _, seconds in pieces.values())
        for letter, (start, seconds) in pieces.items():
            # At once is within: the shorter one lies in the longer one.
            onset = round(at + rng.uniform(0, longest - seconds), 4)
            level = LEVEL_DB - (LOUDER_DB if letter == quiet else 0.0)
            label = names["abc".index(letter)]
            events.append(
                Event(clips[letter], label, onset, start, seconds, level, slot)
            )
        at += longest + rng.uniform(*GAP_S)
    seconds = round(max(at, SECONDS[0]), 4)
    noise = round(rng.uniform(*NOISE_DB), 1)
    noise_seed = rng.randrange(2**31)
    return Scene(identity, seconds, fold, noise, noise_seed, tuple(events))


def _usable(recordings, clips, rng, report):
    """A drawn recording; None, counted, if it cannot be used: it is not drawn again."""
    clip = rng.choice(clips)
    try:
        if recordings.active_s(clip) >= SHORTEST_S:
            return clip
        report.drop("recording is silent or too short", clip)
    except AudioError as error:
        report.drop("recording cannot be read", str(error))
    clips.remove(clip)
    if not clips:
        raise CorpusError(f"{recordings.folder}: no recording of a label can be used")
    return None


# ------------------------------------------------------------------------ rendering


def render(scene: Scene, recordings: Recordings) -> np.ndarray:
    """The sound of a scene.

    Args:
        scene: a plan.
        recordings: that have its clips.

    Returns:
        (S,) float32 at SAMPLE_RATE.

    Raises:
        CorpusError: a recording is not there.
    """
    audio = np.zeros(round(scene.seconds * SAMPLE_RATE), np.float32)
    for event in scene.events:
        if event.clip not in recordings.clips:
            raise CorpusError(
                f"{recordings.folder}: scene {scene.id} needs the recording"
                f" {event.clip}, which is not there"
            )
        first = round(event.start * SAMPLE_RATE)
        piece = recordings.read(event.clip)[first:][
            : round(event.seconds * SAMPLE_RATE)
        ]
        power = float(np.mean(np.square(piece, dtype=np.float64)))
        piece = piece * (10 ** (event.rms_db / 20) / max(power**0.5, 1e-6))
        fade = min(round(FADE_S * SAMPLE_RATE), len(piece) // 2)
        slope = np.linspace(0, 1, fade, dtype=np.float32)
        piece[:fade] *= slope
        piece[len(piece) - fade :] *= slope[::-1]
        onset = round(event.onset * SAMPLE_RATE)
        room = audio[onset : onset + len(piece)]
        room += piece[: len(room)].astype(np.float32)
    noise = np.random.default_rng(scene.noise_seed).standard_normal(len(audio))
    audio += (10 ** (scene.noise_db / 20) * noise).astype(np.float32)
    return (audio * min(1.0, PEAK / np.abs(audio).max())).astype(np.float32)


# -------------------------------------------------------------------------- writing


def compose(
    sources: Sequence[Path],
    out: Path,
    counts: Mapping[str, int],
    seed: int = 0,
    wordings: int = 5,
    tables: Path | None = None,
) -> list[Report]:
    """Make sets of scenes, each of the recordings of one set.

    Training sets become <name>_scenes_caption and <name>_scenes_instruction (captions,
    questions and labels with instructions); test sets <name>_scenes_caption with
    references, <name>_scenes_qa with choices, and <name>_scenes_labels.

    Args:
        sources: data directories of labelled recordings; a set whose set.json says
            "test" is scored on, "valid" and "train" are trained on.
        out: folder of the data directories, of audio/ and of tables/.
        counts: scenes by split.
        seed: of plans and wordings.
        wordings: captions of a scene.
        tables: folder of tables to make the sound of, instead of planning.

    Returns:
        A report a set.

    Raises:
        CorpusError: a source has no labels, or a table's recordings are not there.
    """
    out, reports = Path(out), []
    for source in map(Path, sources):
        recordings = Recordings(source)
        facts = kaldi_dir.read_set(source)
        split = facts["split"] or source.name.rpartition("_")[2]
        name, report = f"{source.name}_scenes", Report(str(source))
        if tables is None:
            count = counts.get(split, counts["train"])
            scenes = list(plan(recordings, name, count, seed, report))
        else:
            scenes = read_table(Path(tables) / f"{name}.jsonl")
        write_atomically(
            out / "tables" / f"{name}.jsonl", [scene.row() for scene in scenes]
        )
        paths = {}
        for scene in scenes:
            paths[scene.id] = str((out / "audio" / name / f"{scene.id}.flac").resolve())
            _write(Path(paths[scene.id]), render(scene, recordings))
        report.rows = report.kept = len(scenes)
        facts = {
            "corpus": f"{facts['corpus'] or source.name} scenes",
            "split": split,
            "variant": f"composed, seed {seed}",
            "notes": "scenes composed of labelled recordings; texts follow from plans",
        }
        texts = [_texts(scene, recordings.labels, seed, wordings) for scene in scenes]
        if split == "test":
            _write_test(out, name, scenes, texts, paths, recordings.labels, facts)
        else:
            _write_training(out, name, scenes, texts, paths, facts)
        report.write(out / "tables" / f"{name}_report.json")
        reports.append(report)
    return reports


def _write(path: Path, audio: np.ndarray) -> None:
    import soundfile

    with atomic(path) as stream:
        soundfile.write(stream, audio, SAMPLE_RATE, "PCM_16", format="FLAC")


def _texts(scene, labels, seed, wordings):
    """(captions, questions, labels) of a scene."""
    rng = random.Random(f"{seed} texts {scene.id}")
    said = scene_wording.captions(scene.slots, rng, wordings)
    asked = scene_wording.questions(scene.slots, scene.louder, labels, rng)
    return said, asked, list(dict.fromkeys(e.label for e in scene.events))


def _add(files, scene, paths, key, text, task, category, **more):
    files.add(
        f"{scene.id}-{key}" if key else scene.id,
        scene.id,
        paths[scene.id],
        text,
        task,
        category,
        fold=scene.fold,
        **more,
    )


def _write_training(out, name, scenes, texts, paths, facts):
    from espnet2_slit.common import templates

    with (
        SetWriter(out / f"{name}_caption") as told,
        SetWriter(out / f"{name}_instruction") as asked,
    ):
        for number, (scene, (captions, questions, labels)) in enumerate(
            zip(scenes, texts, strict=True)
        ):
            for k, caption in enumerate(captions):
                _add(told, scene, paths, f"c{k}", caption, CAPTION, "caption")
            wanted = templates.instruction(CAPTION, variant=number)
            _add(asked, scene, paths, "c", captions[number % len(captions)], CAPTION,
                 "caption", instruction=wanted)  # fmt: skip
            for question in questions:
                wanted = templates.instruction(QUESTION, question.text, number)
                _add(asked, scene, paths, question.kind, question.answer, QUESTION,
                     question.kind, instruction=wanted)  # fmt: skip
            wanted = templates.instruction(CLASS, variant=number)
            joined = MULTI_LABEL_SEPARATOR.join(labels)
            _add(asked, scene, paths, "l", joined, CLASS, "labels", instruction=wanted)
        told.describe(tasks=[], **facts)
        asked.describe(tasks=[], **facts)


def _write_test(out, name, scenes, texts, paths, labels, facts):
    with (
        SetWriter(out / f"{name}_caption") as told,
        SetWriter(out / f"{name}_qa") as asked,
        SetWriter(out / f"{name}_labels") as heard,
    ):
        answers: Counter[str] = Counter()
        for scene, (captions, questions, names) in zip(scenes, texts, strict=True):
            _add(told, scene, paths, "", captions[0], CAPTION, "caption")
            for caption in captions:
                told.reference(scene.id, caption)
            for question in questions:
                answers[question.answer] += 1
                _add(asked, scene, paths, question.kind, question.answer, QUESTION,
                     question.kind, instruction=question.text,
                     choices=question.choices)  # fmt: skip
            joined = MULTI_LABEL_SEPARATOR.join(names)
            _add(heard, scene, paths, "", joined, CLASS, "labels")
            for label in names:
                heard.reference(scene.id, label)
        told.describe(tasks=["caption", "retrieval"], **facts)
        asked.describe(answers=sorted(answers), tasks=[QUESTION], **facts)
        heard.describe(labels=labels, tasks=[CLASS], **facts)
