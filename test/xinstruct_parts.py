"""The golden file's model as a user has it: .pth, folders of Vicuna and of BERT."""

from __future__ import annotations

import json
from math import gcd
from pathlib import Path
from types import SimpleNamespace

import tiny
import torch
from golden_file import Golden
from safetensors.torch import save_file

GOLDEN = ("XINSTRUCT_GOLDEN", "xinstruct_audio_small.npz")


def qformer_file(golden: Golden, file: Path, name: str = "audio_qformer.pth") -> Path:
    """As LAVIS' runner writes it, optimizer and all."""
    content = {
        "model": golden.below("checkpoint"),
        "optimizer": {"state": {}, "param_groups": []},
        "config": {"run": {"seed": 42}},
        "scaler": None,
        "epoch": 3,
    }
    torch.save(content, file / name)
    return file / name


def llama_folder(golden: Golden, folder: Path) -> Path:
    folder.mkdir()
    model = golden["tokenizer/llama.model"].numpy().tobytes()
    (folder / "tokenizer.model").write_bytes(model)
    special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    config = {"model_type": "llama", **golden["llama_config.json"]}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {n: t.contiguous() for n, t in golden.below("llama").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def bert_folder(golden: Golden, folder: Path) -> Path:
    folder.mkdir()
    (folder / "vocab.txt").write_text(
        "\n".join(golden["tokenizer/bert_vocab"]) + "\n", encoding="utf-8"
    )
    conf = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(conf))
    return folder


def beats_file(width: int, folder: Path) -> Path:
    """A random BEATs with frames of that width."""
    return tiny.beats_checkpoint(
        folder,
        encoder_embed_dim=width,
        encoder_attention_heads=gcd(width, 4),
        conv_pos_groups=gcd(width, 4),
    )


def parts(folder: Path, golden: Golden) -> SimpleNamespace:
    return SimpleNamespace(
        golden=golden,
        qformer=qformer_file(golden, folder),
        improved=qformer_file(golden, folder, "audio_qformer_improved.pth"),
        language_model=llama_folder(golden, folder / "vicuna"),
        qformer_tokenizer=bert_folder(golden, folder / "bert"),
        audio_encoder=beats_file(golden["in/frames"].shape[-1], folder / "beats"),
        heads=golden["qformer_config.json"]["num_attention_heads"],
    )
