#!/usr/bin/env python3
"""One step of audio-text pre-training (stage 1) against its peers.

A step is forward, backward and AdamW of a BERT-base Q-Former with the three losses on
frozen features, at B=16, T=496 frames of 768 and captions of 20-30 tokens. The
contestants take turns within one process:

    slit          ours, float32, as `RepresentationModel` runs it
    slit_bf16     ours under bfloat16 autocast, the mode shipped for CPUs
    slit_medium   ours, float32 through oneDNN (set_float32_matmul_precision medium)
    transformers  the same losses written plainly on Blip2QFormerModel (SDPA)
    lavis         LAVIS' own forward from --lavis DIR (a checkout), unchanged
    lavis_bf16    the same under bfloat16 autocast
    lavis_medium  the same through oneDNN

Before the clock starts, all contestants get the same weights and two clips (so that
each hard negative is forced) without dropout, and their losses must agree to 1e-4.

    python bench/stage1_step.py --lavis ~/LAVIS --rounds 5 --output stage1.json
    python bench/stage1_step.py --batch 4 --only slit transformers --rounds 3

CPU seconds count all threads of this process and are steadier than the wall clock on
shared machines. Memory is measured in a process of its own for each contestant: the
peak during a step above what the process holds between steps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_slit.objectives import (
    RepresentationHeads,
    contrastive,
    gather_memory,
    gather_text,
    generation,
    matching,
    sample_negative_pairs,
)
from espnet2_slit.qformer import QFormer

logger = logging.getLogger("stage1_step")
VOCAB, BOS, CLS, SEP, PAD = 30523, 30522, 101, 102, 0
MAX_TEXT = 32  # LAVIS pads every caption to this
CONTESTANTS = (
    "slit",
    "slit_bf16",
    "slit_medium",
    "transformers",
    "lavis",
    "lavis_bf16",
    "lavis_medium",
)


# -- data -----------------------------------------------------------------------------


def make_batch(args: argparse.Namespace, batch: int, seed: int = 0) -> dict:
    """Synthetic features and captions, all clips of full length."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(20, 31, (batch,), generator=generator)
    text = torch.randint(1000, 30000, (batch, MAX_TEXT), generator=generator)
    text[:, 0] = CLS
    text[torch.arange(batch), lengths - 1] = SEP
    text[torch.arange(MAX_TEXT) >= lengths[:, None]] = PAD
    frames = torch.randn(batch, args.frames, args.width, generator=generator)
    return {"frames": frames, "text": text, "text_lengths": lengths}


# -- ours -----------------------------------------------------------------------------


class Slit(nn.Module):
    """The step that `espnet2_slit.objectives` describes, losses only."""

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        self.qformer = QFormer(
            args.width,
            VOCAB,
            layers=args.layers,
            dropout=args.dropout,
            bos_id=BOS,
            gradient_checkpointing=args.gradient_checkpointing,
        )
        self.heads = RepresentationHeads(768)
        self.gather = args.gather

    def forward(self, batch: dict) -> dict[str, Tensor]:
        qformer, heads = self.qformer, self.heads
        frames, text = batch["frames"], batch["text"]
        lengths = batch["text_lengths"]
        text = text[:, : int(lengths.max())]  # ESPnet's collate pads no further
        frame_lengths = torch.full((len(text),), frames.size(1), device=frames.device)
        memory = qformer.read_frames(frames, frame_lengths)
        queries = qformer.forward_queries(memory)
        summary = qformer.forward_text(text, lengths)
        contrast = contrastive(
            heads.embed_audio(queries.hidden),
            heads.embed_text(summary),
            heads.temperature(),
            gather=self.gather,
        )
        negatives = sample_negative_pairs(contrast, seed=batch.get("seed", 0))
        world = contrast.world
        pairs = qformer.forward_triplets(
            memory,
            text,
            lengths,
            gather_memory(
                qformer, memory, frames, frame_lengths, negatives.audio, world
            ),
            *gather_text(text, lengths, negatives.text, world),
        )
        logits, targets = qformer.forward_generation(queries.cache, text, lengths)
        return {
            "contrastive": contrast.loss,
            "matching": matching(
                heads.match(pairs), negatives.labels, negatives.valid, len(text)
            ),
            "generation": generation(logits, targets, len(text)),
        }


