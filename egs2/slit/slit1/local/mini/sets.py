"""The data directories of the mini corpus: which sample says what about which clip."""

import collections
import functools
import json
import random

from mini.languages import ENGLISH
from mini.scenes import SEEN_CLASSES, UNSEEN_CLASSES
from mini.sentences import (
    any_instruction,
    balanced_questions,
    captions,
    choice_questions,
)
from mini.sounds import SAMPLE_RATE

from espnet2_slit.common.files import write_atomically, write_json
from espnet2_slit.common.templates import instruction
from espnet2_slit.data.writer import new_directory

# Samples of a clip in the instruction sets, beside its class name.
QUESTIONS_PER_SCENE, CAPTIONS_PER_SCENE = 3, 2
CHOICES_PER_KIND = 50


def write_data_dirs(splits, recordings, seed, data_dir, audio, language=ENGLISH):
    """Write every set of the recipe.

    Args:
        splits: as of plan_corpus.
        recordings: as of plan_recordings.
        seed: of the words.
        data_dir: Path, the recipe's `data`.
        audio: dict clip id -> path as it is to stand in wav.scp.
        language: of all texts, a Language.
    """
    write = functools.partial(_write, data_dir, audio, language)
    for split in ("train", "valid"):
        scenes = splits[split]
        samples = {
            f"{scene.clip}_c{index}": {"utt2audio": scene.clip, "text": text}
            for scene in scenes
            for index, text in enumerate(captions(scene, seed, language=language))
        }
        write(f"{split}_caption", samples, "five captions a clip")
        samples = _instruction_samples(scenes, seed, language)
        write(f"{split}_instruction", samples, "captions, questions, class names")

    for name, split, variant in (
        ("test_caption", "test", "seen combinations"),
        ("test_caption_unseen", "test_unseen", "unseen combinations of seen classes"),
    ):
        scenes = splits[split]
        texts = {s.clip: captions(s, seed, language=language) for s in scenes}
        asked = instruction("caption", language=language.code)
        samples = {
            clip: _sample(clip, lines[0], asked, "caption")
            for clip, lines in texts.items()
        }
        notes = f"chance of R@1 among {len(texts)} clips: {1 / len(texts):.4f}"
        lines = [f"{clip} {text}" for clip, lines in texts.items() for text in lines]
        lists = {"references": sorted(lines, key=str.encode)}
        write(name, samples, variant, ["caption", "retrieval"], notes, lists)

    samples, notes = _test_questions(splits["test"], seed, language)
    lists = {"answers": language.answers.values()}
    tasks = ["question_answering"]
    write("test_qa", samples, "seen combinations", tasks, notes, lists)

    samples, lists = _choice_questions(splits["test"], seed, language)
    notes = f"chance: {1 / 4:.4f}"
    write("test_choices", samples, "four options a question", tasks, notes, lists)

    samples, lists = _moments(recordings, seed, language)
    write("test_moments", samples, "30 to 60 s", ["moments"], "", lists)

    for name, classes, variant in (
        ("test_class", SEEN_CLASSES, "seen classes"),
        ("test_class_unseen", UNSEEN_CLASSES, "classes in no training audio"),
    ):
        asked = instruction("classification", language=language.code)
        samples = {
            s.clip: _sample(s.clip, _label(s, language), asked, "classification")
            for s in splits[name]
        }
        labels = sorted(language.label(*pair) for pair in classes)
        notes = f"chance among {len(labels)} classes: {1 / len(labels):.4f}"
        write(name, samples, variant, ["classification"], notes, {"labels": labels})


