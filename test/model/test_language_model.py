"""Language models: every family, padded = alone, candidates = a loop, ids checked."""

import copy
import json
import math
import pickle
import shutil
import warnings

import pytest
import tiny
import torch
import transformers

from espnet2_slit.common.padded import Padded
from espnet2_slit.data.prompt_encoder import load_prompt_encoder
from espnet2_slit.model.language_model import GenerationOptions, LanguageModel
from espnet2_slit.model.load_language_model import load_language_model

NAMES = tuple(tiny.LANGUAGE_MODELS)
CAUSAL = tuple(name for name in NAMES if name not in ("t5", "bart"))
PROMPTS = ["what is making the sound?", "", "describe the audio: birds"]
TARGETS = ["a dog barks", "loud rain falls on a roof and thunder rolls", "yes"]
CANDIDATES = ["yes", "no", "a dog barks twice and then a car", "bell", "a dog"]
QUERIES = 5


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folder of each tiny language model, made when first asked for."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tiny.LANGUAGE_MODELS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return folder


@pytest.fixture(scope="session")
def load(folders):
    """Loads a model; without options always the same one, which no test changes."""
    loaded = {}

    def get(name, **options):
        if options:
            return load_language_model(folders(name), **options)
        if name not in loaded:
            loaded[name] = load_language_model(folders(name))
        return loaded[name]

    return get


def padded(rows, fill=0):
    """Ragged ids -> (B, L) and lengths; the fill is a real token on purpose."""
    lengths = torch.tensor([len(row) for row in rows])
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
    return Padded(ids, lengths)


