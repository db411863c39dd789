"""The mini corpus: true words, held-out sets held out, same seed same corpus."""

import collections
import hashlib
import itertools
import json
import types

import numpy as np
import pytest
import soundfile
import torch
from recipe_local import local

SIZES = {
    "train": 24,
    "valid": 6,
    "test": 12,
    "test_unseen": 8,
    "test_class": 1,
    "test_class_unseen": 1,
    "test_moments": 2,
}
SMALL = {"pairs": 640, "learning_rate": 3e-3}  # of a language model
mini_corpus = local("mini_corpus")
scenes = local("mini.scenes")
sets = local("mini.sets")
sounds = local("mini.sounds")
render = sounds.render


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    made = mini_corpus.make_corpus(folder / "data", folder / "audio", 3, SIZES, jobs=2)
    return folder, made


@pytest.fixture(scope="module")
def splits():
    return scenes.plan_corpus(1, mini_corpus.SIZES)


# --------------------------------------------------------------------------- scenes


def test_full_corpus_is_as_large_as_the_recipe_says(splits):
    assert len(splits["train"]) >= 2000
    assert len(scenes.SEEN_CLASSES) == 24 and len(scenes.UNSEEN_CLASSES) == 8
    for scene in itertools.chain(*splits.values()):
        assert 2.0 <= scene.duration_s <= 4.0


def test_every_event_lies_inside_its_clip(splits):
    for scene in itertools.chain(*splits.values()):
        for event in scene.events:
            assert len(event.spans) == event.count
            assert event.spans[0][0] > 0
            assert event.spans[-1][1] < scene.duration_s
            for (_, end), (start, _) in itertools.pairwise(event.spans):
                assert start - end > 0.3  # heard as separate sounds


def test_relation_is_what_the_times_say(splits):
    for scene in itertools.chain(*splits.values()):
        if scene.relation == "single":
            assert len(scene.events) == 1
            continue
        first, second = scene.events
        shared = min(first.spans[-1][1], second.spans[-1][1]) - max(
            first.spans[0][0], second.spans[0][0]
        )
        if scene.relation == "sequence":
            assert shared < -0.1
        else:
            assert shared > 0.7 * min(
                e.spans[0][1] - e.spans[0][0] for e in (first, second)
            )


def test_unseen_classes_and_combinations_are_in_no_training_clip(splits):
    heard = collections.Counter()
    for scene in splits["train"] + splits["valid"]:
        for event in scene.events:
            assert (event.manner, event.source) in scenes.SEEN_CLASSES
            heard[event.manner] += 1
            heard[event.source] += 1
        keys = [(e.source, e.manner, e.pitch) for e in scene.events]
        assert not scenes.is_held_out(scene.relation, keys)
    assert min(heard[name] for name in (*scenes.SOURCES, *scenes.MANNERS)) > 100
    for scene in splits["test_unseen"]:
        keys = [(e.source, e.manner, e.pitch) for e in scene.events]
        assert scenes.is_held_out(scene.relation, keys)
        assert {(e.manner, e.source) for e in scene.events} <= set(scenes.SEEN_CLASSES)
    unseen = {
        (e.manner, e.source) for s in splits["test_class_unseen"] for e in s.events
    }
    assert unseen == set(scenes.UNSEEN_CLASSES)


def test_source_or_manner_alone_do_not_tell_unseen_classes_apart():
    for position in (0, 1):
        counts = collections.Counter(pair[position] for pair in scenes.UNSEEN_CLASSES)
        assert set(counts.values()) == {2}


def test_test_clips_differ_in_words(splits):
    for name in ("test", "test_unseen"):
        descriptions = [scene.description for scene in splits[name]]
        assert len(set(descriptions)) == len(descriptions)


# ---------------------------------------------------------------------------- audio


