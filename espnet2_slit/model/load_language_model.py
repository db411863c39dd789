"""Loads a frozen language model and its tokenizer, from a folder or the Hub.

Owns which class fits a configuration, number formats and quantization, and that no
weight is missing. What the model computes is in `language_model`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from espnet2_slit.common.identity import weights_folder
from espnet2_slit.common.precision import (
    PRECISIONS,
    choose_precision,
    default_device,
)
from espnet2_slit.data.prompt_encoder import load_prompt_encoder
from espnet2_slit.model.language_model import LanguageModel

DTYPES = (*PRECISIONS, "float16")


def load_language_model(
    path: str | Path,
    dtype: str = "float32",
    revision: str | None = None,
    lora: dict | None = None,
    load_in_bits: int | None = None,
    trust_remote_code: bool = False,
    use_chat_template: bool | str = "auto",
    layout: dict | None = None,
) -> LanguageModel:
    """Load a language model and its tokenizer, frozen.

    Args:
        path: folder of `save_pretrained`, or a name on the Hugging Face Hub. Its
            configuration decides whether it is sequence-to-sequence or causal.
        dtype: of the weights: float32, bfloat16 or float16; "auto" is bfloat16 where
            the hardware has it, else float32. The loss is in float32.
        revision: branch, tag or commit on the Hub.
        lora: keywords of `peft.LoraConfig` (r, lora_alpha, target_modules, ...).
        load_in_bits: 8 or 4 with bitsandbytes, on the current CUDA device.
        trust_remote_code: run code that comes with the model.
        use_chat_template: "auto" (if the tokenizer has one), True or False.
        layout: see `PromptEncoder`; None: what the tokenizer puts around texts.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: weights are missing, or tokenizer and model disagree.
        ImportError: PEFT or bitsandbytes is needed and not installed.
    """
    import transformers

    dtype = choose_precision(dtype, default_device(), DTYPES, option="dtype")
    hub = dict(revision=revision, trust_remote_code=trust_remote_code)
    config = transformers.AutoConfig.from_pretrained(path, **hub)
    text = load_prompt_encoder(
        path, use_chat_template=use_chat_template, layout=layout, **hub
    )
    if config.is_encoder_decoder:
        model_class = transformers.AutoModelForSeq2SeqLM
    else:
        model_class = transformers.AutoModelForCausalLM
    quantization = {} if load_in_bits is None else _quantization(load_in_bits, dtype)
    model, report = model_class.from_pretrained(
        path,
        config=config,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
        **quantization,
        **hub,
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} weights of {type(model).__name__} are not in its "
            f"files, so they would stay random: {', '.join(missing[:8])}. Give the "
            "folder of a complete language model."
        )
    return LanguageModel(
        model,
        text,
        path=path,
        revision=revision,
        weights=weights_folder(path, revision),
        lora=lora,
        load_in_bits=load_in_bits,
    )


def _quantization(bits: int, dtype: str) -> dict:
    """Keywords of from_pretrained for 8- or 4-bit weights."""
    if bits not in (4, 8):
        raise ValueError(f"load_in_bits: expected 4, 8 or null, found {bits!r}")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"load_in_bits: {bits} needs bitsandbytes, which is not installed: "
            "pip install 'espnet2_slit[quantize]'"
        ) from error
    if not torch.cuda.is_available():
        raise ValueError(
            f"load_in_bits: {bits} needs a CUDA device, found none. Leave it out."
        )
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_8bit=bits == 8,
        load_in_4bit=bits == 4,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        bnb_4bit_quant_type="nf4",
    )
    device = torch.cuda.current_device()
    return dict(quantization_config=config, device_map={"": device})
