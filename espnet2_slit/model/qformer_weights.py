"""Pretrained weights for the Q-Former, in and out; every name is accounted for.

Reads BERT, LAVIS (BLIP-2 stage 1, InstructBLIP, X-InstructBLIP) and transformers
(Blip2*, InstructBlip*, Q-Former alone), and writes transformers'
InstructBlipQFormerModel. The network is in `qformer`, the heads in `objectives`.

Nothing is loaded partially and silently: a weight of ours that the source does not
give, gives in another shape, or a Q-Former weight of the source that has no place
here, is an error that lists all such names. What may stay at its random start must be
named in `reinitialise`. What is always allowed, because no source can have it or
nobody could want it, is in `_always_missing` and `_never_needed`, with the reason.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from espnet2_slit.common.weights import read_weights as read_file
from espnet2_slit.model.qformer import QFormer
from espnet2_slit.model.qformer_layers import NORM_EPS

logger = logging.getLogger(__name__)

# Everything whose shape depends on the frozen encoder: the usual `reinitialise` when
# vision weights are brought to audio.
ENCODER_SIDE = (
    "frame_norm.*",
    "layers.*.cross_attention.key.*",
    "layers.*.cross_attention.value.*",
)
KINDS = ("bert", "lavis", "transformers")
EXTRA_FILE = "slit_qformer.safetensors"  # what has no place in transformers' model

# Our name within a layer -> name within a layer of BERT, LAVIS and transformers.
# "{self}" is `self` in BERT and LAVIS and `attention` in transformers.
_LAYER_NAMES = {
    "self_attention.output": "attention.output.dense",
    "self_attention.norm": "attention.output.LayerNorm",
    "cross_attention.query": "crossattention.{self}.query",
    "cross_attention.key": "crossattention.{self}.key",
    "cross_attention.value": "crossattention.{self}.value",
    "cross_attention.output": "crossattention.output.dense",
    "cross_attention.norm": "crossattention.output.LayerNorm",
    "query_feed_forward.up": "intermediate_query.dense",
    "query_feed_forward.down": "output_query.dense",
    "query_feed_forward.norm": "output_query.LayerNorm",
    "text_feed_forward.up": "intermediate.dense",
    "text_feed_forward.down": "output.dense",
    "text_feed_forward.norm": "output.LayerNorm",
}
_QUERY_KEY_VALUE = ("query", "key", "value")

# Names outside the layers, after the prefixes of `_strip` are gone.
_BERT_NAMES = {
    "embeddings.word_embeddings.weight": "embedding.word.weight",
    "embeddings.position_embeddings.weight": "embedding.position.weight",
    "embeddings.LayerNorm": "embedding_norm",
    "cls.predictions.transform.dense": "language_head.transform",
    "cls.predictions.transform.LayerNorm": "language_head.norm",
    "cls.predictions.bias": "language_head.bias",
}
_LAVIS_NAMES = _BERT_NAMES | {
    "query_tokens": "query_tokens",
    "ln_vision": "frame_norm",
    "vision_proj": "heads.audio_projection",
    "text_proj": "heads.text_projection",
    "itm_head": "heads.matching_head",
    "temp": "heads.temperature.value",
    "language_projection": "language_projection",  # after `_strip`, by modality
}
_TRANSFORMERS_NAMES = {
    "embeddings.word_embeddings.weight": "embedding.word.weight",
    "embeddings.position_embeddings.weight": "embedding.position.weight",
    "embeddings.layernorm": "embedding_norm",
    "layernorm": "embedding_norm",
    "query_tokens": "query_tokens",
    "vision_model.post_layernorm": "frame_norm",
    "vision_projection": "heads.audio_projection",
    "text_projection": "heads.text_projection",
    "itm_head": "heads.matching_head",
}


@dataclass
class LoadReport:
    """What `load_pretrained_qformer` did, in our names unless stated.

    Attributes:
        source: as given.
        kind: one of `KINDS`.
        loaded: weights taken from the source.
        initialised: weights left at their start, name -> reason.
        left: names of the source that are not used (the encoder, the LM, ...).
        notes: one line for each weight that was changed on its way in.
    """

    source: str
    kind: str
    loaded: list[str] = field(default_factory=list)
    initialised: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        reasons = sorted(set(self.initialised.values()))
        lines = [
            f"{self.kind} weights from {self.source}: {len(self.loaded)} loaded, "
            f"{len(self.initialised)} at their start, "
            f"{len(self.left)} of the source not used",
            *self.notes,
        ]
        for reason in reasons:
            names = [n for n, r in self.initialised.items() if r == reason]
            lines.append(f"at their start ({reason}): {_some(names)}")
        return "\n".join(lines)


def load_pretrained_qformer(
    qformer: QFormer,
    source: str | os.PathLike,
    heads: nn.Module | None = None,
    reinitialise: Sequence[str] = (),
    modality: str = "audio",
    language_projection: nn.Module | None = None,
) -> LoadReport:
    """Fill `qformer` (and `heads`) from a BERT, LAVIS or transformers checkpoint.

    Args:
        qformer: is changed in place, only if everything fits.
        source: a folder saved by `save_pretrained` or by `export_to_transformers`, a
            `.safetensors`, `.bin`, `.pt` or `.pth` file, or a model name of the Hub.
        heads: `objectives.RepresentationHeads`; filled where the source has heads
            (LAVIS stage 1, Blip2ForImageTextRetrieval), else left as they are.
        reinitialise: patterns (fnmatch) of our names that stay at their random start
            even where the source has them, e.g. `ENCODER_SIDE`; for heads the names
            start with "heads.".
        modality: which Q-Former of an X-InstructBLIP checkpoint.
        language_projection: from the queries to a language model; filled where the
            source has one for `modality` (X-InstructBLIP), else left as it is.

    Returns:
        What was loaded, left and changed.

    Raises:
        ValueError: weights are missing, unexpected or misshapen; lists all of them.
        FileNotFoundError: no weights at `source`.
    """
    state = read_weights(source)
    kind = detect_kind(state)
    given, left, notes = _to_our_names(state, kind, modality)
    report = LoadReport(str(source), kind, left=left, notes=notes)

    wanted = dict(qformer.state_dict())
    if heads is not None:
        wanted |= {f"heads.{n}": t for n, t in heads.state_dict().items()}
    head_names = [n for n in given if n.startswith("heads.")]
    projection_names = [n for n in given if n.startswith("language_projection.")]
    for module, names in ((heads, head_names), (language_projection, projection_names)):
        if module is None:
            report.left += names
            given = {n: t for n, t in given.items() if n not in names}
    if language_projection is not None and projection_names:
        own = language_projection.state_dict()
        wanted |= {f"language_projection.{n}": t for n, t in own.items()}

    if kind == "bert":
        _grow_from_bert(given, wanted, report)
    _fit_text(given, wanted, report)

    problems = []
    accepted = {}
    for name, ours in wanted.items():
        reason = _always_missing(name, kind, bool(head_names))
        if any(fnmatch.fnmatch(name, pattern) for pattern in reinitialise):
            report.initialised[name] = "as asked by reinitialise"
        elif name not in given and reason:
            report.initialised[name] = reason
        elif name not in given:
            problems.append(f"missing: {name} {tuple(ours.shape)}")
        elif given[name].shape != ours.shape:
            problems.append(
                f"misshapen: {name}: source {tuple(given[name].shape)}, "
                f"ours {tuple(ours.shape)}"
            )
        else:
            accepted[name] = given[name]
    for name in given.keys() - wanted.keys():
        if _never_needed(name, qformer):
            report.left.append(name)
        else:
            problems.append(f"unexpected: {name} {tuple(given[name].shape)}")
    if problems:
        raise ValueError(
            f"{kind} weights from {source} do not fit this Q-Former "
            f"({len(problems)} problems):\n  "
            + "\n  ".join(sorted(problems))
            + "\nGive the Q-Former the sizes of the source, or name the weights that "
            "may start at random in `reinitialise` (for another encoder: "
            + ", ".join(ENCODER_SIDE)
            + ")."
        )
    with torch.no_grad():
        for name, tensor in accepted.items():
            wanted[name].copy_(tensor)  # it shares the model's memory
    report.loaded = sorted(accepted)
    logger.info("%s", report)
    return report


def detect_kind(state: dict[str, Tensor]) -> str:
    """One of `KINDS`, by the names of the weights.

    Args:
        state: of `read_weights`.

    Returns:
        "bert", "lavis" or "transformers".

    Raises:
        ValueError: neither; shows some names.
    """
    if any("Qformer.bert." in name for name in state):
        return "lavis"
    if any(".attention.attention.query." in name for name in state):
        return "transformers"
    if any(".attention.self.query." in name for name in state):
        return "bert"
    raise ValueError(
        "not recognised as BERT, LAVIS or transformers Q-Former weights; names are "
        f"{_some(state)}"
    )


def read_weights(source: str | os.PathLike) -> dict[str, Tensor]:
    """All tensors of a file, a folder or a Hub name, on the CPU.

    Pickled files are read with `weights_only=True`.

    Args:
        source: see `load_pretrained_qformer`.

    Returns:
        Name -> tensor; LAVIS' "model" wrapper is taken off.

    Raises:
        FileNotFoundError: nothing to read there.
    """
    path = Path(source)
    if path.is_file():
        return read_file(path)
    if not path.is_dir():
        path = _download(str(source))
    index = [*path.glob("*.safetensors.index.json"), *path.glob("*.bin.index.json")]
    if index:
        names = json.loads(index[0].read_text())["weight_map"].values()
        files = [path / name for name in sorted(set(names))]
    else:
        files = [
            path / name
            for name in ("model.safetensors", "pytorch_model.bin")
            if (path / name).is_file()
        ][:1]
    if not files:
        raise FileNotFoundError(
            f"{path} has no model.safetensors or pytorch_model.bin. Point to a folder "
            "made by save_pretrained, or to the weights file itself."
        )
    if (path / EXTRA_FILE).is_file():
        files.append(path / EXTRA_FILE)
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_file(file)
    return state


def qformer_sizes(weights: dict[str, Tensor], heads: int | None = None) -> dict:
    """Constructor keywords of the Q-Former that these weights belong to.

    Args:
        weights: in our names, of a state dict or of `our_names`.
        heads: attention heads, which no weight shows; None: width / 64, as in BERT.

    Returns:
        Keywords of `QFormer`; those that the weights do not show (encoder width and
        number of queries, for BERT) are absent.

    Raises:
        ValueError: `heads` is needed.
    """
    width = weights["embedding_norm.weight"].numel()
    if heads is None and width % 64:
        raise ValueError(
            f"width {width} is not a multiple of 64, so the number of attention heads "
            "cannot be guessed. Give it as `heads`."
        )
    layers = [int(n.split(".")[1]) for n in weights if n.startswith("layers.")]
    crossing = sorted(
        int(n.split(".")[1])
        for n in weights
        if n.endswith("cross_attention.key.weight")
    )
    up = next(t for n, t in weights.items() if n.endswith("feed_forward.up.weight"))
    sizes: dict[str, int | float] = dict(
        width=width,
        layers=max(layers) + 1,
        heads=heads or width // 64,
        feed_forward=up.size(0),
        vocab_size=0,
        text_branch="embedding.word.weight" in weights,
        language_head="language_head.bias" in weights,
    )
    if crossing:
        every = crossing[1] - crossing[0] if len(crossing) > 1 else max(layers) + 1
        sizes["cross_attention_every"] = every
        key = weights[f"layers.{crossing[0]}.cross_attention.key.weight"]
        sizes["encoder_width"] = key.size(1)
    if "query_tokens" in weights:
        sizes["num_queries"] = weights["query_tokens"].size(0)
    if sizes["text_branch"]:
        sizes["vocab_size"] = weights["embedding.word.weight"].size(0)
        sizes["max_text_length"] = weights["embedding.position.weight"].size(0)
    if "window_position" in weights:
        sizes["max_windows"] = weights["window_position"].size(0)
    if "frame_position" in weights:
        sizes["frame_position"] = float(weights["frame_position"])
    return sizes


def our_names(
    state: dict[str, Tensor], modality: str = "audio"
) -> tuple[str, dict[str, Tensor]]:
    """Kind of a source and its Q-Former weights under our names.

    Args:
        state: of `read_weights`.
        modality: which Q-Former of an X-InstructBLIP checkpoint.

    Returns:
        One of `KINDS`, and name -> tensor.
    """
    kind = detect_kind(state)
    return kind, _to_our_names(state, kind, modality)[0]


def export_to_transformers(
    qformer: QFormer, folder: str | os.PathLike, heads: nn.Module | None = None
) -> Path:
    """Write a folder that `InstructBlipQFormerModel.from_pretrained` loads.

    That model has no place for the query tokens (they are its input), the norm of the
    frames, window positions, the vocabulary head and the loss heads. They go into a
    second file of the same folder, so that `load_pretrained_qformer` gets everything
    back. Feed the exported model frames that went through the norm of that file.

    Args:
        qformer: with text branch.
        folder: is created.
        heads: `objectives.RepresentationHeads`, optional.

    Returns:
        The folder.

    Raises:
        ValueError: the Q-Former has no text branch, which that model must have.
    """
    from safetensors.torch import save_file

    if qformer.embedding is None:
        raise ValueError(
            "InstructBlipQFormerModel has a text branch, but this Q-Former was built "
            "with text_branch: false. Export the representation or instruction model."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    outside = {ours: theirs for theirs, ours in _TRANSFORMERS_NAMES.items()}
    outside["embedding_norm"] = "embeddings.layernorm"  # not Blip2's "layernorm"
    inner = {n: n for n in outside.values() if n.startswith("embeddings.")}
    model, extra = {}, {}
    for name, tensor in qformer.state_dict().items():
        tensor = tensor.detach().cpu().clone().contiguous()
        theirs = _to_transformers_layer(name, tensor)
        base, _, last = name.rpartition(".")
        if theirs:
            model |= theirs
        elif outside.get(name) in inner:
            model[outside[name]] = tensor
        elif outside.get(base) in inner:
            model[f"{outside[base]}.{last}"] = tensor
        else:
            extra[f"slit.{name}"] = tensor
    if heads is not None:
        for name, tensor in heads.state_dict().items():
            extra[f"slit.heads.{name}"] = tensor.detach().cpu().clone().contiguous()
    config = {
        "model_type": "instructblip_qformer",
        "architectures": ["InstructBlipQFormerModel"],
        "vocab_size": qformer.vocab_size,
        "hidden_size": qformer.width,
        "num_hidden_layers": len(qformer.layers),
        "num_attention_heads": qformer.heads,
        "intermediate_size": qformer.feed_forward,
        "hidden_act": "gelu",
        "hidden_dropout_prob": qformer.embedding_dropout.p,
        "attention_probs_dropout_prob": qformer.embedding_dropout.p,
        "max_position_embeddings": qformer.max_text_length,
        "layer_norm_eps": NORM_EPS,
        "pad_token_id": qformer.pad_id,
        "cross_attention_frequency": qformer.cross_attention_every,
        "encoder_hidden_size": qformer.encoder_width,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(model, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(extra, folder / EXTRA_FILE, metadata={"format": "pt"})
    return folder


# -- names --------------------------------------------------------------------------


def _to_our_names(
    state: dict[str, Tensor], kind: str, modality: str
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Rename; returns our tensors, source names that are not used, and notes."""
    names = {
        "bert": _BERT_NAMES,
        "lavis": _LAVIS_NAMES,
        "transformers": _TRANSFORMERS_NAMES,
    }[kind]
    attention = "attention" if kind == "transformers" else "self"
    layer_names = {
        theirs.format(self=attention): ours for ours, theirs in _LAYER_NAMES.items()
    }
    given: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    left, notes = [], []
    tied: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("slit."):
            given[name.removeprefix("slit.")] = tensor
            continue
        short = _strip(name, kind, modality)
        if short is None or short.endswith("position_ids"):
            left.append(name)
            continue
        if short.startswith("cls.predictions.decoder."):
            tied[short.rpartition(".")[2]] = tensor
            continue
        base, _, last = short.rpartition(".")
        found = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", base)
        if found:
            layer, inner = f"layers.{found[1]}", found[2]
            if inner in layer_names:
                given[f"{layer}.{layer_names[inner]}.{last}"] = tensor
                continue
            part = inner.removeprefix(f"attention.{attention}.")
            if part in _QUERY_KEY_VALUE and part != inner:
                joint = f"{layer}.self_attention.query_key_value.{last}"
                parts.setdefault(joint, {})[part] = tensor
                continue
            given[name] = tensor  # becomes "unexpected"
        elif short in names:
            given[names[short]] = tensor
        elif base in names:
            given[f"{names[base]}.{last}"] = tensor
        elif kind == "bert" and short == "embeddings.token_type_embeddings.weight":
            given["token_type"] = tensor
        elif kind == "bert" and base.startswith(("pooler", "cls.seq_relationship")):
            left.append(name)
        elif kind == "bert" or "ormer." in name:
            given[name] = tensor
        else:
            left.append(name)
    for joint, three in parts.items():
        missing = [p for p in _QUERY_KEY_VALUE if p not in three]
        if missing:
            raise ValueError(f"the source lacks {', '.join(missing)} of {joint}")
        given[joint] = torch.cat([three[p] for p in _QUERY_KEY_VALUE])
    if "query_tokens" in given:
        given["query_tokens"] = given["query_tokens"].flatten(0, -2)
    if "heads.temperature.value" in given:  # a scalar in LAVIS
        value = given["heads.temperature.value"]
        given["heads.temperature.value"] = value.reshape(1)
    _check_tied(given, tied)
    return given, left, notes


