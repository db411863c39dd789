"""Attention and dropout on a CPU equal PyTorch's, and drop what they should."""

from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F

from espnet2_slit.common.padded import Padded
from espnet2_slit.model import cpu_attention
from espnet2_slit.model.cpu_attention import attend, memory_efficient_attention
from espnet2_slit.model.load_language_model import load_language_model


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
    query, key, value, mask = inputs(masked=masked)
    kept = (torch.rand(2, 3, 5, 7) >= probability).byte()
    monkeypatch.setattr(cpu_attention, "keep_mask", lambda shape, p: kept)
    scale = query.size(-1) ** -0.5
    ours = memory_efficient_attention(query, key, value, mask, None, scale, probability)
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
    half = (t.bfloat16() for t in (query, key, value))
    many = [t.expand(9000, *t.shape).flatten(0, 1) for t in half]
    many_mask = mask.expand(9000, *mask.shape).flatten(0, 1)
    many[0].requires_grad_()
    out = attend(*many, many_mask, 0.3).detach().float().view(9000, 2, 5, 12)
    expected = reference(query, key, value, mask).transpose(1, 2).flatten(2)
    assert out.std(0).min() > 0.01
    torch.testing.assert_close(out.mean(0), expected, rtol=0, atol=0.06)


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


# -- frozen language models ----------------------------------------------------------


@pytest.fixture(params=["t5", "llama", "qwen2", "opt"])
def model(request, tmp_path):
    return load_language_model(tiny.LANGUAGE_MODELS[request.param](tmp_path))


@pytest.fixture
def calls(monkeypatch):
    """Dtypes of the values that the fast attention was given."""
    seen, attend = [], cpu_attention.memory_efficient_attention

    def spy(query, key, value, *rest):
        seen.append(value.dtype)
        return attend(query, key, value, *rest)

    monkeypatch.setattr(cpu_attention, "memory_efficient_attention", spy)
    return seen


def loss_and_gradient(model, half=True):
    """Of a prefix, beside prompts and targets of different lengths."""
    prefix = torch.randn(2, 5, model.width, generator=torch.manual_seed(0))
    prefix.requires_grad_()
    prompt = Padded(torch.tensor([[5, 6, 7], [5, 0, 0]]), torch.tensor([3, 1]))
    target = Padded(torch.tensor([[7, 6, 5, 8], [9, 5, 0, 0]]), torch.tensor([4, 2]))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        total, _, _ = model.loss(Padded(prefix), prompt, target)
    total.backward()
    return total.detach(), prefix.grad


def test_equals_sdpa(model, calls):
    loss, gradient = loss_and_gradient(model)
    assert calls and set(calls) == {torch.bfloat16}
    calls.clear()
    model.frozen.module.set_attn_implementation("sdpa")
    expected, expected_gradient = loss_and_gradient(model)
    assert not calls
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0)
    direction = torch.nn.functional.cosine_similarity(
        gradient.flatten(), expected_gradient.flatten(), dim=0
    )
    assert direction > 0.999
    torch.testing.assert_close(
        gradient.norm(), expected_gradient.norm(), rtol=2e-2, atol=0
    )


def test_float32_and_inference_stay_with_sdpa(model, calls):
    loss_and_gradient(model, half=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.generate(Padded(torch.zeros(1, 5, model.width)))
    assert not calls


def test_another_choice_is_left_alone(model):
    network = model.frozen.module
    network.set_attn_implementation("eager")
    assert not cpu_attention.use_fast_attention(network)
    assert network.config._attn_implementation == "eager"


@pytest.mark.parametrize("keys", [1, 8, 31, 32, 60, 64, 127, 200])
def test_softmax_over_any_number_of_keys_is_pytorchs_to_the_last_digit(keys):
    generator = torch.Generator().manual_seed(keys)
    scores, grad = (
        torch.randn(3, 2, 5, keys, generator=generator).bfloat16() * 4 for _ in range(2)
    )
    exact = scores.double().softmax(-1)
    weights = cpu_attention._softmax(scores)
    assert weights.dtype == torch.bfloat16
    torch.testing.assert_close(weights.double(), exact, rtol=2**-8, atol=1e-6)
    found = cpu_attention._softmax_backward(grad, weights)
    assert found.dtype == torch.bfloat16
    wide, dot = weights.double(), (grad.double() * weights.double()).sum(-1, True)
    expected = (grad.double() - dot) * wide
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=2e-2)
