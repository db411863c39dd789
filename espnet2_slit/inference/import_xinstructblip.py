"""X-InstructBLIP's audio system as an experiment folder like any other.

Owns what its makers' code adds to the weights: which encoder windows, which ids around
audio and prompt, how it is asked. Weights are mapped by `qformer_weights`; nothing of
the released file is unpickled, and every name in it is accounted for.

Source: salesforce/LAVIS@506965b (arXiv 2311.18799), blip2_vicuna_xinstruct.py,
    audio_processors.py and projects/xinstruct_blip/eval. Differs: a clip's instruction
    is read beside its own windows in any batch, a clip above 10.24 s is read whole, the
    words of training and of use stand in one order, and no token is added to the
    language model's.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from espnet2_slit.common.files import atomic, sha256, write_json, write_text
from espnet2_slit.inference.system import link
from espnet2_slit.model.qformer_weights import (
    load_pretrained_qformer,
    our_names,
    qformer_sizes,
    read_weights,
)

MODEL_FILE = "model.pth"
# 512 filterbank frames of 25 ms each 10 ms, or 32 patches of 16: 256 frames, 5.12 s
WINDOW_S, QUERY_WINDOW_S = 5.135, 5.12
TRAINED_WINDOWS = 2  # windows of every clip in its training
MAX_WINDOWS = 32  # 164 s: 1,024 of the 2,048 positions of Vicuna v1.1
# What torch's modules have beside weights, and LAVIS' runner writes with them.
BUFFERS = ("*.position_ids", "llm_model.*.rotary_emb.inv_freq")
PROJECTION = "audio_llm_proj."
# What the sizes are read off; the rest is compared with them.
_BERT = "audio_Qformer.bert."
SHAPES_READ = (
    "audio_query_tokens",
    "audio_ln.weight",
    f"{PROJECTION}weight",
    f"{_BERT}embeddings.word_embeddings.weight",
    f"{_BERT}embeddings.position_embeddings.weight",
    f"{_BERT}embeddings.LayerNorm.weight",
    f"{_BERT}encoder.layer.0.crossattention.self.key.weight",
    f"{_BERT}encoder.layer.0.intermediate_query.dense.weight",
)
LAYOUTS = ("plain", "chat")
CUES = {"plain": " audio: ", "chat": "audio: "}
CHAT_PREFIX, CHAT_POSTFIX = "USER: ", "\nASSISTANT:"
# The evaluation recipes of LAVIS. Its lengths count a first token that is not written.
INFERENCE: dict[str, dict[str, Any]] = {
    "caption": {
        "instruction": "a short description",
        "options": {
            "num_beams": 5,
            "max_new_tokens": 79,
            "min_new_tokens": 9,
            "repetition_penalty": 1.15,
        },
    },
    "question_answering": {
        "instruction": "Question: {question} Answer:",
        "plain_question": True,
        "options": {
            "num_beams": 5,
            "max_new_tokens": 9,
            "min_new_tokens": 0,
            "length_penalty": -1.0,
            "repetition_penalty": 1.5,
        },
    },
    "classification": {
        "instruction": "describe the audio",
        "label": "an audio of {}",
        "normalize": "sum",
        "end": False,
    },
}


# To go on training: rate and weight decay of LAVIS, lengths for a corpus of thousands.
FINETUNING: dict[str, Any] = {
    "batch_type": "unsorted",
    "batch_size": 8,
    "shuffle_within_batch": True,
    "max_epoch": 3,
    "num_workers": 2,
    "seed": 0,
    "optim": "adamw",
    "optim_conf": {"lr": 1e-5, "weight_decay": 0.05, "betas": [0.9, 0.999]},
    "scheduler": "warmupcosine",
    "scheduler_conf": {"warmup_steps": 1000, "final_ratio": 0.0},
    "grad_clip": 5.0,
    "best_model_criterion": [["valid", "loss", "min"]],
    "keep_nbest_models": 1,
}


class ImportFault(ValueError):
    """Files that are no X-InstructBLIP audio system; says which, and what is wrong."""


@dataclass(frozen=True)
class ImportReport:
    """What became of the released file's tensors.

    Attributes:
        source: the file.
        sha256: of it.
        layout: "plain" or "chat".
        loaded: weights of ours that were filled.
        buffers: names of the file that are no weights.
        sizes: of the Q-Former.
        notes: weights that were changed on their way in.
    """

    source: str
    sha256: str
    layout: str
    loaded: int
    buffers: list[str]
    sizes: dict[str, Any]
    notes: list[str]


def import_xinstructblip(
    qformer: str | Path,
    audio_encoder: str | Path,
    language_model: str | Path,
    out: str | Path,
    qformer_tokenizer: str = "bert-base-uncased",
    layout: str = "auto",
    heads: int | None = None,
    dtype: str = "float16",
) -> ImportReport:
    """Make an experiment folder of released weights.

    Args:
        qformer: the released .pth: Q-Former, audio_ln, queries, projection.
        audio_encoder: BEATs checkpoint (iter3+, not fine-tuned, for the released ones).
        language_model: folder of Vicuna v1.1, with its tokenizer.model.
        out: experiment folder to make; new or empty.
        qformer_tokenizer: folder or hub name of bert-base-uncased.
        layout: ids around audio and prompt: "plain" as in LAVIS' evaluation recipes
            (audio_qformer.pth), "chat" as in its default model configuration
            (audio_qformer_improved.pth); "auto": chat if the file's name says improved.
        heads: attention heads of the Q-Former; None: width / 64, as BERT has.
        dtype: of the language model: float16 as in LAVIS, float32 or bfloat16.

    Returns:
        What was loaded; it lies in `out`/import.json, too.

    Raises:
        ImportFault: a weight is missing, unexpected or misshapen, parts do not fit each
            other, or `out` holds something.
        ValueError: a part that cannot be read.
    """
    from espnet2_slit.task import SLITTask

    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ImportFault(
            f"{out}: expected a new or empty folder, found files in it. Give another "
            "--out, or remove it."
        )
    if layout not in ("auto", *LAYOUTS):
        raise ImportFault(
            f"layout: expected auto, {' or '.join(LAYOUTS)}; found {layout!r}."
        )
    if layout == "auto":
        layout = "chat" if "improved" in Path(qformer).name else "plain"
    state = read_weights(qformer)
    _check_names(state, qformer)
    sizes = qformer_sizes(our_names(state, "audio")[1], heads)
    args = argparse.Namespace(
        model="instruction",
        model_conf={},
        audio_encoder="beats",
        audio_encoder_conf={
            "path": os.path.abspath(audio_encoder),
            "window_s": WINDOW_S,
            "fill_windows": TRAINED_WINDOWS,
            "max_windows": MAX_WINDOWS,
        },
        connector="qformer",
        connector_conf={},
        qformer_tokenizer=_absolute(qformer_tokenizer),
        qformer_conf={
            **{k: v for k, v in sizes.items() if k not in _BUILT},
            "max_windows": 1,  # no window positions: the released model has none
            "query_window_s": QUERY_WINDOW_S,
            "max_query_windows": MAX_WINDOWS,
        },
        language_model=os.path.abspath(language_model),
        language_model_conf={
            "dtype": dtype,
            "layout": layout_ids(language_model, layout),
        },
        preprocessor_conf={"max_prompt_length": min(128, sizes["max_text_length"])},
        inference_conf=INFERENCE,
        audio_encoder_identity=None,
        language_model_identity=None,
        qformer_tokenizer_identity=None,
        features="",
        qformer_init="",
        qformer_init_conf={},
        init_param=[],
        initialized_from=[os.path.abspath(qformer)],
    )
    model = SLITTask.build_model(args)
    _check_sizes(model, sizes, state, args)
    report = load_pretrained_qformer(
        model.qformer,
        qformer,
        modality="audio",
        language_projection=model.language_projection,
    )
    done = ImportReport(
        source=str(qformer),
        sha256=sha256(qformer),
        layout=layout,
        loaded=len(report.loaded),
        buffers=sorted(report.left),
        sizes={k: v for k, v in sizes.items() if not isinstance(v, bool)},
        notes=report.notes,
    )
    _write(out, model, args, done)
    return done


_BUILT = ("encoder_width", "vocab_size", "text_branch", "language_head")


def layout_ids(language_model: str | Path, layout: str) -> dict[str, Any]:
    """Fields of `prompt_encoder.Layout` as LAVIS' tokenizer would give them.

    SentencePiece itself is asked, since transformers 5 has other ids for texts that
    begin with a blank. LAVIS sets bos, eos and unk to </s>, so that each text which it
    tokenises by itself begins with that.

    Args:
        language_model: folder with tokenizer.model.
        layout: "plain" or "chat".

    Raises:
        ImportFault: no tokenizer.model there, or one without </s>.
    """
    import sentencepiece

    file = Path(language_model) / "tokenizer.model"
    if not file.is_file():
        raise ImportFault(
            f"language_model: expected {file}, found nothing. Give the folder of a "
            "Vicuna (or LLaMA) model with its SentencePiece file: it decides the ids "
            "around audio and prompt."
        )
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise ImportFault(
            f"{file}: expected a SentencePiece model, found {file.stat().st_size} bytes"
            " that cannot be read as one. Copy it again."
        ) from error
    begin = model.piece_to_id("</s>")
    if begin == model.unk_id():
        raise ImportFault(f"{file}: expected the piece </s>, found none.")
    cue, space = model.encode(CUES[layout]), model.encode(" ")
    if layout == "plain":
        return {"head": [begin, *cue], "before_prompt": [*space, begin]}
    head = [begin, *model.encode(CHAT_PREFIX), *cue]
    return {"head": head, "before_prompt": space, "after_prompt": CHAT_POSTFIX}


def _check_names(state: dict[str, torch.Tensor], source: str | Path) -> None:
    """See that the file has an audio Q-Former with its projection, and no more."""
    absent = [name for name in SHAPES_READ if name not in state]
    prefixes = ("audio_Qformer.", "audio_ln.", PROJECTION)
    strangers = [
        name
        for name in state
        if name != "audio_query_tokens"
        and not name.startswith(prefixes)
        and not any(fnmatch.fnmatch(name, pattern) for pattern in BUFFERS)
    ]
    if absent or strangers:
        raise ImportFault(
            f"{source}: expected the audio Q-Former of X-InstructBLIP. Missing: "
            f"{', '.join(absent) or 'nothing'}; unexpected: "
            f"{', '.join(sorted(strangers)[:8]) or 'nothing'}"
            + (f" and {len(strangers) - 8} more" if len(strangers) > 8 else "")
            + ". Give audio_qformer.pth or audio_qformer_improved.pth as published."
        )


def _check_sizes(model, sizes, state, args) -> None:
    """Where two files meet: the widths, and the tokenizer's vocabulary."""
    faults = []
    width = model.audio_encoder.width
    if width != sizes["encoder_width"]:
        faults.append(
            f"audio_encoder: expected frames of width {sizes['encoder_width']}, which "
            f"the Q-Former reads, found {width} in {args.audio_encoder_conf['path']}"
        )
    width = state[f"{PROJECTION}weight"].shape[0]
    if width != model.language_model.width:
        faults.append(
            f"language_model: expected embeddings of width {width}, which the "
            f"projection makes, found {model.language_model.width} in "
            f"{args.language_model}. There are weights for Vicuna 7b and 13b"
        )
    if model.qformer.vocab_size != sizes["vocab_size"]:
        faults.append(
            f"qformer_tokenizer: expected {sizes['vocab_size']} tokens, [DEC] "
            f"included, found {model.qformer.vocab_size} in {args.qformer_tokenizer}"
        )
    if faults:
        raise ImportFault("; ".join(faults) + ". Give the parts that belong together.")


