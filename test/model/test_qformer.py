"""The Q-Former: what its outputs may depend on, and what they must not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_qformer import (
    BOS,
    ENCODER_WIDTH,
    VOCAB,
    tiny_audio,
    tiny_batch,
    tiny_heads,
    tiny_qformer,
    tiny_text,
    training_losses,
)

from espnet2_slit.common.padded import IGNORED, Padded
from espnet2_slit.model.packed_text import PackedText
from espnet2_slit.model.qformer import QFormer
from espnet2_slit.model.qformer_layers import PairBlock

EXACT = dict(rtol=0, atol=2e-6)


def all_outputs(qformer: QFormer, batch: dict) -> dict[str, torch.Tensor]:
    """Every pass, one row per clip (generation: one per predicted token)."""
    memory = qformer.encode_frames(tiny_audio(batch))
    text = tiny_text(batch)
    queries = qformer.forward_queries(memory)
    index = torch.arange(len(batch["text"]))
    pairs = qformer.forward_pairs(memory, text, index, index.flip(0))
    logits, targets = qformer.forward_generation(queries, text)
    return {
        "queries": queries.hidden.values,
        "instructed": qformer.forward_queries(memory, text).hidden.values,
        "text": qformer.forward_text(text),
        "pairs": pairs.values,
        "logits": logits[targets != IGNORED],
        "targets": targets[targets != IGNORED],
    }


def rows(batch: dict, keep: list[int], trim: bool = True) -> dict:
    """Some clips of a batch, cut to their longest."""
    part = {name: tensor[keep] for name, tensor in batch.items()}
    if trim:
        part["frames"] = part["frames"][:, : part["frame_lengths"].max()]
        part["text"] = part["text"][:, : part["text_lengths"].max()]
    return part


@pytest.mark.parametrize("noise", [0.0, 1e4])
def test_audio_padding_does_not_change_any_output(noise):
    qformer, batch = tiny_qformer().eval(), tiny_batch()
    plain = all_outputs(qformer, batch)
    frames = F.pad(batch["frames"], (0, 0, 0, 7), value=noise)
    padding = torch.arange(frames.size(1)) >= batch["frame_lengths"][:, None]
    frames = torch.where(padding[..., None], noise, frames)
    padded = all_outputs(qformer, batch | {"frames": frames})
    for name in plain:
        torch.testing.assert_close(padded[name], plain[name], **EXACT)


def test_text_padding_does_not_change_any_output():
    qformer, batch = tiny_qformer().eval(), tiny_batch()
    plain = all_outputs(qformer, batch)
    text = F.pad(batch["text"], (0, 4), value=17)
    padding = torch.arange(text.size(1)) >= batch["text_lengths"][:, None]
    padded = all_outputs(qformer, batch | {"text": text.masked_fill(padding, 23)})
    for name in plain:
        torch.testing.assert_close(padded[name], plain[name], **EXACT)


def test_outputs_do_not_depend_on_batch_neighbours():
    qformer, batch = tiny_qformer().eval(), tiny_batch()
    together = all_outputs(qformer, batch)
    tokens = (batch["text_lengths"] - 1).cumsum(0)
    for i in range(len(batch["text"])):
        alone = all_outputs(qformer, rows(batch, [i]))
        for name in ("queries", "instructed", "text"):
            torch.testing.assert_close(alone[name], together[name][i : i + 1], **EXACT)
        mine = slice(tokens[i] - batch["text_lengths"][i] + 1, tokens[i])
        torch.testing.assert_close(alone["logits"], together["logits"][mine], **EXACT)
    for name, tensor in all_outputs(qformer, rows(batch, [3, 1, 0])).items():
        if name in ("queries", "instructed", "text"):
            torch.testing.assert_close(tensor, together[name][[3, 1, 0]], **EXACT)


def outputs_and_gradients(qformer, batch):
    """`all_outputs` and every weight's gradient of the sum of their squares."""
    qformer.zero_grad()
    outputs = all_outputs(qformer, batch)
    sum(o.double().square().sum() for o in outputs.values()).backward()
    return outputs, [p.grad.clone() for p in qformer.parameters()]


def assert_close_to(outputs, gradients, qformer, batch):
    found, found_gradients = outputs_and_gradients(qformer, batch)
    for name in outputs:
        torch.testing.assert_close(found[name], outputs[name], **EXACT)
    for gradient, before in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(gradient, before, rtol=1e-4, atol=1e-4)


