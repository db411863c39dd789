"""Attention of frozen models: sdpa's values and gradients, and only where meant."""

import pytest
import tiny
import torch

from espnet2_slit.model import frozen_attention
from espnet2_slit.model.language_model import load_language_model


@pytest.fixture(params=["t5", "llama", "qwen2", "opt"])
def model(request, tmp_path):
    return load_language_model(tiny.LANGUAGE_MODELS[request.param](tmp_path))


@pytest.fixture
def calls(monkeypatch):
    """Dtypes of the values that the fast attention was given."""
    seen, attend = [], frozen_attention.attend_saving

    def spy(query, key, value, *rest):
        seen.append(value.dtype)
        return attend(query, key, value, *rest)

    monkeypatch.setattr(frozen_attention, "attend_saving", spy)
    return seen


def loss_and_gradient(model, half=True):
    """Of a prefix, beside prompts and targets of different lengths."""
    prefix = torch.randn(2, 5, model.width, generator=torch.manual_seed(0))
    prefix.requires_grad_()
    prompt = torch.tensor([[5, 6, 7], [5, 0, 0]]), torch.tensor([3, 1])
    target = torch.tensor([[7, 6, 5, 8], [9, 5, 0, 0]]), torch.tensor([4, 2])
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        total, _, _ = model.loss(prefix, *prompt, *target)
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
        model.generate(torch.zeros(1, 5, model.width))
    assert not calls


def test_another_choice_is_left_alone(model):
    network = model.frozen.module
    network.set_attn_implementation("eager")
    assert not frozen_attention.use_fast_attention(network)
    assert network.config._attn_implementation == "eager"
