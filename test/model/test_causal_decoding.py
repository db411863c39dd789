"""Searches with a causal model: the texts of `generate`, each clip read once."""

import pytest
import tiny
import torch

from espnet2_slit.common.padded import Padded
from espnet2_slit.model.language_model import GenerationOptions, LanguageModel
from espnet2_slit.model.load_language_model import load_language_model

FAMILIES = "llama", "qwen3", "gpt2", "opt", "llama of a long head"
OPTIONS = {
    "greedy": GenerationOptions(num_beams=1, max_new_tokens=9),
    "beams": GenerationOptions(num_beams=5, max_new_tokens=9, rerank=5),
    "long texts": GenerationOptions(
        num_beams=3, max_new_tokens=20, length_penalty=2.0, rerank=3
    ),
    "ruled": GenerationOptions(
        num_beams=3,
        max_new_tokens=9,
        min_new_tokens=4,
        length_penalty=-1.0,
        repetition_penalty=1.5,
        no_repeat_ngram_size=2,
        rerank=3,
    ),
    "one token": GenerationOptions(num_beams=2, max_new_tokens=1, rerank=2),
}
LORA = dict(r=4, lora_alpha=64, target_modules="all-linear")


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request, tmp_path_factory):
    family, _, head = request.param.partition(" of ")
    folder = tiny.LANGUAGE_MODELS[family](tmp_path_factory.mktemp(family))
    options = {"layout": {"head": list(range(3, 15))}} if head else {}
    model = load_language_model(folder, **options)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for weight in model.frozen.module.parameters():  # else all say the same
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.4)
    return model


def inputs(lm):
    """Prefixes and prompts of three clips, the prompts of different lengths."""
    generator = torch.Generator().manual_seed(0)
    prefix = Padded(torch.randn(3, 5, lm.width, generator=generator))
    ids = [lm.encode_prompt(text) for text in ("what is it?", "", "a dog: yes or no")]
    rows = [torch.tensor(row, dtype=torch.long) for row in ids]
    values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return prefix, Padded(values, torch.tensor([len(row) for row in ids]))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_texts_are_those_of_transformers(lm, options, monkeypatch):
    found = lm.generate_several(*inputs(lm), options)
    monkeypatch.setattr(LanguageModel, "_token_decoder", lambda *_: None)
    assert found == lm.generate_several(*inputs(lm), options)
    assert len({texts[0] for texts in found}) > 1 or options.max_new_tokens == 1


def test_prefix_and_prompt_are_read_once_for_all_beams(lm, monkeypatch):
    """And after that a token of each beam: (rows, tokens) that the model reads."""
    read, forward = [], lm.frozen.module.forward

    def note(*args, input_ids=None, inputs_embeds=None, **options):
        values = inputs_embeds if input_ids is None else input_ids
        read.append(tuple(values.shape[:2]))
        return forward(
            *args, input_ids=input_ids, inputs_embeds=inputs_embeds, **options
        )

    # the signature of `forward` says how its cache is called
    note.__wrapped__ = forward
    monkeypatch.setattr(lm.frozen.module, "forward", note)
    lm.generate(*inputs(lm), GenerationOptions(num_beams=4, max_new_tokens=6))
    longest = max(len(row) for row in inputs(lm)[1].values)
    head = 0 if lm._shares_head else len(lm._head)  # read before, by the layers alone
    assert read[0] == (3, head + 5 + longest)
    assert read[1:] and set(read[1:]) == {(12, 1)}


def test_a_cache_that_cannot_be_shared_is_left_to_transformers(lm, monkeypatch):
    options = OPTIONS["beams"]
    expected = lm.generate_several(*inputs(lm), options)
    name = "espnet2_slit.model.language_model.has_plain_layers"
    monkeypatch.setattr(name, lambda cache: False)
    monkeypatch.setattr(lm, "_reads_once", True)
    assert lm.generate_several(*inputs(lm), options) == expected
    assert not lm._reads_once


# ------------------------------------------------------------------------ adapters


def adapted(folder, **options):
    """A tiny Llama whose adapters have learned something."""
    pytest.importorskip("peft")
    lm = load_language_model(folder, lora=LORA, **options).eval()
    generator = torch.Generator().manual_seed(1)
    for weight in lm.adapters.values():
        weight.data.normal_(std=0.2, generator=generator)
    return lm


def scores(lm):
    candidates = Padded(torch.arange(3, 15).reshape(4, 3))
    return lm.score_candidates(*inputs(lm), candidates)


def test_merged_adapters_change_nothing_but_the_number_of_products(tmp_path):
    lm = adapted(tiny.LANGUAGE_MODELS["llama"](tmp_path))
    identity, saved = lm.identity(), {k: v.clone() for k, v in lm.state_dict().items()}
    before, texts = scores(lm), lm.generate(*inputs(lm), OPTIONS["beams"])
    lm.merge_adapters()
    torch.testing.assert_close(scores(lm), before, rtol=1e-4, atol=1e-4)
    assert lm.generate(*inputs(lm), OPTIONS["beams"]) == texts
    assert lm.identity() == identity
    assert all(torch.equal(v, saved[k]) for k, v in lm.state_dict().items())
    for weight in lm.adapters.values():  # nothing asks them any more
        weight.data.zero_()
    torch.testing.assert_close(scores(lm), before, rtol=1e-4, atol=1e-4)


def test_half_weights_would_be_rounded_and_are_not_merged(tmp_path):
    lm = adapted(tiny.LANGUAGE_MODELS["llama"](tmp_path), dtype="bfloat16")
    before = scores(lm)
    lm.merge_adapters()
    assert torch.equal(scores(lm), before)