def test_packed_text_equals_padded_text(monkeypatch):
    """The layout of an accelerator, run here."""
    qformer, batch = tiny_qformer(), tiny_batch()
    packed, gradients = outputs_and_gradients(qformer, batch)
    original = PackedText.__init__
    monkeypatch.setattr(
        PackedText,
        "__init__",
        lambda self, lengths, width, together: original(
            self, lengths, width, pack=False, together=together
        ),
    )
    assert_close_to(packed, gradients, qformer, batch)


def test_packed_padding_changes_no_result(monkeypatch):
    """Rows filled up to a multiple, as under bfloat16 autocast."""
    qformer, batch = tiny_qformer(), tiny_batch()
    exact, gradients = outputs_and_gradients(qformer, batch)
    filled = []
    original = PackedText.ids_and_positions

    def count(layout, text):
        ids, positions = original(layout, text)
        filled.append((len(ids), layout.tokens, layout.sequences * layout.longest))
        return ids, positions

    monkeypatch.setattr(PackedText, "ids_and_positions", count)
    monkeypatch.setattr("espnet2_slit.model.packed_text.ROW_MULTIPLE", 3)
    # in float32: the rows alone must change nothing
    monkeypatch.setattr(
        "espnet2_slit.model.packed_text.pads_rows_to_multiple", lambda: True
    )
    assert_close_to(exact, gradients, qformer, batch)
    packed = [row for row in filled if row[1] is not None]
    assert any(rows > tokens for rows, tokens, _ in packed)
    assert all(rows % 3 == 0 or rows == block for rows, _, block in packed)


def test_pairs_in_any_order_equal_each_pair_alone():
    qformer, batch = tiny_qformer().eval(), tiny_batch(4)
    memory = qformer.encode_frames(tiny_audio(batch))
    text = tiny_text(batch)
    cases = {
        "every clip twice": ([0, 1, 2, 3, 3, 1, 0, 2], [0, 1, 2, 3, 1, 2, 3, 0]),
        "two clips thrice": ([2, 0, 2, 0, 0, 2], [0, 1, 2, 3, 1, 1]),
        "unequal": ([2, 2, 0, 2], [3, 1, 1, 0]),
        "one": ([1], [2]),
    }
    for name, (audio, texts) in cases.items():
        audio, texts = torch.tensor(audio), torch.tensor(texts)
        out = qformer.forward_pairs(memory, text, audio, texts).values
        for i, (a, t) in enumerate(zip(audio, texts, strict=True)):
            alone = qformer.forward_pairs(memory, text, a[None], t[None]).values
            torch.testing.assert_close(out[i], alone[0], **EXACT, msg=name)


def test_pairs_of_a_training_step_are_those_pairs():
    qformer, batch = tiny_qformer().eval(), tiny_batch(3)
    memory = qformer.encode_frames(tiny_audio(batch))
    text = tiny_text(batch)
    audio, other = torch.tensor([2, 2, 0]), torch.tensor([1, 0, 1])
    own = torch.arange(3)
    # a negative text from another rank may be longer or shorter than ours
    for extra in (0, 2):
        negative = text.select(other)
        negative = Padded(F.pad(negative.values, (0, extra)), negative.lengths)
        step = qformer.forward_matching(memory, text, memory.select(audio), negative)
        audio_index, text_index = (
            torch.cat((own, audio, own)),
            torch.cat((own, own, other)),
        )
        pairs = qformer.forward_pairs(memory, text, audio_index, text_index)
        torch.testing.assert_close(step.values, pairs.values, **EXACT)


def test_cached_generation_equals_joint_causal_pass():
    qformer, batch = tiny_qformer().eval(), tiny_batch()
    memory = qformer.encode_frames(tiny_audio(batch))
    logits, targets = qformer.forward_generation(
        qformer.forward_queries(memory), tiny_text(batch)
    )
    # queries and text in one pass: queries see queries, text sees queries and the past
    count, length = batch["text"].shape
    q = qformer.num_queries
    mask = torch.ones(q + length, q + length, dtype=torch.bool).tril()
    mask[:q, :q] = True
    inputs = batch["text"].clone()
    inputs[:, 0] = BOS
    lengths = torch.full((count,), length)
    layout, text_rows = qformer._embed_text(Padded(inputs, lengths))
    _, text_rows, _ = qformer._run(
        qformer._embed_queries(count),
        text_rows,
        layout,
        mask,
        blocks=[PairBlock(memory)],
    )
    joint = qformer.language_head(text_rows, qformer.embedding.word.weight)
    joint = joint.view(count, length, VOCAB)[:, :-1]
    keep = torch.arange(length - 1) < batch["text_lengths"][:, None] - 1
    torch.testing.assert_close(logits, joint[keep], rtol=0, atol=1e-5)
    assert torch.equal(targets, batch["text"][:, 1:][keep])