# -- the same losses, written plainly on transformers ----------------------------------


class Transformers(nn.Module):
    """Blip2QFormerModel and the three losses as one would first write them."""

    def __init__(self, args: argparse.Namespace, slit: Slit):
        super().__init__()
        import transformers

        config = transformers.Blip2QFormerConfig(
            vocab_size=VOCAB,
            num_hidden_layers=args.layers,
            encoder_hidden_size=args.width,
            use_qformer_text_input=True,
            hidden_dropout_prob=args.dropout,
            attention_probs_dropout_prob=args.dropout,
            attn_implementation="sdpa",
        )
        self.qformer = transformers.Blip2QFormerModel(config)
        self.query_tokens = nn.Parameter(torch.zeros(1, 32, 768))
        self.word = nn.Embedding(VOCAB, 768, padding_idx=PAD)
        self.position = nn.Embedding(512, 768)
        self.frame_norm = nn.LayerNorm(args.width)
        self.transform = nn.Linear(768, 768)
        self.transform_norm = nn.LayerNorm(768, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(VOCAB))
        self.audio_projection = nn.Linear(768, 256)
        self.text_projection = nn.Linear(768, 256)
        self.matching_head = nn.Linear(768, 2)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self._copy(slit)

    @torch.no_grad()
    def _copy(self, slit: Slit) -> None:
        from safetensors.torch import load_file

        from espnet2_slit.qformer_weights import export_to_transformers

        with tempfile.TemporaryDirectory() as folder:
            export_to_transformers(slit.qformer, folder)
            state = load_file(f"{folder}/model.safetensors")
        inner = {n: t for n, t in state.items() if not n.startswith("embeddings.")}
        for last in ("weight", "bias"):
            inner[f"layernorm.{last}"] = state[f"embeddings.layernorm.{last}"]
        self.qformer.load_state_dict(inner)
        ours, heads = slit.qformer, slit.heads
        self.query_tokens.copy_(ours.query_tokens[None])
        self.bias.copy_(ours.language_head.bias)
        for mine, theirs in (
            (self.word, ours.embedding.word),
            (self.position, ours.embedding.position),
            (self.frame_norm, ours.frame_norm),
            (self.transform, ours.language_head.transform),
            (self.transform_norm, ours.language_head.norm),
            (self.audio_projection, heads.audio_projection),
            (self.text_projection, heads.text_projection),
            (self.matching_head, heads.matching_head),
        ):
            mine.load_state_dict(theirs.state_dict())

    def embed(self, ids: Tensor) -> Tensor:
        return self.word(ids) + self.position.weight[: ids.size(1)]

    def forward(self, batch: dict) -> dict[str, Tensor]:
        text, count = batch["text"], len(batch["text"])
        mask = (text != PAD).long()
        frames = self.frame_norm(batch["frames"])
        tokens = self.query_tokens.expand(count, -1, -1)
        num_queries = tokens.size(1)
        queries = self.qformer(
            query_embeds=tokens, encoder_hidden_states=frames
        ).last_hidden_state
        summary = self.qformer(
            query_embeds=self.embed(text), query_length=0, attention_mask=mask
        ).last_hidden_state[:, 0]
        audio = F.normalize(self.audio_projection(queries).float(), dim=-1)
        summary = F.normalize(self.text_projection(summary).float(), dim=-1)
        scores = (audio.flatten(0, 1) @ summary.t()).view(count, -1, count)
        scores = scores.max(1).values / self.temperature
        labels = torch.arange(count, device=text.device)
        contrast = (
            F.cross_entropy(scores, labels, label_smoothing=0.1)
            + F.cross_entropy(scores.t(), labels, label_smoothing=0.1)
        ) / 2
        own = torch.eye(count, dtype=torch.bool, device=text.device)
        weights = scores.detach().masked_fill(own, -1e4)
        negative_text = torch.multinomial(weights.softmax(1), 1)[:, 0]
        negative_audio = torch.multinomial(weights.t().softmax(1), 1)[:, 0]

        pair_text = torch.cat((text, text, text[negative_text]))
        pair_mask = torch.cat((mask, mask, mask[negative_text]))
        pairs = self.qformer(
            query_embeds=torch.cat(
                (self.query_tokens.expand(3 * count, -1, -1), self.embed(pair_text)), 1
            ),
            query_length=num_queries,
            attention_mask=F.pad(pair_mask, (num_queries, 0), value=1),
            encoder_hidden_states=torch.cat((frames, frames[negative_audio], frames)),
        ).last_hidden_state[:, :num_queries]
        match = self.matching_head(pairs).float().mean(1)
        match_labels = torch.cat((torch.ones_like(labels), labels * 0, labels * 0))

        # no cache in this class: queries and text in one pass, queries blind to text
        inputs = text.clone()
        inputs[:, 0] = BOS
        length = text.size(1)
        see = torch.ones(num_queries + length, num_queries + length, device=text.device)
        see = see.tril()
        see[:num_queries, :num_queries] = 1
        see = see * F.pad(mask, (num_queries, 0), value=1)[:, None]
        hidden = self.qformer(
            query_embeds=torch.cat((tokens, self.embed(inputs)), 1),
            query_length=num_queries,
            attention_mask=see[:, None].bool(),
            encoder_hidden_states=frames,
        ).last_hidden_state[:, num_queries:]
        hidden = self.transform_norm(F.gelu(self.transform(hidden)))
        logits = F.linear(hidden, self.word.weight, self.bias)[:, :-1]
        targets = text[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        return {
            "contrastive": contrast,
            "matching": F.cross_entropy(match, match_labels),
            "generation": F.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten(), label_smoothing=0.1
            ),
        }


