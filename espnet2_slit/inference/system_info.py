"""What a system is, read from its files alone: no model is built, nothing downloaded.

Owns the summary of `slit info`: parts, training, frozen parts, licence notes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from espnet2_slit.common.identity import comes_from_hub
from espnet2_slit.common.weights import read_weights
from espnet2_slit.inference.system import SYSTEM_FILE, open_system, read_config, resolve

TRAINING = ("optim", "max_epoch", "num_iters_per_epoch", "batch_size", "accum_grad",
            "scheduler", "seed", "use_amp")  # fmt: skip
SIZES = ("width", "layers", "heads", "feed_forward", "num_queries")


def licence_note(name: str) -> str:
    """Where the licence of a frozen part is said: by its makers, not here."""
    if comes_from_hub(str(name)):
        return f"see https://huggingface.co/{name}"
    return "not known here; ask its makers"


def describe_source(source, cache_dir=None, revision=None) -> dict:
    """Plain values about a system.

    Args:
        source: as for `SLIT.from_pretrained`.
        cache_dir: where archives are unpacked.
        revision: of a Hugging Face repository.

    Returns:
        {"folder", "licence", "can", "parts": {name: facts}, "frozen": {name: facts},
        "results": paths of RESULTS.md}.

    Raises:
        PackingError: nothing usable at `source`.
        WeightsError: weights that cannot be read.
    """
    system = open_system(source, cache_dir, revision)
    parts, frozen = {}, {}
    for name, (config_file, model_file) in system.parts.items():
        config = read_config(config_file)
        parts[name] = _part(config, model_file)
        for part, facts in _frozen(config, config_file).items():
            frozen.setdefault(part, facts)
    can = []
    if "generator" in parts:
        can += ["caption", "ask", "classify"]
    if "representation" in parts:
        can += ["embed", "index", "search"] + ["classify"] * ("classify" not in can)
    results = [system.root / "RESULTS.md", *sorted(system.root.glob("*/RESULTS.md"))]
    return {
        "folder": str(system.root),
        "licence": _licence(system.root),
        "can": can,
        "parts": parts,
        "frozen": frozen,
        "results": [str(path) for path in results if path.is_file()],
    }


def _licence(root: Path) -> str:
    import json

    file = root / SYSTEM_FILE
    stated = ""
    if file.is_file():
        stated = json.loads(file.read_text(encoding="utf-8")).get("licence", "")
    return stated or "not stated by who made it"


def _part(config: dict, model_file: Path) -> dict:
    weights = read_weights(model_file)
    qformer = config.get("qformer_conf") or {}
    training = {key: config[key] for key in TRAINING if config.get(key) is not None}
    if isinstance(config.get("optim_conf"), dict) and "lr" in config["optim_conf"]:
        training["lr"] = config["optim_conf"]["lr"]
    return {
        "model": config["model"],
        "model_file": str(model_file),
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "qformer": {key: qformer[key] for key in SIZES if key in qformer},
        "trained_on": sorted(_sets(config, "train")),
        "validated_on": sorted(_sets(config, "valid")),
        "initialized_from": list(
            config.get("initialized_from") or config.get("init_param") or []
        ),
        "training": training,
    }


def _sets(config: dict, split: str) -> Iterator[str]:
    """Names of the data directories of a training."""
    rows = config.get(f"{split}_data_path_and_name_and_type") or []
    seen = set()
    for row in rows:
        folder = Path(row[0]).parent.name
        if folder and folder not in seen:
            seen.add(folder)
            yield folder


def _frozen(config: dict, config_file: Path) -> dict:
    conf = config.get("audio_encoder_conf") or {}
    named = {
        "audio_encoder": conf.get("path"),
        "language_model": config.get("language_model"),
        "qformer_tokenizer": config.get("qformer_tokenizer"),
    }
    found = {}
    for part, value in named.items():
        identity = config.get(f"{part}_identity") or {}
        value = value or identity.get("path")
        if not value:
            continue
        place = resolve(str(value), config_file)
        here = Path(place).exists()
        if not here and comes_from_hub(str(value), identity):
            where = "downloaded from Hugging Face when needed"
        else:
            where = place if here else "not here: pass its path"
        found[part] = {
            "name": str(value),
            "kind": identity.get("kind", ""),
            "where": where,
            "sha256": identity.get("fingerprint", ""),
            "licence": licence_note(value),
        }
    return found
