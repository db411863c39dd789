"""Weights of two passes: gradients are the sums that PyTorch adds one by one."""

import pytest
import torch
from torch import nn

from espnet2_slit.model.qformer import QFormer
from espnet2_slit.model.shared_weights import two_passes


class Block(nn.Module):
    """Both passes use `both` and the norm, the first alone `once`; nothing `idle`."""

    def __init__(self):
        super().__init__()
        self.both, self.once, self.idle = (nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x, first):
        x = self.norm(self.both(self.frozen(x)))
        return self.once(x) if first else x


def step(block, first, second, x):
    with first:
        found = block(x, True)
    with second:
        found = block(found.tanh(), False) + found
    found.float().square().sum().backward()
    return {name: weight.grad for name, weight in block.named_parameters()}


def two_blocks():
    torch.manual_seed(0)
    block, other = Block(), Block()
    other.load_state_dict(block.state_dict())
    return block, other, torch.randn(5, 4)


def none():
    return two_passes([], torch.float32)


def test_gradients_are_those_without_it():
    plain, shared, x = two_blocks()
    expected = step(plain, *none(), x)
    found = step(shared, *two_passes(shared.modules(), torch.float32), x)
    assert expected["both.weight"].abs().max() > 0 and expected["idle.weight"] is None
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        if grad is None:
            assert found[name] is None
        else:
            torch.testing.assert_close(found[name], grad)


def test_products_in_half_precision_have_gradients_in_float32():
    plain, shared, x = two_blocks()
    with torch.autocast("cpu", torch.bfloat16):
        expected = step(plain, *none(), x)
        contexts = two_passes(shared.modules(), torch.bfloat16)
        with contexts[0]:
            assert shared.both.weight.dtype == torch.bfloat16
            assert shared.norm.weight.dtype == torch.float32
        contexts = two_passes(shared.modules(), torch.bfloat16)
        found = step(shared, *contexts, x)
    for name, grad in expected.items():
        if grad is not None:
            assert found[name].dtype == torch.float32
            torch.testing.assert_close(found[name], grad, rtol=0.02, atol=0.02)


def test_parameters_are_back_after_a_pass_and_after_an_error():
    block, _, x = two_blocks()
    own = dict(block.named_parameters())
    first, second = two_passes(block.modules(), torch.bfloat16)
    with first:
        assert block.both.weight is not own["both.weight"]
        assert block.frozen.weight is own["frozen.weight"]
    with pytest.raises(RuntimeError, match="shape"):
        with second:
            block(x[:, :3], False)
    assert all(block.get_parameter(name) is weight for name, weight in own.items())


def test_queries_share_weights_only_where_kernels_are_waited_for(monkeypatch):
    def shares(**options):
        options = {"width": 8, "layers": 2, "heads": 2, "feed_forward": 8, **options}
        bert = QFormer(8, 9, bos_id=1, **options)
        weight = bert.layers[0].self_attention.output.weight
        with bert.two_passes()[0]:
            inside = bert.layers[0].self_attention.output.weight
            # frames are projected before, by the parameters themselves
            key = bert.layers[0].cross_attention.key
            assert key.weight is dict(key.named_parameters())["weight"]
        return inside is not weight

    assert not shares()  # on a CPU
    monkeypatch.setattr("espnet2_slit.model.qformer.is_on_host", lambda tensor: False)
    assert shares()
    assert not shares(gradient_checkpointing=True)
    with torch.no_grad():
        assert not shares()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert not shares()  # other ranks wait for each gradient as it comes
