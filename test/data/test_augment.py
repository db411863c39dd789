"""Augmentation: audio, caption and clip id of a sample belong together."""

import logging

import numpy as np
import pytest
import soundfile

from espnet2_slit.data import preprocessor
from espnet2_slit.data.augment import Augmentation, joined
from espnet2_slit.data.preprocessor import SLITPreprocessor, stable_id
from espnet2_slit.data.writer import SetWriter

RATE = 16000
CAPTIONS = ("A dog barks.", "Rain falls", "TV noise", "A bell rings")


def tone(number, seconds):
    return 0.2 * np.sin((0.05 + 0.05 * number) * np.arange(int(seconds * RATE)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    with SetWriter(root / "train", always=True) as files:
        for k, caption in enumerate(CAPTIONS):
            path = root / f"{k}.wav"
            soundfile.write(path, tone(k, 0.5 + 0.25 * k), RATE)
            files.add(f"u{k}", f"c{k}", str(path), caption, "caption", "toy")
        files.add("q", "c0", str(root / "0.wav"), "yes", "question_answering", "toy",
                  instruction="Is there a dog?")  # fmt: skip
        files.describe(split="train", tasks=[])
    return root / "train"


def test_captions_are_joined_as_sentences():
    assert joined("A dog barks.", "Rain falls.") == "A dog barks and rain falls."
    assert joined("A dog barks", "TV noise") == "A dog barks and TV noise"
    assert joined("Rain!", "A bell rings") == "Rain and a bell rings!"


def test_draws_depend_on_epoch_and_sample_alone(folder):
    one, other = (Augmentation(0.5, 0.5, str(folder)) for _ in range(2))
    speech = tone(0, 0.5).astype("f4")
    forms = set()
    for epoch in range(30):
        first = one.audio(epoch, "u0", speech)
        np.testing.assert_array_equal(first, other.audio(epoch, "u0", speech))
        mixed = one.partner(epoch, "u0") is not None
        assert (" and " in one.text(epoch, "u0", CAPTIONS[0])) == mixed
        assert (one.clip(epoch, "u0", "c0") != "c0") == mixed
        forms.add((len(first), one.text(epoch, "u0", CAPTIONS[0])))
    assert len(forms) == 4  # alone, and with each of three others


def test_a_mixture_holds_both_clips_whole(folder):
    mixing = Augmentation(mix=1.0, folder=str(folder))
    speech = tone(0, 0.5).astype("f4")
    for epoch in range(8):
        other = int(mixing.partner(epoch, "u0")[1:])
        found = mixing.audio(epoch, "u0", speech)
        assert len(found) == int((0.5 + 0.25 * other) * RATE)
        assert np.abs(found).max() <= 1.0
        spectrum = np.abs(np.fft.rfft(found, 2 * RATE))
        for number in (0, other):
            at = round((0.05 + 0.05 * number) / (2 * np.pi) * 2 * RATE)
            assert spectrum[at - 3 : at + 4].max() > 20 * np.median(spectrum)


def test_rolling_moves_samples_and_loses_none():
    rolling = Augmentation(roll=1.0)
    speech = np.arange(1000, dtype=np.float32)
    found = rolling.audio(3, "u0", speech)
    assert not np.array_equal(found, speech)
    np.testing.assert_array_equal(np.sort(found), speech)
    assert rolling.text(3, "u0", "a dog") == "a dog"


def test_questions_are_never_mixed(folder):
    mixing = Augmentation(mix=1.0, folder=str(folder))
    assert "q" not in mixing.keys
    assert all(mixing.partner(epoch, "q") is None for epoch in range(20))


@pytest.mark.parametrize(
    "conf, says",
    [
        ({"mix": 2.0}, "from 0 to 1, found 2.0"),
        ({"roll": -0.1}, "from 0 to 1"),
        ({"mix": 0.5}, "expected the training set's data directory"),
        ({"mix": 0.5, "folder": "nowhere"}, "found 'nowhere'"),
    ],
)
def test_what_cannot_work_is_said(conf, says):
    with pytest.raises(ValueError, match=says):
        Augmentation(**conf)


# ------------------------------------------------------------------- in training


@pytest.fixture(scope="module")
def make(tiny_parts, folder):
    def build(model="representation", train=True, **conf):
        return SLITPreprocessor(
            train, model, str(tiny_parts.tokenizer), str(tiny_parts.t5),
            augment={"mix": 1.0, "folder": str(folder), **conf},
        )  # fmt: skip

    return build


def sample():
    speech = tone(0, 0.5).astype("f4")
    return {"speech": speech, "text": CAPTIONS[0], "clip": "c0"}


def test_audio_text_and_clip_of_a_sample_change_together(make):
    plain = make(train=False)("u0", sample())
    found = make()("u0", sample())
    assert len(found["speech"]) > len(plain["speech"])
    assert len(found["qformer_text"]) > len(plain["qformer_text"])
    assert found["text_id"] != plain["text_id"]
    assert plain["clip_id"].tolist() == [stable_id("c0")] != found["clip_id"].tolist()
    again = make()("u0", sample())
    assert all(np.array_equal(found[name], again[name]) for name in found)


def test_parts_of_a_sample_asked_for_apart_belong_together(make):
    whole = make()("u0", sample())
    parts = make()("u0", {"speech": sample()["speech"]})
    parts = make()("u0", {**parts, "text": CAPTIONS[0], "clip": "c0"})
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)
    twice = make()("u0", dict(whole))
    assert all(np.array_equal(whole[name], twice[name]) for name in whole)


def test_another_epoch_draws_anew(make, monkeypatch):
    seen = set()
    for epoch in range(12):
        monkeypatch.setattr(preprocessor, "_epoch_seed", lambda epoch=epoch: epoch)
        seen.add(int(make()("u0", sample())["text_id"][0]))
    assert len(seen) == 3


def test_with_cached_features_it_is_said_that_nothing_is_augmented(make, caplog):
    feats = {"feats": np.ones((5, 4), "f4"), "text": CAPTIONS[0], "clip": "c0"}
    plain = make(train=False)("u0", dict(feats))
    preprocess = make()
    with caplog.at_level(logging.WARNING):
        found = preprocess("u0", dict(feats))
        preprocess("u1", dict(feats))
    assert caplog.text.count("augment: nothing is augmented") == 1
    assert "--cache_features false" in caplog.text
    assert all(np.array_equal(found[name], plain[name]) for name in found)


def test_validation_is_never_augmented(make):
    found = make(train=False)("u0", sample())
    np.testing.assert_array_equal(found["speech"], sample()["speech"])


def test_a_training_mixes_within_its_own_set(folder, tiny_parts):
    from espnet2_slit.task import SLITTask

    words = ["--model", "representation", "--output_dir", "exp"]
    words += ["--qformer_tokenizer", str(tiny_parts.tokenizer)]
    words += ["--train_dir", str(folder), "--preprocessor_conf", "augment={mix: 1.0}"]
    args = SLITTask.get_parser().parse_args(words)
    preprocess = SLITTask.build_preprocess_fn(args, train=True)
    assert preprocess.augmentation.keys == ["u0", "u1", "u2", "u3"]
    assert SLITTask.build_preprocess_fn(args, train=False).augmentation is None


def test_a_typo_is_named(make):
    with pytest.raises(ValueError, match="augment: expected roll, mix"):
        make(mxi=1.0)
