"""Claims about SLITPreprocessor: arrays per stage, limits, ids, messages."""

import logging
import pickle

import numpy as np
import pytest
import torch

from espnet2_slit.common.templates import TEMPLATES, instruction
from espnet2_slit.data.preprocessor import (
    SLITPreprocessor,
    load_qformer_tokenizer,
    qformer_tokenizer_identity,
    stable_id,
    unknown_share,
)

SPEECH = np.linspace(-0.5, 0.5, 1600, dtype=np.float32)


@pytest.fixture(scope="module")
def make(tiny_parts):
    def build(model, train=False, language_model="t5", **conf):
        return SLITPreprocessor(
            train,
            model,
            str(tiny_parts.tokenizer),
            str(getattr(tiny_parts, language_model)),
            **conf,
        )

    return build


def sample(**strings):
    return {"speech": SPEECH, "text": "a dog barks", "clip": "clip1", **strings}


@pytest.mark.parametrize(
    "model, names",
    [
        ("representation", {"qformer_text", "clip_id", "text_id"}),
        ("generative", {"llm_target", "clip_id"}),
        (
            "instruction",
            {"llm_prompt", "llm_target", "qformer_instruction", "clip_id"},
        ),
    ],
)
def test_each_stage_gets_its_arrays(make, model, names):
    arrays = make(model)("utt1", sample(instruction="describe the audio"))
    assert set(arrays) == names | {"speech"}
    for name in names:
        assert arrays[name].dtype == np.int64 and arrays[name].ndim == 1
    assert arrays["clip_id"].tolist() == [stable_id("clip1")]


def test_instruction_can_be_kept_from_the_qformer(make):
    arrays = make("instruction", qformer_instruction=False)(
        "utt1", sample(instruction="describe the audio")
    )
    assert "qformer_instruction" not in arrays and "llm_prompt" in arrays


def test_generative_prompt_only_if_configured(make):
    without = make("generative")("utt1", sample())
    with_prompt = make("generative", prompt="describe the audio:")("utt1", sample())
    assert "llm_prompt" not in without and len(with_prompt["llm_prompt"]) > 1
    with pytest.raises(ValueError, match="generative model"):
        make("instruction", prompt="describe the audio:")


@pytest.mark.parametrize("model", ["representation", "generative", "instruction"])
def test_second_call_changes_nothing(make, model):
    preprocess = make(model)
    data = sample(instruction="describe the audio")
    once = preprocess("utt1", data)
    twice = preprocess("utt1", once)
    # ESPnet's streaming data set calls first with a part of the sample
    part = preprocess("utt1", {"speech": SPEECH})
    rest = {k: v for k, v in data.items() if k != "speech"}
    in_parts = preprocess("utt1", {**part, **rest})
    for other in (twice, in_parts):
        assert set(other) == set(once)
        for name in once:
            np.testing.assert_array_equal(other[name], once[name])
    assert data["text"] == "a dog barks"  # the caller's dict is as it was


def test_it_pickles(make):
    preprocess = make("instruction")
    data = sample(instruction="describe the audio")
    there = pickle.loads(pickle.dumps(preprocess))("utt1", data)
    for name, array in preprocess("utt1", data).items():
        np.testing.assert_array_equal(there[name], array)


def test_text_starts_with_cls_and_ends_with_sep_even_when_cut(make, caplog):
    preprocess = make("representation", max_text_length=4)
    with caplog.at_level(logging.WARNING):
        for i in range(10):
            ids = preprocess(f"utt{i}", sample(text="a dog barks twice loudly"))
    tokenizer = preprocess.tokenizer
    ids = ids["qformer_text"].tolist()
    assert len(ids) == 4
    assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
    assert preprocess.counts["text"] == 10
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 2  # the 1st and the 10th
    assert "utt0" in messages[0] and "max_text_length" in messages[0]


def test_long_instruction_loses_its_beginning(make):
    preprocess = make("instruction", max_prompt_length=5)
    long = "describe the audio birds chirp and the wind blows"
    cut = preprocess("utt1", sample(instruction=long))
    whole = make("instruction")("utt1", sample(instruction=long))
    assert cut["llm_prompt"].tolist() == whole["llm_prompt"].tolist()[-5:]
    full = whole["qformer_instruction"].tolist()
    assert cut["qformer_instruction"].tolist() == full[:1] + full[-4:]