# -- LAVIS -----------------------------------------------------------------------------


def load_lavis(checkout: Path) -> type[nn.Module]:
    """LAVIS' `Blip2Qformer` from the user's checkout, with its imports replaced.

    Its files cannot be imported as they are without 40 packages and transformers
    4.33. Only what they import is replaced; every line that computes is theirs.
    """
    import transformers.pytorch_utils

    class Pretrained(nn.Module):
        """What their code uses of PreTrainedModel."""

        def __init__(self, config, *_, **__):
            super().__init__()
            self.config = config

        def init_weights(self):
            self.apply(self._init_weights)

        def get_head_mask(self, _, layers):
            return [None] * layers

        def invert_attention_mask(self, mask):
            mask = mask[:, None, None, :].to(self.dtype)
            return (1.0 - mask) * torch.finfo(self.dtype).min

        @property
        def dtype(self):
            return next(self.parameters()).dtype

        @property
        def device(self):
            return next(self.parameters()).device

    def module(name: str, **content) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__dict__.update(content)
        sys.modules[name] = made
        return made

    def run(name: str, path: Path, replacements: dict[str, str]) -> types.ModuleType:
        source = path.read_text()
        for old, new in replacements.items():
            source = source.replace(old, new)
        made = module(name)
        exec(compile(source, str(path), "exec"), made.__dict__)  # noqa: S102
        return made

    models = checkout / "lavis" / "models"
    module(
        "lavis_shim",
        PreTrainedModel=Pretrained,
        apply_chunking_to_forward=transformers.pytorch_utils.apply_chunking_to_forward,
        find_pruneable_heads_and_indices=None,
        prune_linear_layer=None,
    )
    names = "lavis", "lavis.common", "lavis.models", "lavis.models.blip2_models"
    for name in (*names, "lavis.models.blip_models"):
        module(name, __path__=[])
    run(
        "lavis.models.blip2_models.Qformer",
        models / "blip2_models" / "Qformer.py",
        {
            "from transformers.modeling_utils import": "from lavis_shim import",
            "from transformers.file_utils import": "from transformers.utils import",
        },
    )
    register = types.SimpleNamespace(register_model=lambda name: lambda cls: cls)
    module("lavis.common.registry", registry=register)

    @torch.no_grad()
    def concat_all_gather(x: Tensor) -> Tensor:  # on one rank a detached copy
        return torch.cat([x], dim=0)

    module(
        "lavis.models.base_model",
        all_gather_with_grad=lambda x: x,
        concat_all_gather=concat_all_gather,
    )
    module(
        "lavis.models.blip2_models.blip2",
        Blip2Base=nn.Module,
        compute_sim_matrix=None,
        disabled_train=None,
    )
    run(
        "lavis.models.blip_models.blip_outputs",
        models / "blip_models" / "blip_outputs.py",
        {},
    )
    made = run(
        "lavis.models.blip2_models.blip2_qformer",
        models / "blip2_models" / "blip2_qformer.py",
        {"from torch.cuda.amp import": "from torch.amp import"},
    )
    return made.Blip2Qformer


