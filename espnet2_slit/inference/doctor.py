"""What works on this machine, what is missing, and the command that adds it.

Owns the list of things worth looking at; prints nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass

from espnet2_slit.common.compat import is_installed

OK, MISSING, OPTIONAL = "ok", "missing", "optional"
# module, distribution, what it is for; without these nothing runs
NEEDED = (
    ("espnet2", "espnet", "the host: training, data loading, model zoo"),
    ("torch", "torch", "computation"),
    ("torchaudio", "torchaudio", "imported by ESPnet"),
    ("transformers", "transformers", "language models, tokenizers, audio encoders"),
    ("sentencepiece", "sentencepiece", "tokenizers of T5 and LLaMA"),
    ("safetensors", "safetensors", "weights"),
    ("soundfile", "soundfile", "reading audio"),
    ("soxr", "soxr", "resampling"),
    ("sklearn", "scikit-learn", "average precision"),
    ("matplotlib", "matplotlib", "plots of the report"),
    ("yaml", "PyYAML", "configurations"),
)
# module (of a distribution of the same name), what it is for
EXTRAS = (
    ("tensorboard", "learning curves while training"),
    ("peft", "LoRA adapters in the language model"),
    ("bitsandbytes", "language models in 8 or 4 bits, on a GPU"),
    ("pycocoevalcap", "METEOR, SPICE, the reference tokenizer"),
    ("espnet_model_zoo", "models of ESPnet's zoo"),
    ("huggingface_hub", "models and upload, Hugging Face"),
    ("gradio", "slit demo"),
    ("shtab", "slit completion: commands and options by the Tab key"),
    ("mpi4py", "training on several nodes of SGE or PBS (Slurm and ssh need none)"),
    ("wandb", "learning curves on W&B"),
    ("mteb", "the benchmark of embeddings"),
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: of it.
        status: "ok", "missing" (needed) or "optional" (missing, and most things work).
        found: what is there.
        remedy: command that adds it; "" where nothing is to be done.
    """

    name: str
    status: str
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Look at everything; what cannot be imported is a finding, not an error."""
    checks = [_python(), *(_needed(*row) for row in NEEDED)]
    checks += [
        _machine(),
        _gpu(),
        _precision(),
        _ffmpeg(),
        _java(),
        *_caption_metrics(),
    ]
    checks += [_extra(*row) for row in EXTRAS]
    return checks


def _python() -> Check:
    version = platform.python_version()
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    remedy = "" if good else "tools/setup_env.sh (makes one of Python 3.11 to 3.13)"
    return Check("Python", OK if good else MISSING, version, remedy)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _needed(module: str, distribution: str, purpose: str) -> Check:
    remedy = f"python -m pip install {distribution}"
    if distribution == "espnet":
        # 202511 pins an old setuptools; the set-up script knows the way round it.
        remedy = "tools/setup_env.sh"
    if not is_installed(module):
        return Check(distribution, MISSING, f"not installed ({purpose})", remedy)
    try:
        importlib.import_module(module)
    except Exception as error:  # any: a broken package raises what it likes
        line = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "tools/setup_env.sh --prefix DIR (makes a fresh environment)"
        return Check(
            distribution, MISSING, f"is installed, import fails: {line}", remedy
        )
    return Check(distribution, OK, _version(distribution))


def _machine() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    found = f"{cores or os.cpu_count()} CPU cores"
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found += f", {memory / 2**30:.0f} GiB of memory"
    except (ValueError, OSError):
        pass
    free = shutil.disk_usage(os.getcwd()).free
    return Check("machine", OK, f"{found}, {free / 2**30:.0f} GiB free on this disk")


def _gpu() -> Check:
    if not is_installed("torch"):
        return Check("GPU", OPTIONAL, "torch is not installed")
    import torch

    if torch.cuda.is_available():
        names = [
            f"{torch.cuda.get_device_name(i)}"
            f" ({torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB)"
            for i in range(torch.cuda.device_count())
        ]
        return Check("GPU", OK, ", ".join(names))
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return Check(
            "GPU",
            OPTIONAL,
            f"torch {torch.__version__} is a CPU build; the mini recipe needs no GPU",
            "install torch's CUDA build for your driver (pytorch.org)",
        )
    return Check("GPU", OPTIONAL, "torch finds none", "nvidia-smi (shows the driver)")


def _precision() -> Check:
    if not is_installed("torch"):
        return Check("precision", OPTIONAL, "torch is not installed")
    from espnet2_slit.common.precision import (
        choose_precision,
        default_device,
        describe,
    )

    device = default_device()
    chosen = choose_precision("auto", device)
    return Check("precision", OK, f"auto is {chosen}: {describe(device)}")


def _ffmpeg() -> Check:
    from espnet2_slit.data import other_decoders

    found = other_decoders.available()
    if found is None:
        return Check(
            "ffmpeg",
            OPTIONAL,
            "not found: m4a, mp4, webm and their like are named, not read",
            "apt install ffmpeg, or: python -m pip install av",
        )
    return Check("ffmpeg", OK, f"{found} reads m4a, mp4, webm and their like")


def _java() -> Check:
    from espnet2_slit.scoring.metrics.tokenization import java_version

    version = java_version()
    if version is None:
        return Check(
            "Java",
            OPTIONAL,
            "not found: captions are tokenised in Python, no METEOR, no SPICE",
            "install a Java runtime, e.g. apt install default-jre-headless",
        )
    return Check("Java", OK, f"version {version}")


def _caption_metrics() -> list[Check]:
    from espnet2_slit.scoring.metrics.java_scorers import (
        DOWNLOAD_CORENLP,
        MeteorScorer,
        spice_needs,
    )

    checks = []
    for name, needs in (("METEOR", MeteorScorer.needs()), ("SPICE", spice_needs())):
        if not needs:
            checks.append(Check(name, OK, "can be computed"))
            continue
        remedy = "python -m pip install pycocoevalcap, and Java"
        if DOWNLOAD_CORENLP in needs:
            remedy = DOWNLOAD_CORENLP
            needs = "the CoreNLP models (0.4 GB) and Java 8 or 11"
        else:
            needs = "pycocoevalcap and Java"
        checks.append(Check(name, OPTIONAL, f"needs {needs}", remedy))
    return checks


def _extra(module: str, purpose: str) -> Check:
    if is_installed(module):
        return Check(module, OK, f"{_version(module)} ({purpose})")
    remedy = f"python -m pip install {module}"
    return Check(module, OPTIONAL, f"not installed ({purpose})", remedy)