def _strip(name: str, kind: str, modality: str) -> str | None:
    """Source name without its outer prefix; None: not of the Q-Former."""
    if kind == "bert":
        name = name.removeprefix("bert.")
        # checkpoints older than PyTorch call the LayerNorm's weights gamma and beta
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    if kind == "transformers":
        name = name.removeprefix("model.")
        return name.removeprefix("qformer.")
    own = {
        f"{modality}_Qformer.": "Qformer.",
        f"{modality}_ln.": "ln_vision.",
        f"{modality}_llm_proj.": "language_projection.",
    }
    own[f"{modality}_query_tokens"] = "query_tokens"
    for prefix, common in own.items():
        if name.startswith(prefix):
            name = common + name.removeprefix(prefix)
    if name.startswith("Qformer."):
        return name.removeprefix("Qformer.").removeprefix("bert.")
    if name.split(".")[0] in _LAVIS_NAMES:
        return name
    return None


def _check_tied(given: dict[str, Tensor], tied: dict[str, Tensor]) -> None:
    """The prediction head's own copies must equal what they are tied to."""
    for last, partner in (
        ("weight", "embedding.word.weight"),
        ("bias", "language_head.bias"),
    ):
        if last not in tied:
            continue
        if partner not in given:
            given[partner] = tied[last]
        elif not torch.equal(given[partner], tied[last]):
            raise ValueError(
                f"the source's cls.predictions.decoder.{last} differs from its "
                f"{partner}, but this Q-Former ties the two. Its weights cannot be "
                "represented here."
            )