class Lavis(nn.Module):
    """LAVIS' own forward on given features and token ids, our weights in it."""

    def __init__(self, args: argparse.Namespace, slit: Slit):
        super().__init__()
        theirs = load_lavis(Path(args.lavis).expanduser())
        qformer_file = sys.modules["lavis.models.blip2_models.Qformer"]
        # transformers' BertConfig changes between versions; these are all they read
        config = types.SimpleNamespace(
            vocab_size=VOCAB,
            hidden_size=768,
            num_hidden_layers=args.layers,
            num_attention_heads=12,
            intermediate_size=3072,
            hidden_act="gelu",
            hidden_dropout_prob=args.dropout,
            attention_probs_dropout_prob=args.dropout,
            max_position_embeddings=512,
            initializer_range=0.02,
            layer_norm_eps=1e-12,
            pad_token_id=PAD,
            position_embedding_type="absolute",
            chunk_size_feed_forward=0,
            gradient_checkpointing=False,
            is_decoder=False,
            use_cache=True,
            output_attentions=False,
            output_hidden_states=False,
            use_return_dict=True,
            add_cross_attention=True,
            cross_attention_freq=2,
            encoder_width=args.width,
            query_length=32,
        )
        model = theirs.__new__(theirs)
        nn.Module.__init__(model)
        model.visual_encoder = nn.Identity()
        model.ln_vision = nn.LayerNorm(args.width)
        model.Qformer = qformer_file.BertLMHeadModel(config)
        predictions = model.Qformer.cls.predictions
        predictions.decoder.weight = (
            model.Qformer.bert.embeddings.word_embeddings.weight
        )
        model.query_tokens = nn.Parameter(torch.zeros(1, 32, 768))
        model.vision_proj = nn.Linear(768, 256)
        model.text_proj = nn.Linear(768, 256)
        model.itm_head = nn.Linear(768, 2)
        model.temp = nn.Parameter(torch.tensor(0.07))
        model.max_txt_len = MAX_TEXT
        self.model = model
        self._copy(slit)

    @torch.no_grad()
    def _copy(self, slit: Slit) -> None:
        """Ours into theirs, found by the names under which we would load theirs."""
        from espnet2_slit.qformer_weights import our_names

        state = self.model.state_dict()
        wanted = slit.qformer.state_dict() | {
            f"heads.{n}": t for n, t in slit.heads.state_dict().items()
        }
        _, renamed = our_names(state)
        for name, tensor in renamed.items():
            if "query_key_value" in name:
                continue
            tensor.copy_(wanted[name].view_as(tensor))  # shares memory with theirs
        for i, layer in enumerate(self.model.Qformer.bert.encoder.layer):
            attention = layer.attention.self
            for last in ("weight", "bias"):
                joint = wanted[f"layers.{i}.self_attention.query_key_value.{last}"]
                for part, chunk in zip(
                    ("query", "key", "value"), joint.chunk(3), strict=True
                ):
                    getattr(getattr(attention, part), last).data.copy_(chunk)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        class Tokens(types.SimpleNamespace):
            def to(self, _):
                return self

        class Tokenizer:
            bos_token_id, pad_token_id = BOS, PAD

            def __call__(self, text, **_):
                return Tokens(input_ids=text, attention_mask=(text != PAD).long())

        self.model.tokenizer = Tokenizer()
        out = self.model({"image": batch["frames"], "text_input": batch["text"]})
        return {
            "contrastive": out.loss_itc,
            "matching": out.loss_itm,
            "generation": out.loss_lm,
        }