def test_target_ends_with_eos_unless_it_is_cut(make):
    preprocess = make("generative", max_target_length=6)
    eos = preprocess.prompt_encoder.eos_id
    assert preprocess("a", sample(text="a dog"))["llm_target"][-1] == eos
    cut = preprocess("b", sample(text="a dog barks twice and a car passes by"))
    assert len(cut["llm_target"]) == 6 and eos not in cut["llm_target"]


def test_missing_instruction_takes_the_wording_of_the_default_task(make):
    data = sample()
    fixed = [make("instruction")(f"u{i}", data)["llm_prompt"] for i in range(3)]
    assert all(np.array_equal(fixed[0], other) for other in fixed)
    torch.manual_seed(0)
    varied = make("instruction", train=True)
    seen = {tuple(varied(f"u{i}", data)["llm_prompt"]) for i in range(60)}
    assert len(seen) == len(TEMPLATES["caption"])
    one = make("instruction", train=True, default_instruction="say it")
    seen = [one(f"u{i}", data)["llm_prompt"] for i in range(9)]
    expected = one.prompt_encoder.encode_prompt("say it")
    assert all(ids.tolist() == expected for ids in seen)


@pytest.mark.parametrize(
    "data, match",
    [
        (sample(text=""), r"utt7: expected a text"),
        (sample(text="  "), r"utt7: expected a text"),
        (sample(instruction=" "), r"utt7: expected an instruction"),
        (sample(speech=SPEECH[:0]), r"utt7: expected audio .* \(0,\)"),
        (sample(speech=SPEECH.reshape(1, 2, 800)), r"utt7: expected audio"),
        (sample(question="what?"), r"utt7: .* found question"),
    ],
)
def test_bad_sample_is_named(make, data, match):
    with pytest.raises(ValueError, match=match):
        make("instruction")("utt7", data)


@pytest.mark.parametrize("shape", [(0, 8), (5,), (5, 7)])
def test_bad_features_are_named(make, shape):
    preprocess = make("generative", feature_width=8)
    with pytest.raises(ValueError, match=r"utt7: expected cached features \(T, 8\)"):
        preprocess("utt7", {"feats": np.zeros(shape), "text": "a dog"})


def test_not_finite_audio_is_named_and_left_to_the_trainer(make, caplog):
    speech = SPEECH.copy()
    speech[3] = np.nan
    with caplog.at_level(logging.WARNING):
        arrays = make("generative")("utt7", sample(speech=speech))
    assert "utt7: audio hold NaN" in caplog.text
    np.testing.assert_array_equal(arrays["speech"], speech)


def test_channels_are_averaged(make, caplog):
    stereo = np.stack([SPEECH, -SPEECH], axis=1)
    with caplog.at_level(logging.WARNING):
        arrays = make("generative")("utt7", sample(speech=stereo))
    np.testing.assert_allclose(arrays["speech"], np.zeros_like(SPEECH), atol=1e-7)
    assert "2 channels" in caplog.text


def test_equal_captions_and_clips_have_equal_ids(make):
    preprocess = make("representation")
    one = preprocess("u1", sample(text="A dog  barks, twice."))
    two = preprocess("u2", sample(text="a dog barks twice"))
    other = preprocess("u3", sample(text="a cat", clip="clip2"))
    assert one["text_id"] == two["text_id"] != other["text_id"]
    assert one["clip_id"] == two["clip_id"] != other["clip_id"]
    alone = preprocess("u4", {"speech": SPEECH, "text": "a dog"})
    assert alone["clip_id"].tolist() == [stable_id("u4")]
    assert 0 <= one["clip_id"][0] < 2**63


def test_ids_are_the_same_on_every_machine():
    assert stable_id("clip") == 8089911372361210345


def test_tokenizer_gets_dec_as_bos_and_an_identity(tiny_parts):
    tokenizer = load_qformer_tokenizer(str(tiny_parts.tokenizer))
    assert tokenizer.bos_token == "[DEC]"
    identity = qformer_tokenizer_identity(tokenizer)
    assert identity["vocab_size"] == len(tokenizer) == identity["bos_id"] + 1
    again = qformer_tokenizer_identity(
        load_qformer_tokenizer(str(tiny_parts.tokenizer))
    )
    assert identity == again


def test_wrong_tokenizers_are_refused(tmp_path, tiny_parts):
    with pytest.raises(ValueError, match="expected the folder or hub name"):
        load_qformer_tokenizer(str(tmp_path))
    with pytest.raises(ValueError, match="found none for cls_token, sep_token"):
        load_qformer_tokenizer(str(tiny_parts.t5))


