"""LoRA adapters, by PEFT, in a frozen language model. Imports nothing of ours."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import nn


def add_lora(model: nn.Module, lora: dict) -> dict[str, nn.Parameter]:
    """Put LoRA adapters into the model; returns their parameters, in float32."""
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "language_model_conf.lora needs PEFT, which is not installed: "
            "pip install 'espnet2_slit[lora]'"
        ) from error
    before = {id(parameter) for parameter in model.parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)
        peft.inject_adapter_in_model(peft.LoraConfig(**lora), model)
    added = {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in before
    }
    for parameter in added.values():
        parameter.data = parameter.data.float()
    logging.info(
        "LoRA: %d trainable parameters in %d tensors",
        sum(parameter.numel() for parameter in added.values()),
        len(added),
    )
    return added


def merge_lora(model: nn.Module) -> None:
    """Add the adapters to the weights that they adapt: products of them cost no more.

    Half or quantised weights, which the sum would be rounded to, stay as they are.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            if module.get_base_layer().weight.dtype == torch.float32:
                module.merge()