# -- measuring -------------------------------------------------------------------------


class Contestant:
    """A model with its optimizer and number format.

    Args:
        name: one of `CONTESTANTS`.
        args: of the command line.
    """

    def __init__(self, name: str, args: argparse.Namespace):
        torch.manual_seed(0)
        self.name, self.device = name, torch.device(args.device)
        family, _, self.mode = name.partition("_")
        slit = Slit(args)
        if family == "slit":
            self.model = slit
        elif family == "transformers":
            self.model = Transformers(args, slit)
        else:
            self.model = Lavis(args, slit)
        self.model.to(self.device).train()
        # the peers' own choice is AdamW's default; ours is what the recipe sets
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-6, fused=True if family == "slit" else None
        )
        self.losses: dict[str, float] = {}

    def autocast(self):
        if self.mode == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def forward(self, batch: dict) -> dict[str, Tensor]:
        with self.autocast():
            return self.model(batch)

    def step(self, batch: dict) -> dict[str, float]:
        """One step; seconds of wall clock and of all CPUs."""
        precision = "medium" if self.mode == "medium" else "highest"
        torch.set_float32_matmul_precision(precision)
        self._wait()
        wall, cpu = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.forward(batch)
        sum(losses.values()).backward()
        self.optimizer.step()
        self._wait()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        torch.set_float32_matmul_precision("highest")
        self.losses = {name: float(v.detach()) for name, v in losses.items()}
        return {"wall_s": wall, "cpu_s": cpu}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def check_equal(names: list[str], args: argparse.Namespace) -> dict[str, float]:
    """Largest difference of a loss between the contestants, float32, no dropout."""
    small = argparse.Namespace(**vars(args) | {"dropout": 0.0, "layers": 4})
    small.device = "cpu"
    batch = make_batch(small, 2, seed=1)
    families = sorted({name.split("_")[0] for name in names})
    results = {}
    for family in families:
        contestant = Contestant(family, small)
        with torch.no_grad():
            # initial weights are so small that mistakes would not show
            generator = torch.Generator().manual_seed(7)
            torch.manual_seed(0)
            ours = Slit(small)
            for parameter in ours.parameters():
                if parameter.dim() > 1:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise * 0.03)
            if family == "slit":
                contestant.model.load_state_dict(ours.state_dict())
            else:
                contestant.model._copy(ours)
            losses = contestant.forward(batch)
        results[family] = {name: v.item() for name, v in losses.items()}
    first = results[families[0]]
    worst = max(
        abs(losses[name] - first[name]) for losses in results.values() for name in first
    )
    for family, losses in results.items():
        logger.info("losses of %-12s %s", family, losses)
    if not worst < 1e-4:
        raise SystemExit(
            f"the contestants' losses differ by {worst:.2e}, so they do not do the "
            f"same work: {results}"
        )
    return {"largest_difference": worst}


def peak_extra_mb(name: str, args: argparse.Namespace) -> float | None:
    """Peak memory of a step above the level between steps, in a fresh process."""
    command = [sys.executable, __file__, "--memory_of", name]
    for option in ("batch", "frames", "width", "layers", "dropout", "threads"):
        command += [f"--{option}", str(getattr(args, option))]
    command += ["--device", args.device, "--gather", args.gather]
    if args.lavis:
        command += ["--lavis", args.lavis]
    if args.gradient_checkpointing:
        command.append("--gradient_checkpointing")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        logger.warning("memory of %s not measured: %s", name, done.stderr[-300:])
        return None
    return json.loads(done.stdout.splitlines()[-1])["peak_extra_mb"]