def _absolute(name: str) -> str:
    """A folder's full path; a hub name stays."""
    return os.path.abspath(name) if Path(name).exists() else str(name)


def _write(
    out: Path, model: torch.nn.Module, args: argparse.Namespace, report: ImportReport
) -> None:
    """The folder: weights, configurations, report; last slit.json, which names them."""
    with atomic(out / MODEL_FILE) as stream:
        torch.save(model.state_dict(), stream)
    config = json.loads(json.dumps(vars(args)))
    write_text(out / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    for stage in ("generative", "instruction"):
        finetuning = yaml.safe_dump(_finetuning(config, stage), sort_keys=False)
        write_text(out / f"finetune_{stage}.yaml", finetuning)
    write_json(out / "import.json", asdict(report))
    link(out, [out], MODEL_FILE)


def _finetuning(config: dict[str, Any], stage: str) -> dict[str, Any]:
    """A training configuration that goes on from the imported weights."""
    names = ("audio_encoder", "audio_encoder_conf", "qformer_tokenizer", "qformer_conf",
             "language_model", "language_model_conf", "inference_conf")  # fmt: skip
    wording = config["inference_conf"]["caption"]["instruction"]
    option = "prompt" if stage == "generative" else "default_instruction"
    return {
        "model": stage,
        **{name: config[name] for name in names},
        "preprocessor_conf": {**config["preprocessor_conf"], option: wording},
        **FINETUNING,
    }