def _clean(count=1, **changes):
    """A scene with one loud event and neither background nor chance in its times."""
    fields = {
        "source": "whistle",
        "manner": "rising",
        "pitch": "",
        "level": "loud",
        "speed": "",
    } | changes
    length = 0.45 if count > 1 else 0.8
    spans = tuple((0.2 + n * 0.9, 0.2 + n * 0.9 + length) for n in range(count))
    event = scenes.Event(**fields, count=count, spans=spans)
    return scenes.Scene(
        f"clip{changes}{count}", "single", (event,), "", spans[-1][1] + 0.4
    )


def _wave(scene):
    return render(scene, 1).astype(np.float64) / 32768


def _level_db(scene):
    wave = _wave(scene)
    start, end = scene.events[0].spans[0]
    return 10 * np.log10(np.mean(wave[int(start * 16000) : int(end * 16000)] ** 2))


def _log_spectrum(wave, start, end):
    """Amplitude on a logarithmic frequency axis, 24 bins an octave from 60 Hz."""
    part = wave[start:end] * np.hanning(end - start)
    amplitude = np.abs(np.fft.rfft(part, 1 << 15)) ** 0.5
    axis = 60 * 2 ** (np.arange(24 * 7) / 24)
    found = np.interp(axis, np.fft.rfftfreq(1 << 15, 1 / 16000), amplitude)
    return np.convolve(found, np.hanning(7), mode="same")


def _octaves_up(before, after):
    """By how many octaves a log spectrum must be moved up to look like another."""
    best = {}
    for shift in range(-60, 61):
        a = before[max(0, -shift) : len(before) - max(0, shift)]
        b = after[max(0, shift) : len(after) - max(0, -shift)]
        best[shift] = np.corrcoef(a, b)[0, 1]
    return max(best, key=best.get) / 24


def _slide(scene):
    """Octaves from the first to the last quarter of an event."""
    wave = _wave(scene)
    start, end = (int(t * 16000) for t in scene.events[0].spans[0])
    quarter = (end - start) // 4
    return _octaves_up(
        _log_spectrum(wave, start, start + quarter),
        _log_spectrum(wave, end - quarter, end),
    )


def _whole(scene):
    start, end = (int(t * 16000) for t in scene.events[0].spans[0])
    return _log_spectrum(_wave(scene), start, end)


@pytest.mark.parametrize("source", list(scenes.SOURCES))
def test_rising_rises_and_falling_falls(source):
    assert _slide(_clean(source=source, manner="rising")) > 0.4
    assert _slide(_clean(source=source, manner="falling")) < -0.4


@pytest.mark.parametrize("source", list(scenes.SOURCES))
def test_high_is_higher_than_low_and_loud_is_louder(source):
    low, high = (_whole(_clean(source=source, pitch=p)) for p in ("low", "high"))
    assert _octaves_up(low, high) > 0.7
    loud, middle, quiet = (
        _level_db(_clean(source=source, level=level)) for level in ("loud", "", "quiet")
    )
    assert loud > middle + 4 > quiet + 8


