"""Frozen modules: what training may do around them, and what it may not do to them."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from espnet2_slit.common.identity import fingerprint
from espnet2_slit.model.frozen import Frozen


class Whole(nn.Module):
    """A trained layer before a frozen one."""

    def __init__(self, dtype=None):
        super().__init__()
        self.trained = nn.Linear(4, 4)
        held = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
        self.frozen = Frozen(held, dtype=dtype)

    def forward(self, x):
        return self.frozen(self.trained(x))


def test_parameters_and_state_dict_hold_trained_weights_only():
    model = Whole()
    names = {"trained.weight", "trained.bias"}
    assert set(model.state_dict()) == names
    assert {name for name, _ in model.named_parameters()} == names
    assert not list(model.frozen.buffers())
    model.load_state_dict(model.state_dict(), strict=True)


def test_eval_mode_survives_train():
    model = Whole()
    for _ in range(2):
        model.train()
        assert model.training and not model.frozen.training
        assert not any(module.training for module in model.frozen.module.modules())
        model.eval()


def test_train_mode_changes_no_output_and_no_statistics():
    model = Whole()
    x = torch.randn(3, 4)
    before = copy.deepcopy(model.frozen.module.state_dict())
    expected = model.eval()(x)
    assert torch.equal(model.train()(x), expected)
    after = model.frozen.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "move",
    [
        lambda m: m.to(dtype=torch.float64),
        lambda m: m.to(dtype=torch.float16, device="cpu"),  # as ESPnet's main_worker
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: m.to(torch.device("cpu"), torch.float64),
    ],
)
def test_own_dtype_survives_casts_of_the_model(move):
    model = move(Whole(dtype=torch.bfloat16))
    dtypes = {p.dtype for p in model.frozen.module.parameters()}
    assert dtypes == {torch.bfloat16} == {model.frozen.dtype}
    assert model.trained.weight.dtype != torch.float32


def test_follows_the_device_of_the_model():
    model = Whole(dtype=torch.bfloat16).to("meta")
    held = model.frozen.module
    assert {t.device.type for t in (*held.parameters(), *held.buffers())} == {"meta"}
    assert model.frozen.device.type == "meta"
    assert held[0].weight.dtype == torch.bfloat16


def test_quantized_module_is_not_moved_but_explained():
    model = Whole()
    model.frozen.module.is_quantized = True
    model.to("cpu")  # where it is: nothing to do
    with pytest.raises(RuntimeError, match="load_in_bits"):
        model.to("meta")


def test_gradients_pass_through_and_stop_at_frozen_weights():
    model = Whole()
    model(torch.randn(3, 4)).sum().backward()
    assert model.trained.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.frozen.module.parameters())


def test_optimizer_step_leaves_frozen_weights():
    model = Whole()
    before = fingerprint(model.frozen.module)
    trained = model.trained.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    assert fingerprint(model.frozen.module) == before
    assert not torch.equal(model.trained.weight, trained)


def test_checkpoint_size_does_not_grow_with_the_frozen_module():
    sizes = []
    for width in (4, 400):
        model = nn.ModuleDict(
            {"trained": nn.Linear(4, 4), "frozen": Frozen(nn.Linear(width, width))}
        )
        stream = io.BytesIO()
        torch.save(model.state_dict(), stream)
        sizes.append(len(stream.getvalue()))
    assert sizes[0] == sizes[1]


def test_deepcopy_is_independent():
    model = Whole()
    twin = copy.deepcopy(model)
    x = torch.randn(3, 4)
    assert torch.equal(model(x), twin(x))
    assert twin.frozen.module is not model.frozen.module
    twin.to("meta")
    assert model.frozen.device.type == "cpu"


def test_pickle_is_refused_with_what_to_do_instead():
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(Whole())


def test_module_without_tensors_can_be_held():
    frozen = Frozen(nn.ReLU()).to(dtype=torch.float64).train()
    assert frozen(torch.tensor(-1.0)) == 0
    assert frozen.device.type == "cpu" and frozen.dtype == torch.float32


def test_distributed_data_parallel_sees_trained_weights_only(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(Whole())
        assert len(list(wrapped.parameters())) == 2
        wrapped(torch.randn(3, 4)).sum().backward()
        assert wrapped.module.trained.weight.grad is not None
    finally:
        torch.distributed.destroy_process_group()
