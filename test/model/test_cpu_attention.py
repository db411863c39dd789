"""Attention and dropout on a CPU equal PyTorch's, and drop what they should."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from espnet2_slit.model.cpu_attention import Dropout, attend, attend_saving, dropout


def inputs(dtype=torch.float64, masked=True):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4))
    tensors = [
        torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        for shape in shapes
    ]
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[1, ..., 4:] = False
    return *tensors, mask if masked else None


def reference(query, key, value, mask, kept=None, probability=0.0):
    scores = query @ key.transpose(-1, -2) / query.size(-1) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1)
    if kept is not None:
        weights = weights * kept / (1 - probability)
    return weights @ value


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("probability", [0.0, 0.25])
def test_values_and_gradients_equal_the_formula(masked, probability, monkeypatch):
    from espnet2_slit.model import cpu_attention as attention

    query, key, value, mask = inputs(masked=masked)
    kept = (torch.rand(2, 3, 5, 7) >= probability).byte()
    monkeypatch.setattr(attention, "_kept", lambda shape, p: kept)
    scale = query.size(-1) ** -0.5
    ours = attend_saving(query, key, value, mask, None, scale, probability)
    expected = reference(query, key, value, mask, kept, probability)
    if not probability:
        expected = reference(query, key, value, mask)
    torch.testing.assert_close(ours, expected)
    direction = torch.randn_like(ours)
    leaves = (query, key, value)
    for mine, theirs in zip(
        torch.autograd.grad(ours, leaves, direction),
        torch.autograd.grad(expected, leaves, direction),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_bfloat16_is_as_close_as_its_digits():
    query, key, value, mask = inputs(torch.bfloat16)
    ours = attend(query, key, value, mask, 0.0)
    exact = reference(*(t.double() for t in (query, key, value)), mask)
    exact = exact.transpose(1, 2).flatten(2)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=0.03)


def test_training_and_inference_agree_without_dropout():
    query, key, value, mask = inputs(torch.bfloat16)
    trained = attend(query, key, value, mask, 0.0)
    with torch.no_grad():
        inferred = attend(query, key, value, mask, 0.0)
    torch.testing.assert_close(trained, inferred, rtol=0, atol=0.03)


def test_keys_from_outside_the_autocast_region_serve():
    query, key, value, mask = inputs(torch.float32)
    for inner in (query.detach().bfloat16().requires_grad_(), query):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = attend(inner, key, value, mask, 0.1)
        out.float().sum().backward()
        assert inner.grad.dtype == inner.dtype and key.grad.isfinite().all()


def test_dropout_of_attention_keeps_the_mean():
    torch.manual_seed(0)
    query, key, value, mask = (t.detach() for t in inputs(torch.float32))
    many = [t.expand(3000, *t.shape).flatten(0, 1) for t in (query, key, value)]
    many_mask = mask.expand(3000, *mask.shape).flatten(0, 1)
    many[0].requires_grad_()
    out = attend(*many, many_mask, 0.3).detach().view(3000, 2, 5, 12)
    expected = reference(query, key, value, mask).transpose(1, 2).flatten(2)
    assert out.std(0).min() > 0.01
    torch.testing.assert_close(out.mean(0), expected, rtol=0, atol=0.06)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.999])
def test_dropout_drops_its_share_and_scales_the_rest(probability):
    torch.manual_seed(0)
    x = torch.ones(1001, 333, requires_grad=True)
    out = dropout(x, probability, training=True)
    zeros = (out == 0).float().mean().item()
    assert zeros == pytest.approx(probability, abs=0.002)
    torch.testing.assert_close(
        out[out > 0], torch.full_like(out[out > 0], 1 / (1 - probability))
    )
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, out)  # dropped where the value was, scaled alike


def test_dropout_has_no_pattern_over_neighbours():
    """Four masks come from one random number; they must still be independent."""
    torch.manual_seed(0)
    kept = (dropout(torch.ones(400_000), 0.5, training=True) > 0).float()
    for distance in (1, 2, 3, 4, 8):
        together = (kept[:-distance] * kept[distance:]).mean().item()
        assert together == pytest.approx(0.25, abs=0.004)


def test_dropout_follows_the_seed_and_the_mode():
    x = torch.ones(50)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(dropout(x, 0.5, training=True))
    assert torch.equal(*results)
    assert not torch.equal(results[0], dropout(x, 0.5, training=True))
    module = Dropout(0.5).eval()
    assert module(x) is x
    assert Dropout(0.0).train()(x) is x
    with pytest.raises(ValueError, match=r"\[0, 1\), found 1.5"):
        Dropout(1.5)


def test_no_gradient_uses_pytorch(monkeypatch):
    calls = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *a, **k: calls.append(1) or original(*a, **k),
    )
    query, key, value, mask = inputs(torch.float32)
    with torch.no_grad():
        attend(query, key, value, mask, 0.0)
    assert len(calls) == 1