@pytest.mark.parametrize("on_host", [True, False])
def test_one_pass_over_captions_equals_the_three_that_it_stands_for(
    on_host, monkeypatch
):
    """Losses of all outputs have the same gradients, too, packed and padded."""
    if not on_host:
        for room in ("packed_text", "qformer"):
            name = f"espnet2_slit.model.{room}.is_on_host"
            monkeypatch.setattr(name, lambda lengths: False)
    qformer, batch = tiny_qformer(), tiny_batch()
    text, results = tiny_text(batch), []
    for one_pass in (True, False):
        qformer.zero_grad()
        memory = qformer.encode_frames(tiny_audio(batch))
        if one_pass:
            queries, cls, logits, targets = qformer.forward_captions(memory, text)
        else:
            output = qformer.forward_queries(memory)
            queries, cls = output.hidden, qformer.forward_text(text)
            logits, targets = qformer.forward_generation(output, text)
        real = targets != IGNORED
        found = [queries.values, cls, logits[real]]
        torch.stack([x.square().mean() for x in found]).sum().backward()
        gradients = [p.grad for p in qformer.parameters() if p.grad is not None]
        results.append((found, targets[real], gradients))
    (found, targets, gradients), (expected, others, slopes) = results
    assert torch.equal(targets, others)
    for mine, other in zip(found + gradients, expected + slopes, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_generation_predicts_every_token_but_the_first_and_no_padding():
    qformer, batch = tiny_qformer(), tiny_batch()
    memory = qformer.encode_frames(tiny_audio(batch))
    logits, targets = qformer.forward_generation(
        qformer.forward_queries(memory), tiny_text(batch)
    )
    assert len(logits) == len(targets) == int((batch["text_lengths"] - 1).sum())
    expected = [
        t
        for row, n in zip(batch["text"], batch["text_lengths"], strict=True)
        for t in row[1:n]
    ]
    assert targets.tolist() == [int(t) for t in expected]


def test_a_token_sees_queries_and_the_past_but_not_the_future():
    qformer, batch = tiny_qformer().eval(), tiny_batch(1)
    memory = qformer.encode_frames(tiny_audio(batch))
    queries = qformer.forward_queries(memory)
    length = batch["text_lengths"]
    before, _ = qformer.forward_generation(queries, tiny_text(batch))
    text = batch["text"].clone()
    text[0, 2] = (text[0, 2] + 1) % BOS
    after, _ = qformer.forward_generation(queries, Padded(text, length))
    changed = (before - after).abs().amax(1) > 1e-4
    assert changed.tolist() == [False, False, True, True]
    text[0, 0] = 33  # [DEC] replaces whatever comes first
    same, _ = qformer.forward_generation(queries, Padded(text, length))
    assert torch.equal(after, same)


def test_checkpointing_on_equals_off_in_all_passes():
    batch = tiny_batch()
    results = []
    for switch in (False, True):
        qformer = tiny_qformer(gradient_checkpointing=switch, dropout=0.1).train()
        heads = tiny_heads()
        torch.manual_seed(5)
        losses = training_losses(qformer, heads, batch)
        memory = qformer.encode_frames(tiny_audio(batch))
        hidden = qformer.forward_queries(memory, tiny_text(batch)).hidden.values
        (sum(losses.values()) + hidden.square().mean()).backward()
        gradients = {n: p.grad for n, p in qformer.named_parameters()}
        results.append((losses, gradients))
    (losses, gradients), (losses_on, gradients_on) = results
    for name in losses:
        torch.testing.assert_close(losses_on[name], losses[name], **EXACT)
    for name in gradients:
        torch.testing.assert_close(gradients_on[name], gradients[name], **EXACT)


def test_every_trainable_weight_gets_a_gradient():
    """In each of the three stages; otherwise DDP waits forever."""
    batch = tiny_batch()
    stages = {
        "representation": dict(),
        "generative": dict(text_branch=False, vocab_size=0, bos_id=None),
        "instruction": dict(language_head=False, bos_id=None),
    }
    for stage, conf in stages.items():
        qformer = tiny_qformer(max_windows=2, frames_per_window=6, **conf)
        memory = qformer.encode_frames(tiny_audio(batch))
        if stage == "representation":
            sum(training_losses(qformer, tiny_heads(), batch).values()).backward()
        elif stage == "generative":
            qformer.forward_queries(memory).hidden.values.square().sum().backward()
        else:
            hidden = qformer.forward_queries(memory, tiny_text(batch)).hidden.values
            hidden.square().sum().backward()
        without = [
            n
            for n, p in qformer.named_parameters()
            if p.requires_grad and p.grad is None
        ]
        assert not without, (stage, without)


def test_sizes_of_the_three_stages():
    full = {n for n, _ in tiny_qformer().named_parameters()}
    read = {n for n, _ in tiny_qformer(language_head=False).named_parameters()}
    blind = {
        n for n, _ in tiny_qformer(text_branch=False, vocab_size=0).named_parameters()
    }
    assert {n.split(".")[0] for n in full - read} == {"language_head"}
    assert all("text_feed_forward" in n or "embedding." in n for n in read - blind)
    assert any("text_feed_forward" in n for n in read - blind)
    cross = {n.split(".")[1] for n in full if "cross_attention" in n}
    assert cross == {"0", "2"}


def test_instruction_changes_the_queries_and_leaves_no_cache():
    qformer, batch = tiny_qformer().eval(), tiny_batch()
    memory = qformer.encode_frames(tiny_audio(batch))
    plain = qformer.forward_queries(memory)
    text = tiny_text(batch)
    first = qformer.forward_queries(memory, text)
    turned = text.select(torch.arange(5, -1, -1))
    second = qformer.forward_queries(memory, turned).hidden.values
    assert first.hidden.values.shape == plain.hidden.values.shape
    assert (first.hidden.values - plain.hidden.values).abs().max() > 0.01
    assert (first.hidden.values - second).abs().max() > 0.01
    with pytest.raises(ValueError, match="have seen an instruction"):
        qformer.forward_generation(first, text)


def test_window_position_tells_windows_apart_and_starts_at_zero():
    batch = tiny_batch()
    plain = tiny_qformer(seed=1)
    windowed = tiny_qformer(seed=1, max_windows=3, frames_per_window=4)
    state = plain.state_dict() | {"window_position": torch.zeros(3, ENCODER_WIDTH)}
    windowed.load_state_dict(state)
    read = tiny_audio(batch)
    before = plain.forward_queries(plain.encode_frames(read)).hidden.values
    after = windowed.forward_queries(windowed.encode_frames(read)).hidden.values
    torch.testing.assert_close(after, before, **EXACT)
    torch.nn.init.normal_(windowed.window_position)
    moved = windowed.encode_frames(read)
    # key of frame t = projection of LayerNorm(frame) + position of window t // 4
    normalised = windowed.frame_norm(batch["frames"])
    normalised = normalised + windowed.window_position[torch.arange(11) // 4]
    key = windowed.layers[2].cross_attention.key(normalised)
    expected = key.view(6, 11, 4, 6).transpose(1, 2)
    torch.testing.assert_close(moved.keys[1], expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="hold 12.*max_windows"):
        windowed.encode_frames(Padded(torch.zeros(1, 13, ENCODER_WIDTH)))


def test_frame_position_tells_what_came_first():
    frames, lengths = torch.randn(2, 11, ENCODER_WIDTH), torch.tensor([11, 11])
    read, backwards = Padded(frames, lengths), Padded(frames.flip(1), lengths)
    for scale, same in ((0.0, True), (0.5, False)):
        qformer = tiny_qformer(frame_position=scale).eval()
        hidden, turned = (
            qformer.forward_queries(qformer.encode_frames(given)).hidden.values
            for given in (read, backwards)
        )
        assert torch.allclose(hidden, turned, atol=1e-5) == same
    # key of frame t = projection of LayerNorm(frame) + gain * sinusoids of t
    place = torch.arange(11.0)[:, None] / 10000 ** (torch.arange(10) / 10)
    sinusoids = torch.stack((place.sin(), place.cos()), -1).flatten(1)
    norm, key = qformer.frame_norm, qformer.layers[2].cross_attention.key
    expected = key(norm(frames) + 0.5 * sinusoids * norm.weight)
    memory = qformer.encode_frames(read)
    torch.testing.assert_close(
        memory.keys[1], expected.view(2, 11, 4, 6).transpose(1, 2), rtol=0, atol=1e-5
    )


def test_frame_position_is_asked_for_by_the_weights():
    placed, plain = tiny_qformer(frame_position=0.5), tiny_qformer()
    with pytest.raises(RuntimeError, match="frame_position"):
        plain.load_state_dict(placed.state_dict())
    with pytest.raises(RuntimeError, match="frame_position"):
        placed.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("conf, std", [({}, 0.02), (dict(initial_std=0.05), 0.05)])
def test_new_qformer_starts_as_bert_does(conf, std):
    torch.manual_seed(0)
    qformer = QFormer(64, 500, width=96, layers=2, heads=4, bos_id=1, **conf)
    assert abs(qformer.query_tokens.std() - std) < 0.1 * std
    assert abs(qformer.layers[0].cross_attention.key.weight.std() - std) < 0.1 * std
    assert abs(qformer.embedding.word.weight.std() - std) < 0.1 * std
    assert not qformer.layers[0].cross_attention.key.bias.any()
    assert not qformer.embedding.word.weight[0].any()


def test_bfloat16_autocast_is_close_and_finite():
    qformer, heads, batch = tiny_qformer(), tiny_heads(), tiny_batch()
    exact = training_losses(qformer, heads, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = training_losses(qformer, heads, batch)
    sum(rough.values()).backward()
    for name, loss in rough.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.1, atol=0.1)
    for name, parameter in qformer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_half_precision_weights_run():
    qformer, batch = tiny_qformer().bfloat16().eval(), tiny_batch()
    for name, output in all_outputs(qformer, batch).items():
        assert output.isfinite().all(), name


def test_dropout_differs_between_clips_and_is_off_in_eval():
    qformer = tiny_qformer(dropout=0.5)
    frames = torch.randn(1, 5, ENCODER_WIDTH).expand(2, -1, -1)
    memory = qformer.encode_frames(Padded(frames))
    hidden = qformer.forward_queries(memory).hidden.values
    assert (hidden[0] - hidden[1]).abs().max() > 0.01
    qformer.eval()
    memory = qformer.encode_frames(Padded(frames))
    hidden = qformer.forward_queries(memory).hidden.values
    torch.testing.assert_close(hidden[0], hidden[1], **EXACT)


@pytest.mark.parametrize(
    "conf, message",
    [
        (dict(width=25), "width 25 is not a multiple of heads 4"),
        (dict(bos_id=50), r"bos_id.*\[DEC\].*vocabulary of 50.*found 50"),
        (dict(bos_id=None), r"bos_id.*found None"),
        (dict(max_windows=2), "frames_per_window.*found 0"),
        (dict(text_branch=False, language_head=True), "needs text_branch"),
        (dict(vocab_size=0), "needs the tokenizer's vocab_size"),
        (dict(initial_std=0.0), "initial_std must be above 0, found 0.0"),
    ],
)
def test_impossible_sizes_are_named(conf, message):
    with pytest.raises(ValueError, match=message):
        tiny_qformer(**conf)


def test_wrong_inputs_are_named():
    qformer, batch = tiny_qformer(), tiny_batch()
    with pytest.raises(ValueError, match="21 wide.*encoder_width 20"):
        qformer.encode_frames(Padded(torch.zeros(1, 3, 21)))
    with pytest.raises(ValueError, match="17 tokens.*16 positions"):
        long = torch.ones(1, 17, dtype=torch.long)
        qformer.forward_text(Padded(long, torch.tensor([17])))
    with pytest.raises(ValueError, match="longest is 9.*8 columns"):
        qformer.forward_text(Padded(batch["text"][:, :8], batch["text_lengths"]))
    blind = tiny_qformer(text_branch=False, vocab_size=0, bos_id=None)
    memory = blind.encode_frames(tiny_audio(batch))
    with pytest.raises(ValueError, match="no text branch"):
        blind.forward_queries(memory, tiny_text(batch))