def _to_transformers_layer(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One weight of a layer under transformers' names; {} if it is of no layer."""
    found = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if not found:
        return {}
    prefix, inner, last = f"encoder.layer.{found[1]}", found[2], found[3]
    if inner == "self_attention.query_key_value":
        return {
            f"{prefix}.attention.attention.{part}.{last}": chunk.clone()
            for part, chunk in zip(_QUERY_KEY_VALUE, tensor.chunk(3), strict=True)
        }
    return {f"{prefix}.{_LAYER_NAMES[inner].format(self='attention')}.{last}": tensor}


# -- what may differ ----------------------------------------------------------------


def _grow_from_bert(
    given: dict[str, Tensor], wanted: dict[str, Tensor], report: LoadReport
) -> None:
    """Add to BERT what BLIP-2 derives from it; changes `given`."""
    for name in list(given):
        if ".text_feed_forward." in name:
            copy = name.replace("text_feed_forward", "query_feed_forward")
            given[copy] = given[name]
    report.notes.append("query feed-forward: copied from BERT's feed-forward")
    token_type = given.pop("token_type", None)
    if token_type is not None and "embedding.position.weight" in given:
        # BERT adds this vector to every token of a single text. The Q-Former has no
        # token types, so it goes into the positions and the text pass stays BERT's.
        position = given["embedding.position.weight"]
        given["embedding.position.weight"] = position + token_type[0]
        report.notes.append("position embedding: token type 0 added to every row")


def _fit_text(
    given: dict[str, Tensor], wanted: dict[str, Tensor], report: LoadReport
) -> None:
    """Vocabulary may grow (new tokens), positions may be cut; changes `given`."""
    for name in ("embedding.word.weight", "language_head.bias"):
        if name in given and name in wanted:
            old, new = given[name].size(0), wanted[name].size(0)
            same_width = given[name].shape[1:] == wanted[name].shape[1:]
            if same_width and old < new:
                grown = wanted[name].detach().clone()
                grown[:old] = given[name]
                given[name] = grown
                report.notes.append(f"{name}: rows {old}..{new - 1} are new tokens")
    name = "embedding.position.weight"
    if name in given and name in wanted:
        old, new = given[name].size(0), wanted[name].size(0)
        if new < old and given[name].shape[1:] == wanted[name].shape[1:]:
            given[name] = given[name][:new]
            report.notes.append(f"{name}: the first {new} of {old} positions")


def _always_missing(name: str, kind: str, has_heads: bool) -> str | None:
    """Why the source cannot be expected to have this weight of ours, or None."""
    if name in ("window_position", "frame_position"):
        return "no source knows windows or places"
    if name.startswith("heads.") and not has_heads:
        return "the source has no heads"
    if name == "heads.temperature.value" and kind == "transformers":
        return "transformers drops the temperature"
    if kind == "bert" and (
        name == "query_tokens" or name.startswith("frame_norm") or "cross_att" in name
    ):
        return "not part of BERT"
    return None


def _never_needed(name: str, qformer: QFormer) -> bool:
    """A weight of the source for a branch that this Q-Former was built without."""
    is_text = name.startswith("embedding.") or ".text_feed_forward." in name
    if is_text and qformer.embedding is None:
        return True
    return name.startswith("language_head.") and qformer.language_head is None


# -- files --------------------------------------------------------------------------


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        # safetensors first: a repository often has the same weights in four formats
        for pattern in ("*.safetensors", "*.bin"):
            folder = Path(
                snapshot_download(
                    name, allow_patterns=[pattern, f"{pattern}.index.json"]
                )
            )
            if any(folder.glob(pattern)):
                return folder
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"{name!r} is neither a file nor a folder here, and the Hugging Face Hub "
            f"did not give it ({type(error).__name__}). Download it first and give "
            "its path."
        ) from error
    return folder


def _some(names: Iterable[str], limit: int = 6) -> str:
    names = list(names)
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
