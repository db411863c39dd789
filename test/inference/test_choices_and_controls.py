"""Questions with options of their own, and sets decoded with other audio."""

import json
import shutil

import numpy as np
import pytest
from tiny_system import SHORT

from espnet2_slit.bin import slit_inference
from espnet2_slit.common.templates import choice_question
from espnet2_slit.data.kaldi_dir import read_map
from espnet2_slit.inference.controls import OtherAudio
from espnet2_slit.inference.decode_options import DecodeOptions
from espnet2_slit.inference.decoding import decode_set
from espnet2_slit.inference.generation import score_candidates
from espnet2_slit.inference.requests import InferenceError

OPTIONS = DecodeOptions(
    question_answering=SHORT, caption=SHORT, choice_orders=3, attention_clips=0
)
CHOICES = {
    "clip0_q0": ["a dog", "rain"],
    "clip0_q1": ["a dog barks again", "rain", "a bell"],
    "clip3_q0": ["a dog", "rain"],
    "clip5_q1": ["two", "three"],
}


@pytest.fixture(scope="module")
def choice_set(sets, tmp_path_factory):
    """test_qa without candidate answers; four questions have options."""
    folder = tmp_path_factory.mktemp("choices") / "test_mc"
    shutil.copytree(sets / "data" / "test_qa", folder)
    (folder / "answers").unlink()
    lines = [f"{key} {json.dumps(value)}\n" for key, value in CHOICES.items()]
    (folder / "choices").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def answered(slit, choice_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoded") / "test_mc"
    decode_set(slit, choice_set, folder, OPTIONS)
    return folder / "question_answering"


def test_the_likeliest_option_is_that_of_the_question_alone(slit, clips, answered):
    ranked, mean = (read_map(answered / n) for n in ("ranked", "ranked_mean"))
    assert set(ranked) == set(mean) == set(CHOICES)
    for key, options in CHOICES.items():
        clip = slit.clips([clips[int(key[4])]])
        asked = [(0, f"what is it? {key[-1]}")]
        sums = score_candidates(slit, clip, asked, options)[0]
        assert ranked[key] == options[int(sums.argmax())]


def test_written_answers_are_to_the_options_in_each_order(slit, clips, answered):
    assert len(read_map(answered / "text")) == 14, "open questions are answered, too"
    for order in (0, 1, 2):
        name = f"text.rotated{order}" if order else "text"
        found = read_map(answered / name)
        options = CHOICES["clip0_q1"]
        shown = options[order:] + options[:order]
        question = choice_question("what is it? 1", shown)
        (said,) = slit.answer([clips[0]], [question], options=SHORT)
        assert found["clip0_q1"] == " ".join(said.split())
        assert order == 0 or set(found) == set(CHOICES)


def test_fewer_orders_leave_no_old_ones(slit, choice_set, answered, tmp_path):
    shutil.copytree(answered.parent, tmp_path / "test_mc")
    once = DecodeOptions(question_answering=SHORT, attention_clips=0)
    decode_set(slit, choice_set, tmp_path / "test_mc", once)
    assert not list((tmp_path / "test_mc").rglob("text.rotated*"))


def test_other_audio_is_deterministic_and_never_a_clips_own(slit, clips):
    own = slit.clips(clips)
    silence, noise = OtherAudio(own, "silence"), OtherAudio(own, "noise")
    shuffled = OtherAudio(own, "shuffled", seed=3)
    for i in range(len(clips)):
        assert not silence.load(i).any()
        assert len(silence.load(i)) == len(noise.load(i)) == len(own.load(i))
        assert np.sqrt(np.mean(noise.load(i) ** 2)) == pytest.approx(0.05, rel=0.1)
        assert np.array_equal(noise.load(i), noise.load(i))
    assert sorted(shuffled.other.tolist()) == list(range(len(clips)))
    assert not (shuffled.other == np.arange(len(clips))).any()
    assert np.array_equal(shuffled.load(0), own.load(int(shuffled.other[0])))
    with pytest.raises(InferenceError, match="expected .*silence.*found 'music'"):
        OtherAudio(own, "music")


def test_controls_are_decoded_beside_the_set(slit, folder, sets, tmp_path):
    words = ["--model", str(folder)]
    words += ["--data_dir", str(sets / "dump" / "test_class")]
    words += ["--output_dir", str(tmp_path / "test_class")]
    assert slit_inference.main([*words, "--control", "silence", "shuffled"]) == 0
    found = {}
    for name in ("", "control_silence/", "control_shuffled/"):
        path = tmp_path / f"{name}test_class"
        said = json.loads((path / "decode.json").read_text())["audio"]
        with np.load(path / "classification" / "scores.npz") as arrays:
            found[said] = arrays["similarity"]
    own, silent, other = found.values()
    assert list(found) == [
        "cached features",
        "silence in place of waveforms",
        "shuffled in place of cached features",
    ]
    # Silence of one length has one score; shuffling permutes the rows.
    np.testing.assert_allclose(np.ptp(silent, axis=0), 0, atol=0.05)
    np.testing.assert_allclose(np.sort(other, axis=0), np.sort(own, axis=0), atol=1e-3)
    assert not np.allclose(own, other, atol=1e-3)
