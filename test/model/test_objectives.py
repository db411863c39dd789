"""The three losses: their values, their negatives, and their sums over ranks."""

from __future__ import annotations

import math

import pytest
import ranks
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tiny_qformer import tiny_batch, tiny_heads, tiny_qformer, training_losses

from espnet2_slit.model.objectives import (
    Temperature,
    contrastive,
    generation,
    matching,
    sample_negative_pairs,
    sample_negatives,
    similarity,
)
from espnet2_slit.model.ranks import World, fetch_rows, gather_rows, global_mean


def embeddings(batch=5, queries=3, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    audio = F.normalize(torch.randn(batch, queries, width, generator=generator), dim=-1)
    text = F.normalize(torch.randn(batch, width, generator=generator), dim=-1)
    return audio, text


# -- contrastive ----------------------------------------------------------------------


def test_similarity_is_the_best_query():
    audio, text = embeddings()
    broadcast = (audio[:, None] * text[None, :, None]).sum(-1).max(-1).values
    torch.testing.assert_close(similarity(audio, text), broadcast)


def test_contrastive_equals_cross_entropy_when_nothing_repeats():
    audio, text = embeddings()
    out = contrastive(audio, text, 0.07, torch.arange(5), label_smoothing=0.1)
    scores = similarity(audio, text) / 0.07
    labels = torch.arange(5)
    expected = (
        F.cross_entropy(scores, labels, label_smoothing=0.1)
        + F.cross_entropy(scores.t(), labels, label_smoothing=0.1)
    ) / 2
    torch.testing.assert_close(out.loss, expected)
    assert torch.equal(out.positives, torch.eye(5, dtype=torch.bool))


def test_repeated_clips_and_texts_share_the_target():
    audio, text = embeddings()
    clip_ids = torch.tensor([7, 8, 7, 9, 10])
    text_ids = torch.tensor([1, 2, 3, 2, 4])
    out = contrastive(audio, text, 0.1, clip_ids, text_ids, label_smoothing=0.0)
    expected = torch.eye(5, dtype=torch.bool)
    expected[0, 2] = expected[2, 0] = expected[1, 3] = expected[3, 1] = True
    assert torch.equal(out.positives, expected)
    targets = expected / expected.sum(1, keepdim=True)
    scores = similarity(audio, text) / 0.1
    by_hand = sum(
        -(targets * way.log_softmax(1)).sum(1).mean() for way in (scores, scores.t())
    )
    torch.testing.assert_close(out.loss, by_hand / 2)


def test_detach_rule_keeps_the_value_and_cuts_the_gathered_side():
    audio, text = embeddings()
    gradients = {}
    for rule in ("full", "detach"):
        a, t = audio.clone().requires_grad_(), text.clone().requires_grad_()
        loss = contrastive(a, t, 0.07, gather=rule).loss
        gradients[rule] = loss, *torch.autograd.grad(loss, (a, t))
    torch.testing.assert_close(gradients["full"][0], gradients["detach"][0])
    # by hand: each direction trains its own side only
    a, t = audio.clone().requires_grad_(), text.clone().requires_grad_()
    labels = torch.arange(5)
    loss = (
        F.cross_entropy(similarity(a, t.detach()) / 0.07, labels, label_smoothing=0.1)
        + F.cross_entropy(
            similarity(a.detach(), t).t() / 0.07, labels, label_smoothing=0.1
        )
    ) / 2
    for ours, expected in zip(
        gradients["detach"][1:], torch.autograd.grad(loss, (a, t)), strict=True
    ):
        torch.testing.assert_close(ours, expected)
    assert (gradients["full"][1] - gradients["detach"][1]).abs().max() > 1e-3


@pytest.mark.parametrize("temperature", [1e-6, 1e-2, 1e6])
def test_extreme_temperature_gives_no_nan(temperature):
    audio, text = embeddings()
    audio.requires_grad_()
    scale = torch.tensor(temperature, requires_grad=True)
    out = contrastive(audio, text, scale)
    out.loss.backward()
    assert out.loss.isfinite() and audio.grad.isfinite().all()
    assert scale.grad.isfinite()
    index, valid = sample_negatives(out.audio_to_text, out.positives, 0)
    assert valid.all() and (index != torch.arange(5)).all()


def test_temperature_stays_in_its_bounds_and_comes_back():
    temperature = Temperature(0.05, lowest=0.01, highest=0.2)
    optimizer = torch.optim.SGD(temperature.parameters(), lr=1.0)
    for direction, bound in ((1.0, 0.01), (-1.0, 0.2)):
        for _ in range(20):
            optimizer.zero_grad()
            (direction * temperature()).backward()
            optimizer.step()
        assert temperature().item() == pytest.approx(bound)
    # a push inwards is not blocked, however far outside the value got
    optimizer.zero_grad()
    temperature().backward()
    assert temperature.value.grad == 1.0
    with pytest.raises(ValueError, match="lowest 0.1, initial 0.05"):
        Temperature(0.05, lowest=0.1)


def test_mismatched_batches_are_named():
    audio, text = embeddings()
    with pytest.raises(ValueError, match=r"\(5, 3, 8\) and \(4, 8\)"):
        contrastive(audio, text[:4], 0.07)
    with pytest.raises(ValueError, match="'full', 'detach'.*'clip'"):
        contrastive(audio, text, 0.07, gather="clip")


def test_recall_counts_any_positive():
    audio = torch.eye(3)[:, None]
    text = torch.eye(3)[[0, 2, 1]]
    stats = contrastive(audio, text, 0.1).statistics()
    for name in ("recall_audio_to_text", "recall_text_to_audio"):
        assert stats[name] == pytest.approx(1 / 3)
        text_ids = torch.tensor([0, 5, 5])
        other = contrastive(audio, text, 0.1, None, text_ids).statistics()
        assert other[name] == 1.0


# -- negatives ------------------------------------------------------------------------


def test_repeated_captions_and_clips_are_never_negatives():
    audio, text = embeddings(6)
    clip_ids = torch.tensor([1, 1, 2, 3, 4, 5])
    text_ids = torch.tensor([1, 2, 3, 3, 4, 5])
    out = contrastive(audio, text, 0.5, clip_ids, text_ids)
    drawn = torch.zeros(6, 6, dtype=torch.bool)
    for seed in range(300):
        negatives = sample_negative_pairs(out, seed)
        assert negatives.valid.all()
        drawn[torch.arange(6), negatives.audio] = True
        drawn[torch.arange(6), negatives.text] = True
    assert not (drawn & out.positives).any()
    assert (drawn | out.positives).all()  # and everything else is drawn sometimes


def test_negatives_follow_the_softmax_of_the_similarity():
    scores = torch.tensor([[0.0, 1.0, 2.0, 0.5]])
    own = torch.tensor([[True, False, False, False]])
    counts = torch.zeros(4)
    draws = 4000
    for seed in range(draws):
        counts[sample_negatives(scores, own, seed)[0]] += 1
    expected = scores[0].masked_fill(own[0], -math.inf).softmax(0)
    torch.testing.assert_close(counts / draws, expected, rtol=0, atol=0.03)


def test_the_draw_does_not_depend_on_how_rows_are_spread():
    audio, text = embeddings(6)
    out = contrastive(audio, text, 0.5)
    whole, _ = sample_negatives(out.audio_to_text, out.positives, 11)
    for start, stop in ((0, 2), (2, 6)):
        part, _ = sample_negatives(
            out.audio_to_text[start:stop], out.positives[start:stop], 11, start
        )
        assert torch.equal(part, whole[start:stop])
    by_buffer, _ = sample_negatives(out.audio_to_text, out.positives, torch.tensor(11))
    assert torch.equal(by_buffer, whole)
    draws = {
        tuple(sample_negatives(out.audio_to_text, out.positives, seed)[0].tolist())
        for seed in range(20)
    }
    assert len(draws) > 5


def test_the_draw_by_names_does_not_depend_on_the_order_of_samples():
    audio, text = embeddings(6)
    names = torch.tensor([2**60, 7, -5, 11, 0, 3])
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    for seed in range(10):
        plain = sample_negative_pairs(contrastive(audio, text, 0.5), seed, names)
        turned = sample_negative_pairs(
            contrastive(audio[order], text[order], 0.5), seed, names[order]
        )
        assert torch.equal(order[turned.audio], plain.audio[order])
        assert torch.equal(order[turned.text], plain.text[order])


def test_a_row_without_legal_negative_is_left_out():
    audio, text = embeddings(3)
    out = contrastive(audio, text, 0.5, torch.tensor([4, 4, 4]))
    negatives = sample_negative_pairs(out, 0)
    assert not negatives.valid.any()
    logits = torch.randn(9, 2, requires_grad=True)
    loss = matching(logits, negatives.labels, negatives.valid, 3)
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_labels_are_one_match_then_two_mismatches():
    audio, text = embeddings(4)
    negatives = sample_negative_pairs(contrastive(audio, text, 0.5), 0)
    assert negatives.labels.tolist() == [1] * 4 + [0] * 8


# -- matching and generation ----------------------------------------------------------


def test_matching_ignores_masked_rows_even_if_not_finite():
    logits = torch.tensor([[1.0, 2.0], [float("nan"), 0.0], [0.5, -1.0]])
    logits.requires_grad_()
    labels = torch.tensor([1, 0, 0])
    valid = torch.tensor([True, False, True])
    loss = matching(logits, labels, valid, 1)
    expected = F.cross_entropy(logits[[0, 2]], labels[[0, 2]])
    torch.testing.assert_close(loss, expected)


def test_generation_is_the_mean_over_tokens():
    logits, targets = torch.randn(7, 11), torch.arange(7)
    expected = F.cross_entropy(logits, targets, label_smoothing=0.2)
    torch.testing.assert_close(generation(logits, targets, 3, 0.2), expected)


def test_global_mean_of_nothing_is_zero():
    total = torch.zeros((), requires_grad=True) * 1
    loss = global_mean(total, 0, 2)
    loss.backward()
    assert loss == 0


def test_batch_of_one_trains():
    qformer, heads = tiny_qformer(), tiny_heads()
    batch = {name: tensor[:1] for name, tensor in tiny_batch().items()}
    losses = training_losses(qformer, heads, batch)
    sum(losses.values()).backward()
    assert losses["contrastive"].abs() < 1e-6
    assert losses["matching"] == 0.0
    assert losses["generation"] > 0
    assert all(p.grad.isfinite().all() for p in qformer.parameters())


def test_losses_do_not_depend_on_the_order_of_samples():
    qformer, heads, batch = tiny_qformer(), tiny_heads(), tiny_batch(2)
    # two samples: the negative is forced, whatever the draw
    ahead = training_losses(qformer, heads, batch)
    turned = training_losses(qformer, heads, {n: t.flip(0) for n, t in batch.items()})
    for name in ahead:
        torch.testing.assert_close(turned[name], ahead[name], rtol=0, atol=1e-5)


# -- ranks ----------------------------------------------------------------------------

SPLITS = {"even": (3, 3), "uneven": (4, 2), "one_each_side": (1, 5)}


def repeating_batch() -> dict[str, torch.Tensor]:
    """A clip and a caption repeat across the ranks' border."""
    batch = tiny_batch(6)
    batch["clip_ids"] = torch.tensor([0, 1, 2, 3, 1, 5])
    batch["text_ids"] = torch.tensor([0, 1, 2, 0, 4, 5])
    batch["frames"][4] = batch["frames"][1]
    batch["frame_lengths"][4] = batch["frame_lengths"][1]
    return batch


def part_of(batch: dict, start: int, stop: int) -> dict:
    """A rank's rows, padded only to that rank's longest."""
    part = {name: tensor[start:stop] for name, tensor in batch.items()}
    part["frames"] = part["frames"][:, : part["frame_lengths"].max()]
    part["text"] = part["text"][:, : part["text_lengths"].max()]
    return part


def step(batch: dict, gather: str) -> tuple[dict, dict]:
    """Losses and gradients as ESPnet's Trainer and DDP make them."""
    qformer, heads = tiny_qformer(), tiny_heads()
    losses = training_losses(qformer, heads, batch, gather=gather)
    world = dist.get_world_size() if dist.is_initialized() else 1
    weight = torch.tensor(float(len(batch["text"])))
    total_weight = weight.clone()
    if world > 1:
        dist.all_reduce(total_weight)
    loss = sum(losses.values()) * weight / total_weight * world
    loss.backward()
    values = {}
    for name, value in losses.items():
        value = value.detach() * weight / total_weight
        if world > 1:
            dist.all_reduce(value)
        values[name] = value
    gradients = {}
    for module in (qformer, heads):
        for name, parameter in module.named_parameters():
            gradient = parameter.grad.clone()
            if world > 1:
                dist.all_reduce(gradient)
                gradient /= world
            gradients[f"{type(module).__name__}.{name}"] = gradient
    return values, gradients


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    results = {}
    batch = repeating_batch()
    for name, sizes in SPLITS.items():
        start = sum(sizes[:rank])
        part = part_of(batch, start, start + sizes[rank])
        for rule in ("full", "detach"):
            results[name, rule] = step(part, rule)
        world = World.of(torch.zeros(sizes[rank], 1))
        index = torch.tensor([5, 0, 2])
        results[name, "rows"] = (
            fetch_rows(part["text"], index, world),
            gather_rows(part["text_lengths"], world, "detach"),
        )
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("ranks"))
    ranks.spawn("test_objectives", "rank_main", folder)
    return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("rule", ["full", "detach"])
def test_two_ranks_give_losses_and_gradients_of_one(two_ranks, split, rule):
    values, gradients = step(repeating_batch(), rule)
    for result in two_ranks:
        their_values, their_gradients = result[split, rule]
        for name, value in values.items():
            torch.testing.assert_close(their_values[name], value, rtol=0, atol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                their_gradients[name], gradient, rtol=1e-5, atol=1e-5, msg=name
            )


@pytest.mark.parametrize("split", SPLITS)
def test_rows_of_other_ranks_arrive_whole(two_ranks, split):
    batch = repeating_batch()
    for result in two_ranks:
        text, lengths = result[split, "rows"]
        assert torch.equal(lengths, batch["text_lengths"])
        for row, i in zip(text, (5, 0, 2), strict=True):
            n = batch["text_lengths"][i]
            assert torch.equal(row[:n], batch["text"][i, :n])
