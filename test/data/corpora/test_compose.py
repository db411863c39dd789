"""Composed scenes: what is said of them is true, and anybody makes the same ones."""

import json
import random

import numpy as np
import pytest
import soundfile

from espnet2_slit.bin import slit_corpus
from espnet2_slit.data import kaldi_dir
from espnet2_slit.data.corpora import compose, scene_wording
from espnet2_slit.data.corpora.tables import CorpusError
from espnet2_slit.data.validate import validate
from espnet2_slit.data.writer import SetWriter

RATE = compose.SAMPLE_RATE
LABELS = {"dog": 300, "rain": 900, "sea waves": 2000, "bell": 4000}
COUNTS = {"train": 40, "valid": 10, "test": 25}


def recording(label, number):
    """A tone of the label's own, with a pause in it as barks have."""
    rng = np.random.default_rng(number)
    time = np.arange(int(3.0 * RATE)) / RATE
    audio = 0.2 * np.sin(2 * np.pi * LABELS[label] * time)
    audio += 0.002 * rng.standard_normal(len(audio))
    audio[int(1.0 * RATE) : int(2.0 * RATE)] *= 1e-3
    audio[: int(0.3 * RATE)] = 0
    return audio


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Label sets of two folds each, with one silent and one broken recording."""
    root = tmp_path_factory.mktemp("labelled")
    for split in ("train", "valid", "test"):
        with SetWriter(root / f"toy_{split}") as files:
            for number in range(16):
                label = list(LABELS)[number % 4]
                clip = f"{split}-{number:02d}"
                path = root / f"{clip}.wav"
                soundfile.write(path, recording(label, number), RATE)
                files.add(clip, clip, str(path), label, "classification", "toy",
                          fold=str(number // 8))  # fmt: skip
            files.describe(corpus="toy", split=split, tasks=["classification"])
    soundfile.write(root / "train-01.wav", np.zeros(3 * RATE), RATE)
    (root / "train-02.wav").write_bytes(b"no audio")
    return [root / f"toy_{split}" for split in ("train", "valid", "test")]


@pytest.fixture(scope="module")
def made(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes")
    reports = compose.compose(sources, out, COUNTS)
    scenes = {
        split: compose.read_table(out / "tables" / f"toy_{split}_scenes.jsonl")
        for split in COUNTS
    }
    return out, reports, scenes


def digest(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "wav.scp"
    }


def test_the_same_seed_makes_the_same_scenes_and_another_one_others(
    made, sources, tmp_path
):
    out, _, scenes = made
    compose.compose(sources, tmp_path / "again", COUNTS)
    assert digest(tmp_path / "again") == digest(out)
    compose.compose(sources[2:], tmp_path / "other", COUNTS, seed=1)
    others = compose.read_table(tmp_path / "other/tables/toy_test_scenes.jsonl")
    assert others != scenes["test"]


def test_the_tables_alone_make_the_same_sound(made, sources, tmp_path):
    out, _, _ = made
    compose.compose(sources[2:], tmp_path, {"train": 1}, tables=out / "tables")
    first = digest(out / "audio" / "toy_test_scenes")
    assert first == digest(tmp_path / "audio" / "toy_test_scenes")
    (tmp_path / "tables" / "toy_train_scenes.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(CorpusError, match="toy_train_scenes.jsonl line 1: expected"):
        compose.compose(sources[:1], tmp_path, {}, tables=tmp_path / "tables")


def test_recordings_stay_in_their_set_and_fold(made):
    _, _, scenes = made
    for split, some in scenes.items():
        assert len(some) == COUNTS[split] and {s.fold for s in some} == {"0", "1"}
        for scene in some:
            for event in scene.events:
                assert event.clip.startswith(split)
                assert int(event.clip[-2:]) // 8 == int(scene.fold)


def test_what_cannot_be_used_is_counted_and_never_drawn(made):
    _, reports, scenes = made
    assert reports[0].dropped == {
        "recording is silent or too short": 1, "recording cannot be read": 1,
    }  # fmt: skip
    used = {event.clip for scene in scenes["train"] for event in scene.events}
    assert not used & {"train-01", "train-02"} and len(used) > 8


def test_plans_are_what_texts_say_of_them(made):
    _, _, scenes = made
    shapes = set()
    for scene in [s for some in scenes.values() for s in some]:
        assert 4.0 <= scene.seconds <= 10.5
        slots = {}
        for event in scene.events:
            slots.setdefault(event.slot, []).append(event)
        shapes.add(tuple(len(slots[k]) for k in sorted(slots)))
        for k, events in slots.items():
            spans = sorted(
                ((e.onset, e.onset + e.seconds) for e in events),
                key=lambda span: span[0] - span[1],
            )
            for start, end in spans[1:]:  # at once: within the longest one
                assert spans[0][0] - 1e-3 <= start and end <= spans[0][1] + 1e-3
            if k:
                before = max(e.onset + e.seconds for e in slots[k - 1])
                assert spans[0][0] - before >= compose.GAP_S[0] - 1e-3
    assert shapes >= {(1,), (1, 1), (2,), (1, 1, 1), (2, 1), (1, 2)}


def heard(audio, label):
    """Power of a label's tone in each 50 ms, dB."""
    size = RATE // 20
    frames = audio[: len(audio) // size * size].reshape(-1, size)
    tone = np.exp(-2j * np.pi * LABELS[label] * np.arange(size) / RATE)
    return 20 * np.log10(np.abs(frames @ tone) / size + 1e-9)


def test_each_sound_is_heard_where_and_as_loud_as_planned(made):
    out, _, scenes = made
    checked = 0
    for scene in scenes["test"]:
        path = out / "audio" / "toy_test_scenes" / f"{scene.id}.flac"
        audio, rate = soundfile.read(path)
        assert rate == RATE and abs(len(audio) - scene.seconds * RATE) <= 1
        assert 0 < np.abs(audio).max() <= compose.PEAK + 1e-3
        for event in scene.events:
            level = heard(audio, event.label)
            first = int(event.onset / 0.05) + 1
            inside = level[first : int((event.onset + event.seconds) / 0.05)]
            # never the pause between two barks alone
            assert inside.max() > np.median(level) - 60 and inside.max() > -50
        if scene.louder:
            loud, quiet = (heard(audio, name).max() for name in scene.louder)
            assert loud - quiet > 5
            checked += 1
    assert checked > 2


def test_captions_are_several_and_name_the_sounds_in_order(made):
    out, _, scenes = made
    folder = out / "toy_test_scenes_caption"
    said = {}
    for clip, text in kaldi_dir.read_pairs(folder / "references"):
        said.setdefault(clip, []).append(text)
    for scene in scenes["test"]:
        texts = said[scene.id]
        assert len(texts) == len(set(texts)) == 5
        for text in texts:
            places = [
                min(text.lower().index(name) for name in slot) for slot in scene.slots
            ]
            for slot in scene.slots:
                assert all(name in text.lower() for name in slot)
            if len(scene.slots) == len({n for slot in scene.slots for n in slot}):
                assert places == sorted(places)
            assert ("again" in text) == (
                len(scene.slots) == 3 and scene.slots[0] == scene.slots[2]
            )


def right_answer(scene, question):
    """The answer from the events' times, without the code that wrote it."""
    names = {event.label for event in scene.events}
    asked = [name for name in LABELS if name in question]
    span = {
        name: [(e.onset, e.onset + e.seconds) for e in scene.events if e.label == name]
        for name in names
    }
    if question.startswith("How many"):
        return ("one", "two", "three")[len(names) - 1]
    if question.startswith("Can "):
        return "yes" if asked[0] in names else "no"
    if "besides" in question:
        (other,) = names - set(asked)
        return other
    if question.startswith("Which sound is heard?"):
        (only,) = names
        return only
    if "first" in question:
        return min(asked, key=lambda name: min(span[name])[0])
    if "last" in question:
        return max(asked, key=lambda name: max(end for _, end in span[name]))
    if "same time" in question:
        once = any(
            a < d and c < b for a, b in span[asked[0]] for c, d in span[asked[1]]
        )
        return "at the same time" if once else "one after the other"
    if "louder" in question:
        level = {e.label: e.rms_db for e in scene.events}
        return max(asked, key=level.get)
    raise AssertionError(question)


def test_every_answer_follows_from_the_times(made):
    out, _, scenes = made
    folder = out / "toy_test_scenes_qa"
    plans = {scene.id: scene for scene in scenes["test"]}
    clips = kaldi_dir.read_map(folder / "utt2audio")
    answers = kaldi_dir.read_map(folder / "text")
    choices = kaldi_dir.read_map(folder / "choices")
    kinds = set(kaldi_dir.read_map(folder / "utt2category").values())
    assert kinds == {
        "what", "count", "order", "simultaneity", "loudness", "presence",
    }  # fmt: skip
    for key, question in kaldi_dir.read_pairs(folder / "instruction"):
        assert answers[key] == right_answer(plans[clips[key]], question), question
        options = json.loads(choices[key])
        assert answers[key] in options and len(set(options)) == len(options) > 1


def test_the_sets_are_data_directories(made):
    out, _, _ = made
    names = sorted(path.parent.name for path in out.glob("*/wav.scp"))
    assert names == [
        "toy_test_scenes_caption", "toy_test_scenes_labels", "toy_test_scenes_qa",
        "toy_train_scenes_caption", "toy_train_scenes_instruction",
        "toy_valid_scenes_caption", "toy_valid_scenes_instruction",
    ]  # fmt: skip
    for name in names:
        assert validate(out / name) > 0
    assert kaldi_dir.read_set(out / names[0])["split"] == "test"
    assert len(kaldi_dir.read_map(out / names[3] / "text")) == 5 * COUNTS["train"]


def test_the_command_makes_them(sources, tmp_path, capsys):
    words = [
        "compose",
        "--from",
        str(sources[2]),
        "--out",
        str(tmp_path),
        "--test",
        "4",
    ]
    slit_corpus.main(words)
    assert "4 rows read, 4 kept" in capsys.readouterr().out
    assert len(list((tmp_path / "audio").rglob("*.flac"))) == 4
    captions = tmp_path / "one_label"
    with SetWriter(captions) as files:
        files.add("a", "a", "a.wav", "dog", "classification", "toy")
    with pytest.raises(SystemExit, match="two or more labels"):
        slit_corpus.main(["compose", "--from", str(captions), "--out", str(tmp_path)])


def test_questions_do_not_favour_the_first_choice():
    answers = {"first": 0, "second": 0}
    for seed in range(200):
        asked = scene_wording.questions(
            [["dog"], ["rain"]], ("dog", "rain"), list(LABELS), random.Random(seed)
        )
        for question in asked:
            if question.kind in ("order", "loudness"):
                at = question.choices.index(question.answer)
                answers[list(answers)[at]] += 1
    assert 0.4 < answers["first"] / sum(answers.values()) < 0.6
