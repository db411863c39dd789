"""Searches with a T5: the ids of transformers' `generate`, with far fewer operators."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    T5Config,
    T5ForConditionalGeneration,
)

from espnet2_slit.model.search import Search
from espnet2_slit.model.t5_decoding import T5Decoder, decodes_quickly

START, STOPS, PAD = 0, [1, 5, 7, 11], 2
CONFIGS = {
    "tied": dict(feed_forward_proj="relu", tie_word_embeddings=True),
    "gated": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}
SEARCHES = {
    "greedy": dict(max_new_tokens=12),
    "greedy, ruled": dict(max_new_tokens=12, min_new_tokens=6),
    "beams": dict(num_beams=5, max_new_tokens=12),
    "short texts": dict(num_beams=3, max_new_tokens=9, length_penalty=-1.0),
    "long texts": dict(num_beams=4, max_new_tokens=40, length_penalty=2.0),
    "no penalty": dict(num_beams=3, max_new_tokens=9, length_penalty=0.0),
    "one token": dict(num_beams=3, max_new_tokens=1),
    "ruled": dict(num_beams=3, max_new_tokens=9, min_new_tokens=5),
}


class Count(TorchDispatchMode):
    """Number of operators."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def make_model(kind, stops=STOPS):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = T5Config(
            vocab_size=60,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
            dropout_rate=0.1,
            **CONFIGS[kind],
        )
        model = T5ForConditionalGeneration(config).eval()
        for weight in model.parameters():  # else all clips are written alike
            torch.nn.init.normal_(weight, std=0.5)
    model.generation_config = GenerationConfig(
        eos_token_id=stops, pad_token_id=PAD, decoder_start_token_id=START
    )
    return model


def make_inputs(clips=6, longest=7):
    """Clips that have read different numbers of vectors."""
    generator = torch.Generator().manual_seed(2)
    embedded = torch.randn(clips, longest, 16, generator=generator)
    lengths = torch.arange(clips) % 3 + longest - 2
    return embedded, torch.arange(longest) < lengths[:, None]


def make_rules(name):
    if "ruled" not in name:
        return []
    return [RepetitionPenaltyLogitsProcessor(1.5), NoRepeatNGramLogitsProcessor(2)]


def plain(model, embedded, used, options, rules=()):
    """Ids of transformers, without start and what fills up."""
    beams = options.get("num_beams", 1)
    ids = model.generate(
        inputs_embeds=embedded,
        attention_mask=used.long(),
        generation_config=GenerationConfig(num_return_sequences=beams, **options),
        logits_processor=LogitsProcessorList(rules),
    )
    texts = []
    for row in ids[:, 1:].tolist():
        ends = [i for i, token in enumerate(row) if token in STOPS]
        texts.append(row[: ends[0] + 1] if ends else row)
    return [texts[i : i + beams] for i in range(0, len(texts), beams)]


@torch.no_grad()
def quick(model, embedded, used, options, rules=()):
    states = model.get_encoder()(inputs_embeds=embedded, attention_mask=used.long())
    stops = model.generation_config.eos_token_id
    decode = T5Decoder(model, states[0], used, options["max_new_tokens"])
    return Search([START], stops, rules=rules, **options).run(decode)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("stops", [STOPS, [1]], ids=["several stops", "one stop"])
def test_search_gives_the_ids_of_transformers(kind, name, stops):
    model, (embedded, used) = make_model(kind, stops), make_inputs()
    options, rules = SEARCHES[name], make_rules(name)
    expected = plain(model, embedded, used, options, rules)
    found = quick(model, embedded, used, options, rules)
    if stops == [1]:  # `plain` cuts at all of STOPS
        found = [[cut(ids) for ids in texts] for texts in found]
    assert found == expected
    assert len({tuple(texts[0]) for texts in found}) > 1


def cut(ids):
    ends = [i for i, token in enumerate(ids) if token in STOPS]
    return ids[: ends[0] + 1] if ends else ids


def test_a_clip_s_texts_do_not_depend_on_its_batch():
    model, (embedded, used) = make_model("gated"), make_inputs()
    options = SEARCHES["beams"]
    together = quick(model, embedded, used, options)
    for i, texts in enumerate(together):
        one = slice(i, i + 1)
        length = int(used[i].sum())
        found = quick(model, embedded[one, :length], used[one, :length], options)
        assert found == [texts]


def test_search_takes_half_the_operators_of_transformers():
    model, (embedded, used) = make_model("tied"), make_inputs(clips=1)
    options = SEARCHES["beams"]
    counts = []
    for search in (quick, plain):
        with Count() as count, torch.no_grad():
            search(model, embedded, used, options)
        counts.append(count.calls)
    assert counts[0] < 0.6 * counts[1]


def test_other_models_and_float16_are_left_to_transformers():
    model = make_model("tied")
    assert decodes_quickly(model)
    assert not decodes_quickly(model.half())
    assert not decodes_quickly(torch.nn.Linear(2, 2))