def _bursts(wave, gap_s, threshold_db=-22.0):
    """Number of stretches above a threshold below the peak, at least gap_s apart."""
    frame = 160
    energy = (wave[: len(wave) // frame * frame].reshape(-1, frame) ** 2).mean(1)
    active = np.flatnonzero(energy > energy.max() * 10 ** (threshold_db / 10))
    return 1 + int((np.diff(active) > gap_s * 100).sum())


@pytest.mark.parametrize("source", sorted(set(scenes.SOURCES) - {"chime"}))
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_count_is_heard(source, count):
    assert _bursts(_wave(_clean(source=source, count=count)), gap_s=0.12) == count


@pytest.mark.parametrize("source", ["whistle", "buzz", "honk", "hum"])
def test_fast_pulses_are_more_than_slow_ones(source):
    slow, fast = (
        _bursts(
            _wave(_clean(source=source, manner="pulsing", speed=speed)),
            gap_s=0.02,
            threshold_db=-12.0,
        )
        for speed in ("slow", "fast")
    )
    assert 2 <= slow <= 4 and 6 <= fast <= 10


def test_background_is_below_quiet_sounds_and_above_silence():
    scene = _clean(level="quiet")
    silent = _wave(scene)[: int(0.15 * 16000)]
    for kind in scenes.BACKGROUNDS:
        noisy = _wave(
            scenes.Scene("clip", "single", scene.events, kind, scene.duration_s)
        )[: int(0.15 * 16000)]
        assert 10 * np.log10(np.mean(noisy**2) / np.mean(silent**2)) > 12
        assert 10 * np.log10(np.mean(noisy**2)) < -35


def test_clips_of_one_class_differ():
    scene = _clean()
    other = scenes.Scene("other", "single", scene.events, "", scene.duration_s)
    assert not np.array_equal(_wave(scene), _wave(other))


# ---------------------------------------------------------------------------- files


def _text_digest(data_dir, without=()):
    """Of every text file of the data directories, without audio paths."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(data_dir.glob("*/*")):
        if path.name != "wav.scp" and path.parent.name not in without:
            digest.update(f"{path.parent.name}/{path.name}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def test_corpus_does_not_depend_on_jobs_and_follows_the_seed(corpus, tmp_path):
    folder, made = corpus
    again = mini_corpus.make_corpus(
        tmp_path / "data", tmp_path / "audio", 3, SIZES, jobs=1
    )
    assert again["audio_digest"] == made["audio_digest"]
    assert _text_digest(tmp_path / "data") == _text_digest(folder / "data")
    other = mini_corpus.make_corpus(tmp_path / "d", tmp_path / "a", 4, SIZES, jobs=1)
    assert other["audio_digest"] != made["audio_digest"]
    assert _text_digest(tmp_path / "d") != _text_digest(folder / "data")


def test_text_of_seed_3_is_the_text_it_always_was(corpus):
    """Another digest means other data directories, so other scores in README."""
    digest = _text_digest(corpus[0] / "data", ("test_choices", "test_moments"))
    assert (scenes.VERSION, digest) == (2, "9a894fda4ded17e18b63176092219d21")
    digest = _text_digest(corpus[0] / "data")
    assert digest == "0a1d67a2abede01d1875b5a81280230d"


def test_second_run_makes_no_audio_and_heals_a_lost_file(corpus):
    folder, made = corpus
    files = sorted((folder / "audio").glob("*/*.flac"))
    assert len(files) == made["clips"] == 24 + 6 + 12 + 8 + 24 + 8 + 2
    times = [path.stat().st_mtime_ns for path in files]
    content = files[5].read_bytes()
    mini_corpus.make_corpus(folder / "data", folder / "audio", 3, SIZES)
    assert [path.stat().st_mtime_ns for path in files] == times
    files[5].unlink()
    mini_corpus.make_corpus(folder / "data", folder / "audio", 3, SIZES)
    assert files[5].read_bytes() == content
    assert not list(folder.rglob(".*"))  # no half-written file is left


def test_other_settings_make_the_audio_anew(tmp_path):
    sizes = dict.fromkeys(SIZES, 1)
    first = mini_corpus.make_corpus(
        tmp_path / "data", tmp_path / "audio", 1, sizes, jobs=1
    )
    second = mini_corpus.make_corpus(
        tmp_path / "data", tmp_path / "audio", 2, sizes, jobs=1
    )
    fresh = mini_corpus.make_corpus(
        tmp_path / "data2", tmp_path / "audio2", 2, sizes, jobs=1
    )
    assert second["audio_digest"] == fresh["audio_digest"] != first["audio_digest"]
    for path in (tmp_path / "audio").glob("*/*.flac"):
        twin = tmp_path / "audio2" / path.relative_to(tmp_path / "audio")
        assert path.read_bytes() == twin.read_bytes()


def test_audio_is_16_bit_16_khz_mono_of_the_planned_length(corpus):
    folder, _ = corpus
    lines = (folder / "audio" / "scenes.jsonl").read_text().splitlines()
    for scene in map(scenes.scene_from_json, lines[::7]):
        name = scene.clip.rsplit("_", 1)[0]
        info = soundfile.info(folder / "audio" / name / f"{scene.clip}.flac")
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert info.frames == round(scene.duration_s * 16000)


def test_data_directories_are_complete_and_valid(corpus):
    validate = pytest.importorskip("espnet2_slit.data.validate")
    folder, _ = corpus
    names = {path.name for path in (folder / "data").iterdir()}
    assert names == {
        "train_caption",
        "valid_caption",
        "train_instruction",
        "valid_instruction",
        "test_caption",
        "test_caption_unseen",
        "test_qa",
        "test_choices",
        "test_moments",
        "test_class",
        "test_class_unseen",
    }
    for name in sorted(names):
        directory = folder / "data" / name
        validate.validate(directory)
        info = json.loads((directory / "set.json").read_text())
        assert info["schema"] == 1 and info["name"] == name
        assert info["zero_shot"] == name.endswith("_unseen")


def test_moments_are_where_the_recordings_sound(corpus):
    folder, _ = corpus
    data = folder / "data" / "test_moments"
    moments = dict(
        line.split(" ", 1) for line in (data / "moments").read_text().splitlines()
    )
    for recording in scenes.plan_recordings(3, SIZES["test_moments"]):
        path = folder / "audio" / "mini_test_moments" / f"{recording.clip}.flac"
        wave, rate = soundfile.read(path)
        assert 30 <= recording.duration_s <= 60
        assert len(wave) == round(recording.duration_s * rate)
        is_told = np.zeros(len(wave), dtype=bool)
        for _, scene in recording.parts:
            start_s, end_s = map(float, moments.pop(scene.clip).split())
            assert 0 < start_s < end_s < recording.duration_s
            # a room's tail goes on for 0.2 s
            is_told[round(start_s * rate) : round((end_s + 0.25) * rate)] = True
            told = wave[round(start_s * rate) : round(end_s * rate)]
            assert np.sqrt(np.mean(told**2)) > 10 ** (-41 / 20)
        assert np.sqrt(np.mean(wave[~is_told] ** 2)) < 10 ** (-40 / 20)
    assert not moments


def test_a_recording_holds_no_class_twice_and_nothing_that_is_held_out():
    for recording in scenes.plan_recordings(1, 10):
        events = [event for _, scene in recording.parts for event in scene.events]
        labels = [event.label for event in events]
        assert len(set(labels)) == len(labels)
        assert {(e.manner, e.source) for e in events} <= set(scenes.SEEN_CLASSES)
        ends = [start + scene.duration_s for start, scene in recording.parts]
        starts = [start for start, _ in recording.parts]
        assert all(b - a > 0.4 for a, b in zip(ends, starts[1:], strict=False))


def test_scored_sets_hold_what_scoring_needs(corpus):
    folder, _ = corpus

    def table(name, file):
        lines = (folder / "data" / name / file).read_text().splitlines()
        return [line.split(" ", 1) for line in lines]

    for name in ("test_caption", "test_caption_unseen"):
        clips = [key for key, _ in table(name, "wav.scp")]
        references = collections.Counter(key for key, _ in table(name, "references"))
        assert set(references) == set(clips) and set(references.values()) == {5}
    answers = (folder / "data" / "test_qa" / "answers").read_text().splitlines()
    assert {text for _, text in table("test_qa", "text")} <= set(answers)
    for name, number in (("test_class", 24), ("test_class_unseen", 8)):
        labels = (folder / "data" / name / "labels").read_text().splitlines()
        assert len(set(labels)) == number
        assert {text for _, text in table(name, "text")} == set(labels)
    tasks = collections.Counter(
        task for _, task in table("train_instruction", "utt2task")
    )
    assert set(tasks) == {"caption", "question_answering", "classification"}
    questions = sets.QUESTIONS_PER_SCENE
    assert tasks["question_answering"] == questions * SIZES["train"]


# --------------------------------------------------------------------- frozen parts


def test_encoder_reads_its_filterbank_as_espnet_does():
    encoder_module = local("mini_encoder")
    encoder = encoder_module.build_encoder(encoder_module.CONFIG, 1).eval()
    wave = torch.from_numpy(_wave(_clean())).float()
    frames = encoder_module.fbank(wave)
    steps = len(frames) // encoder_module.FRAMES_PER_PATCH
    with torch.no_grad():
        ours = encoder_module.encode(encoder, frames[None, : steps * 16])
        theirs, lengths, _ = encoder(wave[None], torch.tensor([len(wave)]))
    assert ours.shape == (1, 8 * steps, encoder_module.CONFIG["encoder_embed_dim"])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_encoder_learns_tags_and_saves_a_beats_checkpoint(corpus, tmp_path):
    encoder_module = local("mini_encoder")
    folder, _ = corpus
    items = encoder_module.load_split(folder / "audio", "mini_train")
    assert len(items) == SIZES["train"]
    losses = []
    for epochs in (0, 12):
        encoder = encoder_module.build_encoder(encoder_module.CONFIG, 1)
        tagger = encoder_module.train(
            encoder, items, max(epochs, 1), 12, 2e-3 * bool(epochs) + 1e-9, 1
        )
        tokens = [encoder_module.encode(encoder, frames[None]) for frames, _ in items]
        loss = [
            torch.nn.functional.binary_cross_entropy_with_logits(
                tagger(token.unflatten(1, (-1, 8)).mean(2))[0], tags
            ).item()
            for token, (_, tags) in zip(tokens, items, strict=True)
        ]
        losses.append(np.mean(loss))
    assert losses[1] < 0.8 * losses[0]
    path = tmp_path / "encoder.pt"
    encoder_module.save_checkpoint(path, encoder, encoder_module.CONFIG, {"epochs": 12})
    loaded = torch.load(path, weights_only=True)
    assert set(loaded["model"]) == set(encoder.state_dict())
    assert loaded["cfg"] == encoder_module.CONFIG


def test_tags_name_what_sounds_when():
    encoder_module = local("mini_encoder")
    names = encoder_module.tag_names()
    assert len(set(names)) == len(names)
    index = {name: column for column, name in enumerate(names)}
    scene = _clean(count=2, source="buzz", manner="falling", pitch="low")
    tags = encoder_module.scene_tags(scene, 12, index)  # sounds at 0.2-1.0, 1.1-1.9 s
    active = tags[:, index["source buzz"]]
    assert active[0] == 0 and active[3] == 1
    for name in ("manner falling", "class falling buzz", "buzz low", "buzz loud"):
        assert np.array_equal(tags[:, index[name]], active)
    second = tags[:, index["repetition 2"]]
    assert (
        second.sum() and np.array_equal(second[8:], active[8:]) and not second[:6].any()
    )
    assert tags.sum() == 5 * active.sum() + second.sum()
    assert not any(f"class {m} {s}" in index for m, s in scenes.UNSEEN_CLASSES)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    module = local("mini_language_model")
    folder = tmp_path_factory.mktemp("language_model")
    torch.set_num_threads(1)
    about = module.make(folder, **SMALL)
    return module, folder, about


def test_language_model_reloads_with_auto_classes(language_model):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    _, folder, about = language_model
    tokenizer = AutoTokenizer.from_pretrained(folder / "language_model")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "language_model")
    assert len(tokenizer) == model.config.vocab_size > 100
    ids = tokenizer("Is there a RISING hiss?").input_ids
    assert ids == tokenizer("is there a rising hiss?").input_ids  # case is folded
    assert tokenizer.unk_token_id not in ids and ids[-1] == model.config.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "is there a rising hiss?"
    assert tokenizer.unk_token_id not in tokenizer("zebra (42%)").input_ids
    words = "a buzz and an ascending hum mixed with a throbbing honk at the same time"
    assert tokenizer.tokenize(words) == [f"\u2581{word}" for word in words.split()]
    out = model.generate(torch.tensor([ids]), max_new_tokens=4)
    assert out.shape[0] == 1


def test_language_model_knows_the_words_of_unseen_classes(language_model):
    from transformers import AutoTokenizer

    module, folder, _ = language_model
    words = AutoTokenizer.from_pretrained(folder / "qformer_tokenizer")
    for manner, source in scenes.UNSEEN_CLASSES:
        tokens = words.tokenize(f"A {manner} {source}")
        assert tokens == ["a", manner, source]
    told = " ".join(pair[0] for pair in module.training_text(1, 640))
    assert any(f"{manner} {source}" in told for manner, source in scenes.UNSEEN_CLASSES)


def test_qformer_tokenizer_is_berts_with_dec(language_model):
    from transformers import AutoTokenizer

    _, folder, _ = language_model
    tokenizer = AutoTokenizer.from_pretrained(folder / "qformer_tokenizer")
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 5]) == [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[DEC]",
    ]
    ids = tokenizer("A loud whistle, then a rattle").input_ids
    assert tokenizer.unk_token_id not in ids
    assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
    assert tokenizer("zebra").input_ids[1:-1] == tokenizer.convert_tokens_to_ids(
        ["z", "##e", "##b", "##r", "##a"]
    )


def test_language_model_is_the_same_again_and_is_kept(language_model, tmp_path):
    module, folder, about = language_model
    path = folder / "language_model" / "model.safetensors"
    before = path.stat().st_mtime_ns
    assert module.make(folder, **SMALL) == about
    assert path.stat().st_mtime_ns == before
    module.make(tmp_path, **SMALL)
    for name in (
        "language_model/model.safetensors",
        "qformer_tokenizer/tokenizer.json",
    ):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_language_model_learns(language_model):
    module, folder, about = language_model
    longer = module.training_text(1, 2560)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "language_model")
    model = module.build_model(tokenizer, 1)
    encoded = module.encode_pairs(longer, tokenizer, 1)
    untrained = module.evaluate(model, encoded[:200])["caption"]["loss"]
    module.train(model, encoded, 32, 3e-3, 1)
    trained = module.evaluate(model, encoded[:200])["caption"]["loss"]
    assert trained < 0.5 * untrained


def test_names_both_counts_descriptions_whose_sources_come_back(language_model):
    from transformers import AutoTokenizer

    module, folder, about = language_model
    tokenizer = AutoTokenizer.from_pretrained(folder / "language_model")
    echo = types.SimpleNamespace(generate=lambda input_ids, **_: input_ids)
    assert module.names_both(echo, tokenizer, 1, 20) == 1
    first = types.SimpleNamespace(generate=lambda input_ids, **_: input_ids[:, :2])
    assert module.names_both(first, tokenizer, 1, 20) == 0
    assert 0 <= about["names_both"] <= 1


def test_language_model_of_labels_knows_their_words(tmp_path):
    from transformers import AutoTokenizer

    module = local("mini_language_model")
    (tmp_path / "text").write_text("a dog\nb crackling fire\nc A dog barks.\n")
    (tmp_path / "utt2task").write_text(
        "a classification\nb classification\nc caption\n"
    )
    labels = module.read_labels([tmp_path])
    assert labels == ["crackling fire", "dog"]
    for told, instruction, target, task in module.training_text(1, 200, labels):
        assert told == "The sound of dog." or told == "The sound of crackling fire."
        if task == "question_answering":
            asked = "dog" if "dog" in instruction else "crackling fire"
            assert target == ("yes" if asked in told else "no")
        elif task == "classification":
            assert target in labels and target in told
    module.make(tmp_path, labels, pairs=320)
    words = AutoTokenizer.from_pretrained(tmp_path / "qformer_tokenizer")
    assert words.tokenize("crackling fire") == ["crackling", "fire"]
    pieces = AutoTokenizer.from_pretrained(tmp_path / "language_model")
    ids = pieces("Crackling fire", add_special_tokens=False).input_ids
    assert pieces.unk_token_id not in ids and pieces.decode(ids) == "crackling fire"


def test_language_model_needs_labels_where_it_is_told_to_look(tmp_path):
    (tmp_path / "text").write_text("c A dog barks.\n")
    (tmp_path / "utt2task").write_text("c caption\n")
    with pytest.raises(ValueError, match="expected samples with a label"):
        local("mini_language_model").read_labels([tmp_path])
