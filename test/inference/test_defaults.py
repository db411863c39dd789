"""How a system is asked: in the templates' words, or in those of its config.yaml."""

import json

import numpy as np
import pytest
import tiny_system
import yaml

from espnet2_slit import SLIT
from espnet2_slit.common import templates
from espnet2_slit.inference import slit as slit_module
from espnet2_slit.inference.decode_options import DecodeOptions
from espnet2_slit.inference.defaults import DefaultsError, read_defaults, wording
from espnet2_slit.inference.generation import (
    candidate_ids,
    generate,
    score_candidates,
)
from espnet2_slit.model.language_model import GenerationOptions

OWN = {
    "caption": {"instruction": "say it", "options": {"max_new_tokens": 3}},
    "question_answering": {"instruction": "Q: {question} A:", "plain_question": True},
    "classification": {
        "instruction": "which?",
        "label": "an audio of {}",
        "normalize": "sum",
        "end": False,
    },
}


@pytest.fixture(scope="module")
def systems(tiny_parts, tmp_path_factory):
    """The same weights, as they are and with wordings of their own."""
    folder = tmp_path_factory.mktemp("asked") / "plain"
    tiny_system.experiment(folder, tiny_parts, "instruction", tiny_parts.llama)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    own = SLIT.from_pretrained(folder)
    own.generator.options.inference_conf = OWN
    assert config["inference_conf"] == {}
    return SLIT.from_pretrained(folder), own


@pytest.fixture(scope="module")
def audio():
    return np.random.RandomState(0).randn(8000).astype(np.float32) * 0.1, 16000


def asked(monkeypatch):
    """Instructions that reach the model, by a spy."""
    found = []

    def spy(engine, clips, requests, options):
        found.append(([text for _, text in requests], options))
        return generate(engine, clips, requests, options)

    monkeypatch.setattr(slit_module, "generate", spy)
    return found


def test_without_a_word_it_is_the_templates_and_the_usual_decoding(systems):
    plain = systems[0]
    for task in ("caption", "classification"):
        assert plain.wording(task) == templates.instruction(task)
    assert plain.wording("question_answering", "Is it loud?") == "Is it loud?"
    assert plain.writing("caption") == GenerationOptions()


def test_own_wording_and_decoding_are_used_and_a_call_comes_first(
    systems, audio, monkeypatch
):
    own = systems[1]
    found = asked(monkeypatch)
    own.caption(audio)
    own.caption(audio, instruction="write", options={"max_new_tokens": 2})
    own.answer(audio, 'Is "it" LOUD?')
    (first, options), (second, given), (third, _) = found
    assert first == ["say it"] and options.max_new_tokens == 3
    assert second == ["write"] and given.max_new_tokens == 2
    assert third == ["Q: is it loud? A:"]


def test_labels_are_ranked_as_stated(systems, audio):
    plain, own = systems
    labels = ["dog_bark", "rain on a roof"]
    found = own.classify(audio, labels, route="language_model").scores
    clips = plain.clips([audio])
    texts = ["an audio of dog bark", "an audio of rain on a roof"]
    request = [(0, "which?")]
    sums = score_candidates(plain, clips, request, texts, end=False)
    assert [found[label] for label in labels] == pytest.approx(sums[0].tolist())
    assert (score_candidates(plain, clips, request, texts) < sums).all()
    lengths = candidate_ids(plain, texts, end=False)[1]
    mean = own.classify(audio, labels, route="language_model", normalize="mean").scores
    expected = (sums[0] / lengths.numpy()).tolist()
    assert [mean[label] for label in labels] == pytest.approx(expected)


def test_sets_are_decoded_with_them_unless_the_configuration_says_otherwise(systems):
    plain, own = systems
    assert DecodeOptions().of_system(plain) == DecodeOptions()
    options = DecodeOptions(caption={"num_beams": 2}).of_system(own)
    assert options.caption == {"max_new_tokens": 3, "num_beams": 2}


def test_a_shorter_longest_text_lowers_the_shortest():
    conf = {"caption": {"options": {"max_new_tokens": 79, "min_new_tokens": 9}}}
    merged = read_defaults(conf)["caption"].merged
    assert merged({"max_new_tokens": 4})["min_new_tokens"] == 4
    assert merged({"max_new_tokens": 20})["min_new_tokens"] == 9
    assert merged({"max_new_tokens": 4, "min_new_tokens": 9})["min_new_tokens"] == 9
    assert read_defaults({})["caption"].merged({"num_beams": 2}) == {"num_beams": 2}


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"captions": {}}, "expected caption, .* found captions"),
        ({"caption": {"word": 1}}, r"inference_conf.caption: .*word.*Known: instr"),
        ({"caption": {"instruction": "{question}"}}, r"in no other, found"),
        ({"question_answering": {"instruction": "A:"}}, r"question_answering and in"),
        ({"classification": {"label": "dog"}}, "label: expected '{}'"),
        ({"classification": {"normalize": "max"}}, "normalize: expected 'mean'"),
    ],
)
def test_what_cannot_be_is_named(conf, message):
    with pytest.raises(DefaultsError, match=message):
        read_defaults(conf)


def test_a_plain_question_has_no_marks_and_fifty_words():
    defaults = read_defaults(OWN)["question_answering"]
    long = "What, (exactly) is #1: " + "word " * 60 + "?"
    text = wording(defaults, "question_answering", long)
    assert text.startswith("Q: what, exactly is 1 word") and text.endswith("word A:")
    assert len(text.split()) == 52
    assert json.dumps(OWN)  # plain values, as a config.yaml has them


def test_a_language_is_that_of_all_tasks():
    german = read_defaults({"language": "de", "caption": {"language": "en"}})
    asked = wording(german["question_answering"], "question_answering", "Was bellt?")
    assert asked == "Was bellt?"
    assert (
        wording(german["classification"], "classification") == "Welcher Klang ist das?"
    )
    assert wording(german["caption"], "caption") == "Describe the audio."
    with pytest.raises(DefaultsError, match="expected one of de, en, found 'xx'"):
        read_defaults({"language": "xx"})