def prefix_of(lm, rows=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Padded(torch.randn(rows, QUERIES, lm.width, generator=generator))


def inputs(lm, prompts=PROMPTS, targets=TARGETS, fill=0):
    prompt = padded([lm.encode_prompt(text) for text in prompts], fill)
    return prompt, padded([lm.encode_target(text) for text in targets], fill)


def row(i, prefix, prompt, target):
    """Row i without its padding."""
    rows = []
    for part in (prefix, prompt, target):
        one = part.select(torch.tensor([i]))
        length = None if one.lengths is None else int(one.lengths)
        rows.append(Padded(one.values[:, :length], one.lengths))
    return rows


# --------------------------------------------------------------------------- loss


@pytest.mark.parametrize("name", NAMES)
def test_loss_of_a_batch_is_the_sum_over_its_rows(name, load):
    lm = load(name)
    prefix = prefix_of(lm)
    prompt, target = inputs(lm)
    total, count, correct = lm.loss(prefix, prompt, target)
    alone = [lm.loss(*row(i, prefix, prompt, target)) for i in range(3)]
    assert total.dtype == torch.float32 and math.isfinite(total)
    assert total.item() == pytest.approx(sum(a[0].item() for a in alone), rel=1e-5)
    assert count.item() == sum(a[1].item() for a in alone) == target[1].sum()
    assert correct.item() == sum(a[2].item() for a in alone)
    assert not count.is_floating_point() and not correct.is_floating_point()


@pytest.mark.parametrize("name", NAMES)
def test_what_fills_the_padding_does_not_matter(name, load):
    lm = load(name)
    prefix = prefix_of(lm)
    first = lm.loss(prefix, inputs(lm)[0], inputs(lm)[1])[0]
    prompt, target = inputs(lm, fill=7)
    prompt = Padded(torch.nn.functional.pad(prompt[0], (0, 3), value=5), prompt[1])
    target = Padded(torch.nn.functional.pad(target[0], (0, 2), value=6), target[1])
    second = lm.loss(prefix, prompt, target)[0]
    assert second.item() == pytest.approx(first.item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_the_model_s_own(name, load, folders):
    """Against transformers' forward on one row laid out by hand, labels and all."""
    lm = load(name)
    automatic = (
        transformers.AutoModelForSeq2SeqLM
        if lm.kind == "seq2seq"
        else transformers.AutoModelForCausalLM
    )
    model = automatic.from_pretrained(folders(name)).eval()
    prefix = prefix_of(lm, rows=1)
    prompt, target = lm.encode_prompt(PROMPTS[0]), lm.encode_target(TARGETS[0])
    embed = model.get_input_embeddings()

    def vectors(ids):
        return embed(torch.tensor([ids], dtype=torch.long))

    parts = [vectors(lm.text.head), prefix.values, vectors(prompt)]
    before = sum(part.shape[1] for part in parts)
    if lm.kind == "seq2seq":
        labels = torch.tensor([target])
    else:
        parts.append(vectors(target))
        labels = torch.tensor([[-100] * before + target])
    with torch.no_grad():
        expected = model(inputs_embeds=torch.cat(parts, dim=1), labels=labels).loss
    total, count, _ = lm.loss(prefix, padded([prompt]), padded([target]))
    assert (total / count).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_prefix_of_every_row_and_no_weight(name, load):
    lm = load(name)
    prefix = prefix_of(lm)
    vectors = prefix.values.requires_grad_()
    prompt, target = inputs(lm)
    lm.loss(prefix, prompt, target)[0].backward()
    whole = vectors.grad.clone()
    assert (whole.abs().sum(dim=(1, 2)) > 0).all()
    for i in range(3):
        vectors.grad = None
        lm.loss(*row(i, prefix, prompt, target))[0].backward()
        torch.testing.assert_close(vectors.grad[i], whole[i], atol=1e-5, rtol=1e-4)
    assert not list(lm.parameters()) and not lm.state_dict()
    assert all(p.grad is None for p in lm.frozen.module.parameters())


@pytest.mark.parametrize("name", ["t5", "llama", "gpt2"])
def test_vocabulary_is_computed_at_target_positions_only(name, load):
    lm = load(name)
    seen = []
    head = lm.frozen.module.get_output_embeddings()
    hook = head.register_forward_hook(lambda m, i, output: seen.append(output.shape))
    try:
        prompt, target = inputs(lm)
        lm.loss(prefix_of(lm), prompt, target)
    finally:
        hook.remove()
    assert seen == [(1, int(target[1].sum()), lm.vocabulary)]


@pytest.mark.parametrize("name", NAMES)
def test_no_prompt_is_an_empty_prompt(name, load):
    lm = load(name)
    prompt, target = inputs(lm, prompts=["", "", ""])
    prefix = prefix_of(lm)
    none = lm.loss(prefix, None, target)[0]
    assert none.item() == pytest.approx(lm.loss(prefix, prompt, target)[0].item())
    options = GenerationOptions(num_beams=1, max_new_tokens=4)
    assert lm.generate(prefix, options=options) == lm.generate(prefix, prompt, options)


def test_prefix_of_another_width_is_an_error(load):
    lm = load("t5")
    with pytest.raises(ValueError, match=r"\(B, Q, 16\), found \(3, 5, 17\)"):
        lm.loss(Padded(torch.zeros(3, 5, 17)), None, inputs(lm)[1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_half_precision_weights_give_a_float32_loss_near_the_exact_one(
    name, dtype, load
):
    exact, half = load(name), load(name, dtype=dtype)
    half.train().to(dtype=torch.float32)
    assert half.frozen.dtype == getattr(torch, dtype)
    prompt, target = inputs(exact)
    prefix = prefix_of(exact)
    vectors = prefix.values.requires_grad_()
    total = half.loss(prefix, prompt, target)[0]
    total.backward()
    assert total.dtype == vectors.grad.dtype == torch.float32
    assert torch.isfinite(vectors.grad).all()
    expected = exact.loss(prefix, prompt, target)[0].item()
    assert total.item() == pytest.approx(expected, rel=0.03)
    options = GenerationOptions(num_beams=2, max_new_tokens=3)
    assert len(half.generate(Padded(vectors.detach()), prompt, options)) == 3


# ---------------------------------------------------------------------- generation

OPTIONS = {
    "beam": GenerationOptions(num_beams=3, max_new_tokens=8),
    "greedy": GenerationOptions(num_beams=1, max_new_tokens=8),
    "penalties": GenerationOptions(
        num_beams=2,
        max_new_tokens=8,
        min_new_tokens=4,
        length_penalty=-1.0,
        repetition_penalty=1.5,
        no_repeat_ngram_size=2,
    ),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_generation_in_a_padded_batch_is_that_of_each_row_alone(name, options, load):
    lm = load(name)
    prefix = prefix_of(lm)
    prompt, target = inputs(lm)
    texts = lm.generate(prefix, prompt, options)
    alone = [
        lm.generate(*row(i, prefix, prompt, target)[:2], options)[0] for i in range(3)
    ]
    assert texts == alone
    assert all(isinstance(text, str) for text in texts) and any(texts)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_several_texts_of_a_row_are_its_beams(name, load):
    lm = load(name)
    inputs_of = prefix_of(lm), inputs(lm)[0]
    several = lm.generate_several(
        *inputs_of, GenerationOptions(num_beams=3, max_new_tokens=8, rerank=3)
    )
    assert [len(set(texts)) for texts in several] == [3, 3, 3]
    assert [texts[0] for texts in several] == lm.generate(*inputs_of, OPTIONS["beam"])
    sampled = GenerationOptions(1, 8, do_sample=True, top_k=0, seed=0, rerank=4)
    assert [len(texts) for texts in lm.generate_several(*inputs_of, sampled)] == [4] * 3


def test_more_texts_than_beams_is_an_error():
    with pytest.raises(ValueError, match=r"at most num_beams \(3\).*found 4"):
        GenerationOptions(num_beams=3, rerank=4)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_greedy_generation_takes_the_likeliest_token_at_each_step(name, load):
    """Token by token, without the cache: the loss and generate agree on positions."""
    lm = load(name)
    prefix = prefix_of(lm, rows=1)
    prompt = padded([lm.encode_prompt(PROMPTS[0])])
    ids = []
    for _ in range(5):
        candidates = torch.arange(lm.vocabulary).unsqueeze(1)
        rows = torch.tensor([ids], dtype=torch.long).expand(len(candidates), -1)
        rows = torch.cat([rows, candidates], dim=1)
        scores = lm.score_candidates(prefix, prompt, Padded(rows), batch_size=500)
        ids.append(int(scores[0].argmax()))
        if ids[-1] == lm.eos_id:
            break
    text = lm.tokenizer.decode(ids, skip_special_tokens=True).strip()
    options = GenerationOptions(num_beams=1, max_new_tokens=5, min_new_tokens=0)
    assert lm.generate(prefix, prompt, options) == [text]


@pytest.mark.parametrize("name", ["t5", "qwen2"])
def test_sampling_follows_its_seed_and_leaves_the_random_state(name, load):
    lm = load(name)
    prefix = prefix_of(lm)

    def sample(seed):
        options = GenerationOptions(1, 12, do_sample=True, top_k=0, seed=seed)
        return lm.generate(prefix, options=options)

    state = torch.get_rng_state()
    assert sample(1) == sample(1) != sample(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_s_own_generation_defaults_are_not_used(folders, tmp_path):
    folder = tmp_path / "llama"
    shutil.copytree(folders("llama"), folder)
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text())
    settings |= dict(repetition_penalty=9.0, max_length=7, do_sample=True, top_k=1)
    file.write_text(json.dumps(settings))
    changed, plain = (load_language_model(f) for f in (folder, folders("llama")))
    options = GenerationOptions(num_beams=1, max_new_tokens=10)
    prefix = prefix_of(plain)
    assert changed.generate(prefix, options=options) == plain.generate(
        prefix, options=options
    )


# ---------------------------------------------------------------------- candidates


@pytest.mark.parametrize("name", NAMES)
def test_candidate_scores_are_those_of_a_plain_loop(name, load):
    lm = load(name)
    prefix = prefix_of(lm)
    prompt, target = inputs(lm)
    ids, lengths = padded([lm.encode_target(text) for text in CANDIDATES])
    expected = torch.zeros(3, len(CANDIDATES))
    with torch.no_grad():
        for i in range(3):
            one = row(i, prefix, prompt, target)[:2]
            for j, length in enumerate(lengths):
                candidate = Padded(ids[j : j + 1, :length])
                expected[i, j] = -lm.loss(*one, candidate)[0]
    for batch_size in (1, 4, 64):
        scores = lm.score_candidates(prefix, prompt, Padded(ids, lengths), batch_size)
        assert scores.shape == (3, 5) and scores.dtype == torch.float32
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["t5", "bart", "llama", "gpt2"])
def test_audio_and_prompt_are_encoded_once_for_all_candidates(name, load):
    lm = load(name)
    lengths_seen = []
    module = lm.frozen.module
    watched = module.get_encoder() if lm.kind == "seq2seq" else module

    def note(module, arguments, keywords):
        seen = keywords.get("inputs_embeds")
        lengths_seen.append(tuple(seen.shape[:2]))

    hook = watched.register_forward_pre_hook(note, with_kwargs=True)
    try:
        prompt = inputs(lm)[0]
        ids, lengths = padded([lm.encode_target(text) for text in CANDIDATES])
        lm.score_candidates(prefix_of(lm), prompt, Padded(ids, lengths), batch_size=6)
    finally:
        hook.remove()
    context = len(lm.text.head) + QUERIES + prompt[0].shape[1]
    assert lengths_seen[0] == (3, context)
    if lm.kind == "seq2seq":
        assert len(lengths_seen) == 1
    else:
        assert all(length < ids.shape[1] for _, length in lengths_seen[1:])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_asked_for_by_a_name_that_transformers_will_drop(name, load):
    lm = load(name)
    prompt, target = inputs(lm)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        lm.loss(prefix_of(lm), prompt, target)
        lm.score_candidates(prefix_of(lm), prompt, target, 4)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_candidate_probabilities_sum_to_one(name, load):
    """All texts of one token: a distribution."""
    lm = load(name)
    ids = torch.arange(lm.vocabulary).unsqueeze(1)
    scores = lm.score_candidates(prefix_of(lm), None, Padded(ids))
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(3))


# --------------------------------------------------------------------------- text


def test_prompts_and_targets_as_each_model_knows_them(load):
    def words(name):
        lm = load(name)
        decode = lm.tokenizer.decode
        whole = lm.text.head + lm.encode_prompt("a dog?")
        *target, end = lm.encode_target(" yes ")
        return decode(lm.text.head), decode(whole), decode(target), decode([end])

    turn = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    chat = (turn[0], f"{turn[0]}\na dog?{turn[1]}", "yes", "<|im_end|>")
    assert words("t5") == ("", "a dog?</s>", "yes", "</s>")
    assert words("bart") == ("<s>", "<s>a dog?</s>", "<s>yes", "</s>")
    assert words("llama") == words("mistral") == ("<s>", "<s> a dog?", "yes", "</s>")
    assert words("gpt2") == ("", "a dog?", " yes", "<|endoftext|>")
    assert words("opt") == ("</s>", "</s>a dog?", " yes", "</s>")
    assert words("qwen2") == words("qwen3") == chat


def test_chat_template_can_be_switched_off_and_is_required_where_asked_for(load):
    plain = load("qwen2", use_chat_template=False)
    assert plain.text.head == []
    assert plain.tokenizer.decode(plain.encode_prompt("a dog?")) == "a dog?"
    assert plain.tokenizer.decode(plain.encode_target("yes")) == " yes<|im_end|>"
    assert plain.identity() != load("qwen2").identity()
    with pytest.raises(ValueError, match="llama.* has no chat template"):
        load("llama", use_chat_template=True)
    with pytest.raises(ValueError, match="expected auto, true or false, found 'yes'"):
        load("llama", use_chat_template="yes")


def test_chat_template_that_drops_the_user_s_words_is_an_error(folders):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders("qwen2"))
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    from espnet2_slit.data.prompt_encoder import PromptEncoder

    with pytest.raises(ValueError, match="no place for the audio"):
        PromptEncoder(tokenizer, "causal", "here")


@pytest.mark.parametrize("name", NAMES)
def test_prompt_encoder_needs_no_weights_and_pickles(name, load, folders, tmp_path):
    folder = tmp_path / name
    ignore = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(folders(name), folder, ignore=ignore)
    encoder = pickle.loads(pickle.dumps(load_prompt_encoder(folder)))
    lm = load(name)
    for text in (*PROMPTS, *TARGETS):
        assert encoder.encode_prompt(text) == lm.encode_prompt(text)
        assert encoder.encode_target(text) == lm.encode_target(text)


# ------------------------------------------------- tokenizer and model disagreements


def edited(folders, name, folder, **changes):
    """A copy of a model's folder with changed values in its configuration files."""
    shutil.copytree(folders(name), folder)
    for file in ("config.json", "generation_config.json"):
        if (folder / file).exists():
            settings = json.loads((folder / file).read_text()) | changes
            (folder / file).write_text(json.dumps(settings))
    return folder


def test_end_of_sequence_disagreement_names_both_ids(folders, tmp_path):
    folder = edited(folders, "llama", tmp_path / "lm", eos_token_id=9)
    with pytest.raises(ValueError, match=r"id 1 \('</s>'\).* stops at \[9\].*trained"):
        load_language_model(folder)


def test_several_ends_of_sequence_are_fine_if_the_tokenizer_s_is_one(folders, tmp_path):
    folder = edited(folders, "qwen2", tmp_path / "lm", eos_token_id=[5, 0])
    assert load_language_model(folder).eos_id == 0


def test_padding_disagreement_names_both_ids(folders, tmp_path):
    folder = edited(folders, "t5", tmp_path / "lm", pad_token_id=4)
    with pytest.raises(ValueError, match=r"id 0 \('<pad>'\), the model with 4 .*rows"):
        load_language_model(folder)


def test_tokenizer_larger_than_the_embedding_is_an_error(folders, tmp_path):
    folder = tmp_path / "lm"
    shutil.copytree(folders("llama"), folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[x]", "[y]"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"has \d+ tokens, the model \d+ rows"):
        load_language_model(folder)


def test_tokenizer_that_knows_no_words_is_an_error(folders, tmp_path):
    """What T5Tokenizer(vocab_file=...) gives in transformers 5: special tokens only."""
    from tokenizers import Tokenizer, models

    folder = tmp_path / "lm"
    shutil.copytree(folders("t5"), folder)
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    broken = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    broken.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"\(3 tokens\).*nothing but unknown"):
        load_language_model(folder)


def test_missing_weights_are_listed(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "lm"
    shutil.copytree(folders("llama"), folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weights of LlamaFor.*model.norm.weight"):
        load_language_model(folder)


def test_sequence_to_sequence_model_needs_a_first_decoder_token(folders, tmp_path):
    folder = edited(folders, "t5", tmp_path / "lm", decoder_start_token_id=None)
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        load_language_model(folder)


def test_unknown_dtype_and_bits_are_errors(folders, monkeypatch):
    with pytest.raises(
        ValueError, match="auto, float32, bfloat16, float16, found 'int3'"
    ):
        load_language_model(folders("t5"), dtype="int3")
    with pytest.raises(ValueError, match="expected 4, 8 or null, found 3"):
        load_language_model(folders("t5"), load_in_bits=3)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"pip install 'espnet2_slit\[quantize\]'"):
        load_language_model(folders("t5"), load_in_bits=8)


# --------------------------------------------------------------------- stated layout

LAYOUT = {"head": [1, 7, 8], "before_prompt": [9, 1], "after_prompt": "? answer:"}


@pytest.mark.parametrize("name", ["llama", "qwen2", "t5"])
def test_a_stated_layout_stands_in_place_of_the_tokenizers(name, load):
    lm = load(name, layout=LAYOUT)
    ids = lm.tokenizer("how loud? answer:", add_special_tokens=False).input_ids
    assert lm.encode_prompt(" how loud ") == [9, 1, *ids]
    assert lm.text.head == [1, 7, 8] and not lm.text.uses_chat_template
    embedded, used = lm._inputs(prefix_of(lm, 1), None)
    head = lm.frozen.module.get_input_embeddings()(torch.tensor([1, 7, 8]))
    assert torch.equal(embedded[0, :3], head) and used.all()
    assert lm.identity()["layout"] == LAYOUT and load(name).identity()["layout"] is None


@pytest.mark.parametrize("lora", [None, {"r": 2, "target_modules": "all-linear"}])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_head_read_once_for_all_rows_changes_nothing(name, lora, load, monkeypatch):
    """Loss and every gradient, in training and after the weights have changed."""
    lm = load(name, layout={"head": list(range(3, 15))}, lora=lora)
    for adapter in lm.adapters.values():
        torch.nn.init.normal_(adapter, std=0.1)
    prompt, target = inputs(lm)

    def step():
        prefix = prefix_of(lm)
        prefix.values.requires_grad_()
        total, count, correct = lm.loss(prefix, prompt, target)
        leaves = [prefix.values, *lm.adapters.values()]
        grads = torch.autograd.grad(total, leaves)
        with torch.no_grad():
            for adapter in lm.adapters.values():
                adapter.add_(0.01)
        return [total.detach(), count, correct, *grads]

    lengths = []
    reader = lm.frozen.module.base_model
    forward = reader.forward

    def counted(*args, **kwargs):
        lengths.append(kwargs["inputs_embeds"].shape[:2])
        return forward(*args, **kwargs)

    monkeypatch.setattr(reader, "forward", counted)
    once = [step(), step()]
    # a sliding window's memory is not shared, and asked for once only
    assert lengths.count((1, 12)) == (2 if lora and lm._shares_head else 1)
    assert lm._shares_head == (name != "mistral")
    with torch.no_grad():
        for adapter in lm.adapters.values():
            adapter.sub_(0.02)
    lm._shares_head = False
    for mine, each in zip(once, [step(), step()], strict=True):
        for a, b in zip(mine, each, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_layout_that_does_not_fit_is_an_error(folders):
    with pytest.raises(ValueError, match=r"layout: expected ids below .* \[99999\]"):
        load_prompt_encoder(folders("llama"), layout={"head": [99999]})
    both = dict(layout=LAYOUT, use_chat_template=True)
    with pytest.raises(ValueError, match="layout or use_chat_template, found both"):
        load_prompt_encoder(folders("qwen2"), **both)


# ------------------------------------------------------- identity, copies, adapters


def test_identity_is_plain_and_tells_weights_and_tokenizers_apart(
    load, folders, tmp_path
):
    identity = load("t5").identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity == load_language_model(folders("t5")).identity()
    assert identity["kind"] == "seq2seq" and identity["path"] == str(folders("t5"))
    other = load_language_model(tiny.t5(tmp_path / "other", seed=1)).identity()
    assert other["fingerprint"] != identity["fingerprint"]
    assert other["tokenizer_fingerprint"] == identity["tokenizer_fingerprint"]


def test_flan_t5_keeps_its_own_output_layer(load, folders):
    """Its class ties the output to the embeddings unless the files hold both."""
    from safetensors.torch import load_file

    weights = load_file(folders("t5") / "model.safetensors")
    model = load("t5").frozen.module
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])
    assert torch.equal(model.shared.weight, weights["shared.weight"])
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    assert not model.config.scale_decoder_outputs


def test_model_given_as_its_own_weights_is_still_not_registered(folders):
    model = transformers.AutoModelForCausalLM.from_pretrained(folders("llama"))
    text = load_prompt_encoder(folders("llama"))
    for weights in (None, model):
        lm = LanguageModel(model, text, weights=weights)
        assert not list(lm.parameters()) and not lm.state_dict()
        assert len(lm.identity()["fingerprint"]) == 64


def test_deepcopy_works(load):
    lm = load("llama")
    twin = copy.deepcopy(lm)
    target = inputs(lm)[1]
    prefix = prefix_of(lm)
    assert twin.loss(prefix, None, target)[0] == pytest.approx(
        lm.loss(prefix, None, target)[0].item()
    )


LORA = dict(r=4, lora_alpha=8, lora_dropout=0.5)


@pytest.mark.parametrize("name", ["t5", "llama", "qwen2", "opt", "gpt2", "bart"])
def test_lora_trains_and_is_saved_with_the_trainable_part(name, load):
    pytest.importorskip("peft")
    lm = load(name, lora=LORA, dtype="bfloat16")
    plain = load(name, dtype="bfloat16")
    names = set(lm.state_dict())
    assert names and all("lora_" in n for n in names)
    assert {n for n, _ in lm.named_parameters()} == names
    assert {p.dtype for p in lm.parameters()} == {torch.float32}
    target = inputs(lm)[1]
    prefix = prefix_of(lm)
    lm.eval()
    with torch.no_grad():  # attention that trains rounds differently
        start = lm.loss(prefix, None, target)[0]
        expected = plain.loss(prefix, None, target)[0]
    assert start.item() == pytest.approx(expected.item(), rel=1e-4)  # starts as none
    before = lm.loss(prefix, None, target)[0]
    optimizer = torch.optim.SGD(lm.parameters(), lr=1.0)
    for _ in range(2):  # B is zero at first, so A gets its gradient at the second
        optimizer.zero_grad()
        lm.loss(prefix, None, target)[0].backward()
        assert all(p.grad is not None for p in lm.parameters())
        optimizer.step()
    trained = lm.loss(prefix, None, target)[0]
    assert trained.item() != pytest.approx(before.item(), rel=1e-4)
    again = load(name, lora=LORA, dtype="bfloat16")
    again.load_state_dict(lm.state_dict(), strict=True)
    again.eval().to(dtype=torch.float32)
    assert again.loss(prefix, None, target)[0].item() == trained.item()
    assert again.generate(prefix) == lm.generate(prefix)
    assert again.identity()["lora"] == LORA


def test_lora_dropout_follows_train_and_the_rest_stays_in_eval(load):
    pytest.importorskip("peft")
    lm = load("llama", lora=LORA)
    for mode in (True, False):
        lm.train(mode)
        training = {n for n, m in lm.frozen.module.named_modules() if m.training}
        dropouts = {n for n in training if n.rsplit(".", 2)[-2:][0] == "lora_dropout"}
        assert bool(dropouts) == mode and all("lora_dropout" in n for n in training)


def test_lora_survives_a_move_and_a_deepcopy(load):
    pytest.importorskip("peft")
    lm = load("llama", lora=LORA)
    for model in (lm.to(dtype=torch.float64), copy.deepcopy(lm)):
        inner = dict(model.frozen.module.named_parameters())
        for name, parameter in model.adapters.items():
            assert inner[name.replace("/", ".")] is parameter


def test_lora_without_peft_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'espnet2_slit\[lora\]'"):
        load_language_model(folders("llama"), lora=LORA)


def test_model_that_bypasses_its_output_layer_is_refused(folders):
    model = transformers.AutoModelForCausalLM.from_pretrained(folders("llama"))
    text = load_prompt_encoder(folders("llama"))
    original = model.forward

    def forward(inputs_embeds=None, use_cache=None, **keywords):
        output = original(inputs_embeds=inputs_embeds, use_cache=False)
        output.logits = inputs_embeds @ model.lm_head.weight.T
        return output

    model.forward = forward
    lm = LanguageModel(model, text)
    with pytest.raises(RuntimeError, match="LlamaForCausalLM does not apply"):
        lm.loss(prefix_of(lm), None, inputs(lm)[1])
