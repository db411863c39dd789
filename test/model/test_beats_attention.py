"""BEATs' attention in fewer passes: outputs and gradients of ESPnet's own."""

import copy

import pytest
import torch

from espnet2_slit.common.compat import BeatsEncoder
from espnet2_slit.model.audio_encoder.beats_attention import use_lean_attention

CONFIG = {
    "input_patch_size": 16,
    "embed_dim": 16,
    "conv_bias": False,
    "encoder_layers": 3,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 3,
    "layer_norm_first": False,
    "deep_norm": True,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "conv_pos": 8,
    "conv_pos_groups": 3,
    "relative_position_embedding": True,
    "num_buckets": 12,
    "max_distance": 40,
    "gru_rel_pos": True,
    "finetuned_model": False,
}


def pair(**changed):
    """ESPnet's encoder with strong biases of places, and another that attends fast."""
    modules = []
    for _ in range(2):
        torch.manual_seed(0)
        config = {**CONFIG, **changed}
        module = BeatsEncoder(input_size=1, beats_config=config).eval()
        for name, weight in module.named_parameters():
            if "relative_attention_bias" in name or "grep" in name:
                torch.nn.init.normal_(weight, std=2.0)
        torch.nn.utils.remove_weight_norm(module.encoder.pos_conv[0])
        modules.append(module)
    use_lean_attention(modules[1])
    return modules


CONFIGURATIONS = {
    "as BEATs": {},
    "without gates": {"gru_rel_pos": False},
    "without places": {"relative_position_embedding": False, "gru_rel_pos": False},
    "norms first": {"layer_norm_first": True, "deep_norm": False},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("padded", [False, True])
def test_outputs_and_gradients_are_those_of_espnets_attention(name, padded):
    module, fast = pair(**CONFIGURATIONS[name])
    features = torch.randn(4, 17, 24, generator=torch.manual_seed(1))
    padding = None
    if padded:
        padding = torch.arange(17)[None] >= torch.tensor([17, 9, 16, 1])[:, None]
    results = []
    for encoder in (module, fast):
        inputs = features.clone().requires_grad_()
        output, _ = encoder.encoder(inputs * 1.0, padding_mask=padding)
        if padded:
            output = output.masked_fill(padding[..., None], 0.0)
        output.square().sum().backward()
        grads = {n: p.grad for n, p in encoder.encoder.named_parameters()}
        results.append({"output": output, "input": inputs.grad, **grads})
    expected, found = results
    assert expected["layers.0.self_attn.q_proj.weight"].abs().max() > 0
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_as_near_to_float32_as_espnets():
    module, fast = pair()
    features = torch.randn(8, 60, 24, generator=torch.manual_seed(1))
    with torch.no_grad():
        exact = module.encoder(features.clone())[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            espnets, ours = (e.encoder(features.clone())[0] for e in (module, fast))
    errors = [(x - exact).square().mean().sqrt() for x in (espnets, ours)]
    assert 0 < errors[1] < 1.2 * errors[0]


def test_a_copy_attends_with_its_own_weights():
    _, fast = pair()
    copied = copy.deepcopy(fast)
    for weight in fast.parameters():
        weight.data.zero_()
    features = torch.randn(2, 9, 24, generator=torch.manual_seed(1))
    assert copied.encoder.layers[0].self_attn.forward.__self__ is not (
        fast.encoder.layers[0].self_attn.forward.__self__
    )
    assert copied.encoder(features)[0].abs().max() > 0