def test_instruction_wording():
    assert instruction("caption") == TEMPLATES["caption"][0]
    assert instruction("question_answering", "what {is} it?") == "what {is} it?"
    assert instruction("caption", variant=6) == instruction("caption")
    with pytest.raises(ValueError, match="must be one of caption"):
        instruction("translation")
    with pytest.raises(ValueError, match="expected a question"):
        instruction("question_answering")
    with pytest.raises(ValueError, match="expected no question"):
        instruction("caption", "what?")


# ---------------------------------------------- texts that a tokenizer cannot write


HINDI = "\u0915\u0941\u0924\u094d\u0924\u093e"
CHINESE = "\u72d7\u5728\u53eb"
ARABIC = "\u0643\u0644\u0628 \u064a\u0646\u0628\u062d"


@pytest.mark.parametrize("model", ["representation", "generative", "instruction"])
@pytest.mark.parametrize("text", [HINDI, CHINESE, ARABIC], ids=["hi", "zh", "ar"])
def test_a_training_text_that_is_mostly_unknown_stops(make, model, text):
    with pytest.raises(ValueError, match="utt1: 100%.*unknown.*language"):
        make(model, train=True)("utt1", sample(text=text, instruction="describe"))
    make(model)("utt1", sample(text=text, instruction="describe"))  # a query may be so


def test_unknown_pieces_are_counted_and_said_now_and_then(make, caplog):
    preprocessor = make("representation", train=True)
    for n in range(30):
        odd = " \u72d7" if n % 2 else ""
        preprocessor(f"utt{n}", sample(text="a dog barks" + odd))
    assert preprocessor.counts["unknown texts"] == 15
    said = [r.message for r in caplog.records if "unknown" in r.message]
    assert len(said) == 2
    assert "10 of 20 texts" in said[1] and "50.0%" in said[1]


@pytest.mark.parametrize("model", ["representation", "generative"])
def test_the_share_of_a_set_is_said_once_before_training(make, model, tmp_path, caplog):
    texts = ["a dog barks", "rain falls", "a bell", f"a dog {CHINESE}"]
    lines = [f"utt{n} {text}\n" for n, text in enumerate(texts)]
    (tmp_path / "text").write_text("".join(lines))
    make(model, train=True).say_unknown(tmp_path)
    said = [r.message for r in caplog.records if "unknown" in r.message]
    assert len(said) == 1 and "1 of 4 texts" in said[0] and "10.7% of" in said[0]
    (tmp_path / "text").write_text(f"a {CHINESE}\nb {HINDI}\nc a dog\n")
    with pytest.raises(ValueError, match="66.7% of the text is unknown.*2 of 3"):
        make(model, train=True).say_unknown(tmp_path)


def test_the_unknown_share_is_of_characters(tiny_parts):
    for name in ("tokenizer", "t5"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(getattr(tiny_parts, name))
        assert unknown_share(tokenizer, "a dog") == 0
        # SentencePiece writes one mark for all three signs
        assert unknown_share(tokenizer, "a dog \u72d7\u5728\u53eb\u72d7") == 0.5


# ----------------------------------------------------------- paraphrases, one an epoch


def texts_of(preprocessor, epochs=40):
    variants = '["a hound barks", "barking of a dog"]'
    drawn = []
    for epoch in range(epochs):
        torch.manual_seed(epoch)
        arrays = preprocessor("utt1", sample(text_variants=variants))
        drawn.append(tuple(arrays["qformer_text"].tolist()))
    return drawn


def test_variants_of_a_text_are_drawn_anew_each_epoch_and_repeatably(make):
    preprocessor = make("representation", train=True)
    drawn = texts_of(preprocessor)
    assert len(set(drawn)) == 3 and drawn == texts_of(preprocessor)
    counts = sorted(drawn.count(text) for text in set(drawn))
    assert counts[0] >= 5


def test_validation_sees_the_text_itself(make):
    drawn = texts_of(make("representation"))
    assert set(drawn) == {
        tuple(make("representation")("utt1", sample())["qformer_text"].tolist())
    }


def test_variants_that_are_no_list_of_texts_are_named(make):
    with pytest.raises(ValueError, match="utt1: text_variants.*JSON list"):
        make("representation", train=True)("utt1", sample(text_variants="a dog"))
