"""Claims about `auto`: bfloat16 only where the hardware multiplies it."""

import logging

import pytest
import torch

from espnet2_slit.common import precision as owner
from espnet2_slit.common.precision import autocast, choose_precision, has_bfloat16

HARDWARE = {  # AVX-512 with bfloat16, AMX -> what auto is
    (False, False): "float32",
    (True, False): "bfloat16",
    (False, True): "bfloat16",
}


@pytest.fixture(params=HARDWARE, ids=["none", "avx512_bf16", "amx"])
def cpu(request, monkeypatch):
    """A CPU with these instructions; what auto is on it."""
    avx512, amx = request.param
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    owner._chosen.cache_clear()
    return HARDWARE[request.param]


def test_auto_is_what_the_cpu_has(cpu):
    assert has_bfloat16() == (cpu == "bfloat16")
    assert choose_precision("auto") == cpu


def test_what_is_named_is_taken_whatever_the_hardware(cpu):
    for name in ("float32", "bfloat16"):
        assert choose_precision(name) == name


def test_products_are_computed_in_what_was_chosen(cpu):
    one = torch.ones(2, 2)
    with autocast("auto"):
        assert str((one @ one).dtype) == f"torch.{cpu}"


def test_float32_leaves_an_outer_autocast_alone():
    one = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16), autocast("float32"):
        assert (one @ one).dtype == torch.bfloat16


def test_the_choice_is_logged_once(cpu, caplog):
    with caplog.at_level(logging.INFO, logger=owner.__name__):
        for _ in range(3):
            choose_precision("auto")
    said = [r.getMessage() for r in caplog.records if "auto is" in r.getMessage()]
    assert len(said) == 1 and f"auto is {cpu} here" in said[0]


@pytest.mark.parametrize("fast", [False, True])
def test_auto_is_what_the_gpu_has(monkeypatch, fast):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = []

    def supported(including_emulation=True):
        asked.append(including_emulation)
        return fast

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_precision("auto", "cuda:0") == ("bfloat16" if fast else "float32")
    assert asked == [False]


def test_without_a_gpu_nothing_is_promised_for_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_precision("auto", "cuda") == "float32"


def test_another_torch_without_these_questions_means_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert choose_precision("auto") == "float32"


def test_an_unknown_name_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="dtype: expected one of auto, .*'int8'"):
        choose_precision("int8", option="dtype")


def test_saying_it_does_not_set_up_logging(cpu, monkeypatch):
    """ESPnet sets the root logger up later, and only where nobody has before."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    choose_precision("auto")
    assert root.handlers == []