def _write(
    data_dir, audio, language, name, samples, variant, tasks=(), notes="", lists=None
):
    """Write one Kaldi-style directory; it appears whole or not at all.

    Args:
        data_dir: Path of its parent, as audio and language of write_data_dirs.
        audio: dict clip id -> path.
        language: of the texts.
        name: of the directory.
        samples: sample id -> file -> its value; utt2audio and text at least.
        variant: for set.json, as tasks, which the set evaluates, and notes.
        tasks: see variant.
        notes: what guessing would give.
        lists: file name -> lines as they are.
    """
    keys = sorted(samples, key=str.encode)
    columns = {file: [samples[key][file] for key in keys] for file in samples[keys[0]]}
    columns["wav.scp"] = [audio[clip] for clip in columns["utt2audio"]]
    columns["utt2spk"] = ["dummy"] * len(keys)
    info = {
        "schema": 1,
        "name": name,
        "corpus": "mini",
        "split": name.partition("_")[0],
        "variant": variant,
        "tasks": list(tasks),
        "zero_shot": name.endswith("_unseen"),
        "sample_rate": SAMPLE_RATE,
        "notes": notes,
    }
    if language is not ENGLISH:
        info["language"] = language.code
    with new_directory(data_dir / name) as folder:
        for file, values in columns.items():
            lines = (f"{key} {value}" for key, value in zip(keys, values, strict=True))
            write_atomically(folder / file, lines)
        write_atomically(folder / "spk2utt", [" ".join(["dummy", *keys])])
        for file, lines in (lists or {}).items():
            write_atomically(folder / file, lines)
        write_json(folder / "set.json", info, indent=2)


def _sample(clip, text, asked, task):
    return {"utt2audio": clip, "text": text, "instruction": asked, "utt2task": task}


def _label(scene, language):
    return language.label(scene.events[0].manner, scene.events[0].source)


def _instruction_samples(scenes, seed, language):
    """Captioning, questions and class names with varied instructions."""
    rng = random.Random(f"instructions-{seed}-{scenes[0].clip}")
    samples = {}

    def add(key, scene, task, question, text):
        asked = any_instruction(rng, task, question, language)
        category = {"utt2category": f"mini_{task}"}
        samples[key] = _sample(scene.clip, text, asked, task) | category

    for scene in scenes:
        texts = captions(scene, seed, language=language)
        for index, text in enumerate(rng.sample(texts, CAPTIONS_PER_SCENE)):
            add(f"{scene.clip}_c{index}", scene, "caption", "", text)
        if scene.relation == "single":
            label = _label(scene, language)
            add(f"{scene.clip}_l0", scene, "classification", "", label)
    asked = balanced_questions(scenes, seed, QUESTIONS_PER_SCENE, language=language)
    for key, (scene, _, question, answer) in _numbered(asked):
        add(key, scene, "question_answering", question, answer)
    return samples


def _numbered(asked):
    """(sample id, question) of balanced_questions, numbered within each clip."""
    numbers = {}
    for question in asked:
        clip = question[0].clip
        number = numbers[clip] = numbers.get(clip, -1) + 1
        yield f"{clip}_q{number}", question


def _test_questions(scenes, seed, language):
    """Samples of the test set of questions, and what guessing would give."""
    chosen = balanced_questions(scenes, seed, 4, fixed=True, language=language)
    samples = {
        key: _sample(scene.clip, answer, question, "question_answering")
        for key, (scene, _, question, answer) in _numbered(chosen)
    }
    kinds = collections.defaultdict(collections.Counter)
    for _, kind, _, answer in chosen:
        kinds[kind][answer] += 1
    overall = max(sum(kinds.values(), collections.Counter()).values()) / len(chosen)
    per_kind = sum(max(count.values()) for count in kinds.values()) / len(chosen)
    notes = (
        f"always the commonest answer: {overall:.4f}; the commonest answer of each kind"
        f" of question: {per_kind:.4f}; chance among {len(language.answers)} answers:"
        f" {1 / len(language.answers):.4f}"
    )
    return samples, notes


def _choice_questions(scenes, seed, language):
    """Samples of the test set of multiple choice, its options and categories."""
    chosen = choice_questions(scenes, seed, CHOICES_PER_KIND, language)
    samples, options, kinds = {}, [], []
    for key, (scene, kind, question, answer, shown) in _numbered(chosen):
        samples[key] = _sample(scene.clip, answer, question, "question_answering")
        options.append(f"{key} {json.dumps(shown, ensure_ascii=False)}")
        kinds.append(f"{key} {kind}")
    return samples, {"choices": sorted(options), "utt2kind": sorted(kinds)}


def _moments(recordings, seed, language):
    """Samples of the test set of moments, and when what they ask for is heard."""
    samples, moments = {}, []
    for recording in recordings:
        for start_s, scene in recording.parts:
            (text,) = captions(scene, seed, 1, language)
            samples[scene.clip] = {"utt2audio": recording.clip, "text": text}
            first, last = (start_s + time_s for time_s in scene.span)
            moments.append(f"{scene.clip} {first:.2f} {last:.2f}")
    return samples, {"moments": sorted(moments)}