def measure_memory(name: str, args: argparse.Namespace) -> None:
    """The child process of `peak_extra_mb`; writes JSON to stdout."""
    contestant = Contestant(name, args)
    batch = to_device(make_batch(args, args.batch), args.device)
    contestant.step(batch)
    if args.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contestant.step(batch)
        extra = torch.cuda.max_memory_allocated() - before
    else:
        contestant.optimizer.zero_grad(set_to_none=True)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _status_kb("VmRSS")
        contestant.step(batch)
        extra = (_status_kb("VmHWM") - before) * 1024
    sys.stdout.write(json.dumps({"peak_extra_mb": extra / 2**20}) + "\n")


def _status_kb(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"no {key} in /proc/self/status; measure on Linux")


def to_device(batch: dict, device: str) -> dict:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def report(
    times: dict[str, list[dict]], memory: dict, args: argparse.Namespace
) -> dict:
    """Medians, spreads and ratios to the reference contestants."""
    rows = {}
    for name, steps in times.items():
        row = {}
        for key in ("cpu_s", "wall_s"):
            values = [step[key] for step in steps]
            row[key] = {
                "median": statistics.median(values),
                "best": min(values),
                "worst": max(values),
            }
        row["peak_extra_mb"] = memory.get(name)
        rows[name] = row
    ratios = {}
    for name in times:
        for reference in ("lavis", "lavis_bf16", "lavis_medium", "transformers"):
            if reference in times and reference != name:
                # ratio round by round: neighbours in time share the machine's mood
                pairs = zip(times[name], times[reference], strict=True)
                values = sorted(a["cpu_s"] / b["cpu_s"] for a, b in pairs)
                entry = {
                    "cpu": statistics.median(values),
                    "cpu_lowest": values[0],
                    "cpu_highest": values[-1],
                }
                if memory.get(name) and memory.get(reference):
                    entry["memory"] = memory[name] / memory[reference]
                ratios[f"{name}/{reference}"] = entry
    return {
        "what": "stage-1 step: forward, backward, AdamW",
        "settings": {
            k: v for k, v in vars(args).items() if k not in ("output", "lavis")
        },
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        },
        "steps": rows,
        "ratios": ratios,
    }


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=496, help="10 s of BEATs")
    parser.add_argument("--width", type=int, default=768, help="of the frames")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--gather", default="detach", help="as LAVIS; see objectives")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--lavis", help="checkout of salesforce/LAVIS")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS)
    parser.add_argument("--no_memory", action="store_true")
    parser.add_argument("--memory_of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="JSON")
    return parser


def main(cmd: list[str] | None = None) -> None:
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    if args.lavis and not dist.is_initialized():
        # their forward asks for its rank without asking whether there is one
        store = tempfile.mkdtemp()
        dist.init_process_group(
            "gloo", init_method=f"file://{store}/store", rank=0, world_size=1
        )
    if args.memory_of:
        measure_memory(args.memory_of, args)
        return
    names = args.only or [n for n in CONTESTANTS if args.lavis or "lavis" not in n]
    if any("lavis" in name for name in names) and not args.lavis:
        raise SystemExit("give --lavis DIR, a checkout of salesforce/LAVIS")
    equal = check_equal(names, args)
    memory = {} if args.no_memory else {n: peak_extra_mb(n, args) for n in names}
    contestants = [Contestant(name, args) for name in names]
    batch = to_device(make_batch(args, args.batch), args.device)
    times: dict[str, list[dict]] = {name: [] for name in names}
    for turn in range(args.rounds + 1):
        for contestant in contestants:
            batch["seed"] = turn
            taken = contestant.step(batch)
            if turn:  # the first is a warm-up
                times[contestant.name].append(taken)
            if not math.isfinite(sum(contestant.losses.values())):
                raise SystemExit(f"{contestant.name}: losses {contestant.losses}")
            logger.info(
                "%d %-13s cpu %6.2f s  wall %6.2f s  %s",
                turn,
                contestant.name,
                taken["cpu_s"],
                taken["wall_s"],
                {n: round(v, 3) for n, v in contestant.losses.items()},
            )
    result = report(times, memory, args) | {"losses": equal}
    for name, entry in result["ratios"].items():
        logger.info("%-28s %s", name, {k: round(v, 3) for k, v in entry.items()})
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
