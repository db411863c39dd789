"""A small system with random weights, as training would have left it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml

from espnet2_slit.inference.system import link
from espnet2_slit.task import SLITTask

RATE = 16000
SHORT = {"max_new_tokens": 6, "num_beams": 2}
RERANKED = {"num_beams": 4, "max_new_tokens": 8, "rerank": 4}
TEXTS = [
    "a dog barks twice",
    "a bell rings while water flows in the background",
    "loud rain falls on a roof",
    "birds chirp",
    "an engine starts, runs, and stops; someone laughs",
]
QFORMER = (
    "{width: 16, layers: 3, heads: 2, feed_forward: 32, num_queries: 3,"
    " max_text_length: 64, dropout: 0.0}"
)


def experiment(folder, parts, stage, language_model=None, seed=0, **options):
    """config.yaml and valid.loss.best.pth of an untrained model of one stage."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    command = [
        "--model", stage,
        "--output_dir", str(folder),
        "--qformer_tokenizer", str(parts.tokenizer),
        "--qformer_conf", QFORMER,
        "--audio_encoder", "beats",
        "--audio_encoder_conf", f"path={parts.beats}",
    ]  # fmt: skip
    if stage == "representation":
        command += ["--model_conf", "joint_width=8"]
    else:
        command += ["--language_model", str(language_model or parts.t5)]
    if stage == "instruction":
        command += ["--preprocessor_conf", "max_prompt_length=48"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        args = SLITTask.get_parser().parse_args(command)
        model = SLITTask.build_model(args)
        for name, weight in model.named_parameters():
            # Weights from 0.02-normal would make all clips alike.
            if (
                weight.requires_grad
                and "norm" not in name
                and "temperature" not in name
            ):
                std = 3.0 if name.startswith("language_projection") else 0.3
                torch.nn.init.normal_(weight, std=std)
    with open(folder / "config.yaml", "w") as stream:
        yaml.safe_dump(json.loads(json.dumps(vars(args))), stream)
    torch.save(model.state_dict(), folder / "valid.loss.best.pth")
    return folder


def system(folder, parts, **options):
    """A representation and an instruction experiment, linked; the latter's folder."""
    folder = Path(folder)
    one = experiment(folder / "tiny_representation", parts, "representation")
    other = experiment(
        folder / "tiny_instruction", parts, "instruction", parts.llama, **options
    )
    link(other, [one, other])
    return other
