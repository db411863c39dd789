"""Claims about identities: the weights decide, not where they lie."""

import copy

import pytest
import torch
from torch import nn

from espnet2_slit.common.identity import (
    NOT_IDENTITY,
    comes_from_hub,
    fingerprint,
    identity_differences,
)


def test_fingerprint_of_a_file_follows_its_content(tmp_path):
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    a.write_bytes(b"weights"), b.write_bytes(b"weights")
    first = fingerprint(a)
    assert first == fingerprint(b) and len(first) == 64
    a.write_bytes(b"weighty")
    assert fingerprint(a) != first


def test_fingerprint_of_a_folder_reads_weights_and_not_configs(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = fingerprint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"same weights, older format")
    assert fingerprint(tmp_path) == first
    (tmp_path / "model-2.safetensors").write_bytes(b"two")
    assert fingerprint(tmp_path) != first


def test_fingerprint_of_a_module_sees_a_single_weight_and_the_dtype():
    module = nn.Linear(3, 3)
    first = fingerprint(module)
    assert fingerprint(copy.deepcopy(module)) == first
    assert fingerprint(copy.deepcopy(module).bfloat16()) != first
    with torch.no_grad():
        module.weight[2, 1] += 1e-3
    assert fingerprint(module) != first


def test_fingerprint_errors_name_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fingerprint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        fingerprint(tmp_path)


def test_differences_are_named_with_both_values():
    expected = {"kind": "beats", "layer": 9, "path": "a", "local": True}
    found = {"kind": "beats", "layer": 8, "path": "b", "width": 4}
    assert identity_differences(expected, found) == ["layer: expected 9, found 8"]
    assert identity_differences({"kind": "beats"}, found) == []
    assert identity_differences({"width": 5, "new": 1}, found) == [
        "width: expected 5, found 4",
        "new: expected 1, found None",
    ]


@pytest.mark.parametrize("name", NOT_IDENTITY)
def test_where_and_how_weights_are_held_is_free(name):
    assert identity_differences({name: "one"}, {name: "other"}) == []


@pytest.mark.parametrize(
    "name, expected",
    [
        ("google/flan-t5-base", True),
        ("gpt2", True),
        ("models/t5-small", True),  # of an old training: it cannot be told apart
        ("a/b/c", False),
        ("/a", False),
        ("./t5", False),
        ("~/t5", False),
        ("owner/model.pt", False),
        ("downloads/t5", False),
        ("", False),
    ],
)
def test_what_may_be_asked_from_the_hub(name, expected):
    assert comes_from_hub(name) == expected
    assert comes_from_hub(name, {"path": name}) == expected
    assert not comes_from_hub(name, {"local": True})
