#!/usr/bin/env python3
"""What a full-size config costs: parameters, memory, and the time of a training step.

    python tools/dry_run.py                        all of conf/full, one CPU step each
    python tools/dry_run.py train_generative_flan_t5_xl.yaml --batch 2
    python tools/dry_run.py --device cuda --batch 64 --steps 10 --limit_gib 70

Nothing is downloaded: sizes are in architectures.json, nothing is trained. Language
models and Q-Formers are counted on the meta device. Activations are measured: the bytes
that autograd keeps for the backward pass of a small batch, in the config's number
format. The Q-Former is measured whole, the language model on small ones of its widths,
since its layers are alike. A step (forward, backward, AdamW) is timed where all fits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from espnet2_slit.common.padded import Padded

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "egs2" / "slit" / "slit1" / "conf" / "full"
ARCHITECTURES = json.loads((HERE / "architectures.json").read_text())
GIB, MIB = 1 << 30, 1 << 20
BERT_VOCABULARY = 30523  # bert-base-uncased and [DEC]
CAPTION = 24  # tokens: the mean of AudioCaps and Clotho captions, rounded up
FRAMES_PER_SECOND = 50.0  # of BEATs
INSTRUCTION = 16  # tokens of an instruction, with its marks
DECODING_BATCH, BEAMS, NEW_TOKENS = 16, 5, 40
STAGES = ("representation", "generative", "instruction")


def main() -> None:
    """Print a report for every config."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", help="files, or names in conf/full")
    parser.add_argument("--batch", type=int, default=2, help="clips of the timed step")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each clip")
    parser.add_argument(
        "--limit_gib", type=float, default=20.0, help="memory a timed step may take"
    )
    parser.add_argument("--no_step", action="store_true", help="count, do not time")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--steps", type=int, default=1, help="timed, after one to warm up"
    )
    parser.add_argument(
        "--language_model", default="", help="another one of architectures.json"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    files = [_find(name) for name in options.configs] or sorted(CONFIGS.glob("*.yaml"))
    for file in files:
        report(file, options)


def _find(name: str) -> Path:
    for file in (Path(name), CONFIGS / name):
        if file.is_file():
            return file
    known = ", ".join(sorted(file.name for file in CONFIGS.glob("*.yaml")))
    sys.exit(f"expected a config file, found none at {name}; in conf/full: {known}")


# ------------------------------------------------------------------------ building


@dataclass
class Plan:
    """One config, and what of it the dry run needs.

    Args:
        stage: representation, generative or instruction.
        conf: the YAML's content.
        language_model: name in architectures.json, "" for none.
    """

    stage: str
    conf: dict
    language_model: str

    @property
    def amp(self) -> bool:
        """True if training runs under bfloat16 autocast."""
        return bool(self.conf.get("use_amp"))

    def encoder(self, folder: str = "") -> torch.nn.Module:
        """The audio encoder with random weights; through a checkpoint in `folder`."""
        from espnet2_slit.common.compat import BeatsEncoder

        if self.conf.get("audio_encoder") != "beats":
            sys.exit(f"audio_encoder: expected beats, found {self.conf}")
        cfg = ARCHITECTURES["beats"]
        module = BeatsEncoder(input_size=1, beats_config=cfg)
        if not folder:
            return module
        from espnet2_slit.model.audio_encoder import build_audio_encoder

        path = Path(folder) / "beats.pt"
        torch.save({"cfg": cfg, "model": module.state_dict()}, path)
        conf = self.conf.get("audio_encoder_conf") or {}
        return build_audio_encoder("beats", path=path, **conf)

    def lm(self, layers: int | None = None, vocabulary: int | None = None):
        """The frozen language model, untrained, with a stand-in tokenizer."""
        import transformers

        from espnet2_slit.data.prompt_encoder import PromptEncoder
        from espnet2_slit.model.language_model import LanguageModel

        facts = dict(ARCHITECTURES[self.language_model])
        if layers is not None:
            for name in ("num_layers", "num_decoder_layers", "num_hidden_layers"):
                if name in facts:
                    facts[name] = layers
        if vocabulary is not None:
            ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
            facts |= {"vocab_size": vocabulary} | {n: ids[n] for n in ids if n in facts}
        config = transformers.AutoConfig.for_model(**facts)
        if config.is_encoder_decoder:
            automatic = transformers.AutoModelForSeq2SeqLM
        else:
            automatic = transformers.AutoModelForCausalLM
        conf = self.conf.get("language_model_conf") or {}
        dtype = getattr(torch, conf.get("dtype", "float32"))
        # Neither bytes nor times depend on the weights' values, and drawing billions of
        # them takes minutes.
        device = torch.get_default_device()
        with torch.device("meta"):
            model = automatic.from_config(config, dtype=dtype)
            if not facts.get("tie_word_embeddings", True):
                # T5's class ties whatever it is told; FLAN-T5's files do not.
                head = model.get_output_embeddings()
                head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
        if device.type != "meta":
            model.to_empty(device=device)
            for tensor in _tensors(model):
                tensor.data.fill_(0.01)
        kind = "seq2seq" if config.is_encoder_decoder else "causal"
        text = PromptEncoder(_tokenizer(facts), kind, self.language_model)
        return LanguageModel(model, text, lora=conf.get("lora"))

    def model(self, lm=None) -> torch.nn.Module:
        """The model of this stage on cached frames of BEATs."""
        from espnet2_slit.model import espnet_model
        from espnet2_slit.model.frame_stack import build_frame_stack
        from espnet2_slit.model.qformer import QFormer

        representation = self.stage == "representation"
        instruction = self.stage == "instruction"
        preprocessor = self.conf.get("preprocessor_conf") or {}
        model_conf = self.conf.get("model_conf") or {}
        text_branch = (
            preprocessor.get("qformer_instruction", True)
            if instruction
            else representation or model_conf.get("carry_text_branch", True)
        )
        width = ARCHITECTURES["beats"]["encoder_embed_dim"]
        kind = self.conf.get("connector", "qformer")
        if kind != "qformer":
            conf = self.conf.get("connector_conf") or {}
            connector = build_frame_stack(kind, width, **conf)
            model_conf = model_conf | dict(connector=connector, instructed=instruction)
            return espnet_model.PromptedModel(None, lm or self.lm(), **model_conf)
        settings = dict(
            max_windows=8, frames_per_window=496, frames_per_second=FRAMES_PER_SECOND
        )
        settings |= self.conf.get("qformer_conf") or {}
        qformer = QFormer(
            encoder_width=width,
            vocab_size=BERT_VOCABULARY,
            bos_id=BERT_VOCABULARY - 1,
            text_branch=text_branch,
            language_head=representation,
            **settings,
        )
        if representation:
            return espnet_model.RepresentationModel(qformer, **model_conf)
        return espnet_model.PromptedModel(
            qformer, lm or self.lm(), instructed=instruction, **model_conf
        )


def _tokenizer(facts: dict):
    """A tokenizer with the real ids of the special tokens and three words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
    ids = {name: facts.get(f"{name}_id") for name in names}
    vocabulary, special = {}, {}
    for name, text in names.items():
        if ids[name] is not None:
            # Qwen's padding is its bos, OPT's end its bos: one token, one text.
            same = [t for t, i in vocabulary.items() if i == ids[name]]
            special[name] = same[0] if same else text
            vocabulary[special[name]] = ids[name]
    free = (i for i in range(100, 200) if i not in vocabulary.values())
    vocabulary |= dict(zip(("a", "dog", "barks", "<unk>"), free, strict=False))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", **special
    )


def frames_of(seconds: float) -> int:
    """Frames of BEATs."""
    return (int(seconds * 16000) - 240) // 2560 * 8


def prefix_vectors(plan: Plan, seconds: float) -> int:
    """Vectors that a clip becomes in the language model's input."""
    frames = frames_of(seconds)
    if plan.conf.get("connector", "qformer") != "qformer":
        return -(-frames // (plan.conf.get("connector_conf") or {}).get("stack", 8))
    conf = plan.conf.get("qformer_conf") or {}
    window = round(conf.get("query_window_s", 0.0) * FRAMES_PER_SECOND) or frames
    return -(-frames // window) * conf.get("num_queries", 32)


def batch_of(plan: Plan, batch: int, seconds: float) -> dict[str, torch.Tensor]:
    """A training batch of cached frames and texts of usual length."""
    length = frames_of(seconds)
    frames = torch.randn(batch, length, ARCHITECTURES["beats"]["encoder_embed_dim"])

    def text(name: str, length: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(100, 200, (batch, length))
        return {name: ids, f"{name}_lengths": torch.full((batch,), length)}

    arrays = {"feats": frames, "feats_lengths": torch.full((batch,), length)}
    if plan.stage == "representation":
        names = torch.arange(batch).unsqueeze(1)
        return (
            arrays | text("qformer_text", CAPTION) | dict(clip_id=names, text_id=names)
        )
    arrays |= text("llm_target", CAPTION)
    if plan.stage == "instruction":
        arrays |= text("llm_prompt", INSTRUCTION)
        arrays |= text("qformer_instruction", INSTRUCTION)
    return arrays


# ----------------------------------------------------------------------- measuring


def parameters(module: torch.nn.Module) -> int:
    """Number of weights, tied ones once."""
    return sum(p.numel() for p in module.parameters())


def size(module: torch.nn.Module) -> int:
    """Bytes of all weights and buffers."""
    return sum(t.numel() * t.element_size() for t in _tensors(module))


def _tensors(module: torch.nn.Module):
    yield from module.parameters()
    yield from module.buffers()


def autocast(plan: Plan, device: str = "cpu"):
    """The config's number format."""
    return torch.autocast(device, torch.bfloat16, enabled=plan.amp)


def kept_bytes(plan: Plan, compute, modules) -> int:
    """Bytes that autograd keeps for backward, weights not counted."""
    own = {t.untyped_storage().data_ptr() for m in modules for t in _tensors(m)}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with autocast(plan), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = compute()  # alive until counted, or memory would be used twice
    del result
    return sum(kept.values())


def activation_bytes(plan: Plan, lm, seconds: float) -> tuple[float, float]:
    """Bytes per clip kept by the Q-Former, and by the language model."""
    model = plan.model(lm).train()

    def queries(batch: int):
        inputs = batch_of(plan, batch, seconds)
        if plan.stage == "representation":
            return model(**inputs)
        return model.prefix(
            _padded(inputs, "feats"), _padded(inputs, "qformer_instruction")
        )

    qformer = _growth(plan, queries, [model])
    if lm is None:
        return qformer, 0.0
    facts = ARCHITECTURES[plan.language_model]
    layers = facts.get("num_layers", facts.get("num_hidden_layers"))
    # Activations are a constant, so much per layer, and so much per logit: small models
    # tell them, where a whole one would not fit.
    base, deeper, wider = (
        _lm_growth(plan, *sizes, prefix_vectors(plan, seconds), seconds)
        for sizes in ((1, 1000), (2, 1000), (1, 2000))
    )
    per_layer, per_word = deeper - base, (wider - base) / 1000
    words = facts["vocab_size"] - 1000
    return qformer, base + (layers - 1) * per_layer + words * per_word


def _lm_growth(plan: Plan, layers: int, words: int, queries: int, seconds: float):
    """`_growth` of a small language model's loss."""
    lm = plan.lm(layers, words)

    def loss(batch: int):
        inputs = batch_of(plan, batch, seconds)
        prefix = torch.randn(batch, queries, lm.width).requires_grad_()
        texts = (_padded(inputs, name) for name in ("llm_prompt", "llm_target"))
        return lm.loss(Padded(prefix), *texts)

    return _growth(plan, loss, [lm, lm.frozen.module])


def _padded(inputs: dict[str, torch.Tensor], name: str) -> Padded | None:
    """One field of a batch with its lengths; None if it has none."""
    if name not in inputs:
        return None
    return Padded(inputs[name], inputs[f"{name}_lengths"])


def _growth(plan: Plan, compute, modules) -> float:
    """Kept bytes by which one more clip makes the batch larger."""
    few, more = (kept_bytes(plan, lambda b=b: compute(b), modules) for b in (2, 3))
    return float(more - few)


def cache_bytes(plan: Plan, seconds: float) -> int:
    """Keys and values of the language model while a batch is decoded with beams."""
    facts = ARCHITECTURES[plan.language_model]
    context = prefix_vectors(plan, seconds) + INSTRUCTION + NEW_TOKENS
    if facts["model_type"] == "t5":  # self-attention of new tokens, cross of the rest
        layers, heads, width = facts["num_decoder_layers"], facts["num_heads"], 64
    else:
        layers = facts["num_hidden_layers"]
        heads = facts.get("num_key_value_heads", facts["num_attention_heads"])
        width = facts["hidden_size"] // facts["num_attention_heads"]
    dtype = (plan.conf.get("language_model_conf") or {}).get("dtype", "float32")
    each = 4 if dtype == "float32" else 2
    return DECODING_BATCH * BEAMS * context * layers * heads * width * 2 * each


def available_bytes() -> int:
    """Memory that this machine could give now."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")


def available_gpu_bytes() -> int:
    """Memory that the GPU could give now."""
    return torch.cuda.mem_get_info()[0]


def step_seconds(
    plan: Plan, batch: int, seconds: float, device: str = "cpu", steps: int = 1
) -> tuple[float, float, int]:
    """Wall and CPU seconds of a training step, and the peak of a GPU's memory in it.

    The mean of some steps after one to warm up.
    """
    with torch.device(device):
        model = plan.model().train()
        inputs = batch_of(plan, batch, seconds)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05, fused=True)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for number in range(1 + steps):
        if number == 1:
            wait()
            wall, cpu = time.perf_counter(), time.process_time()
        with autocast(plan, device):
            loss = model(**inputs)[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wait()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if not torch.isfinite(loss):
        raise RuntimeError(f"the loss of the step is {loss.item()}")
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return wall / steps, cpu / steps, peak


# ------------------------------------------------------------------------ reporting


def report(file: Path, options: argparse.Namespace) -> None:
    """Print what one config costs."""
    conf = yaml.safe_load(file.read_text(encoding="utf-8"))
    stage = conf["model"]
    name = options.language_model or conf.get("language_model", "")
    if stage not in STAGES or (stage != "representation" and name not in ARCHITECTURES):
        sys.exit(
            f"{file}: expected a model of {', '.join(STAGES)} and a language model of "
            f"tools/architectures.json, found {stage!r} and {name!r}"
        )
    plan = Plan(stage, conf, "" if stage == "representation" else name)
    with _quiet():
        encoder = plan.encoder()  # draws its weights on the CPU, whatever one asks
    with torch.device("meta"), _quiet():
        lm = plan.lm() if plan.language_model else None
        model = plan.model(lm)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    carried = parameters(model) - trained
    states = 16 * trained + 4 * carried  # float32 weight, gradient, two of AdamW
    frozen = size(lm.frozen.module) if lm else 0
    line(f"{file.name}", "")
    line("trained", f"{trained / 1e6:,.1f} M parameters")
    if carried:
        line("carried along, not trained", f"{carried / 1e6:,.1f} M")
    if lm:
        lm_count = parameters(lm.frozen.module)
        line(f"frozen {name}", f"{lm_count / 1e6:,.1f} M, {lm.frozen.dtype}")
    line("frozen BEATs", f"{parameters(encoder) / 1e6:,.1f} M (not built on a cache)")
    qformer_bytes, lm_bytes = activation_bytes(plan, lm, options.seconds)
    per_clip = qformer_bytes + lm_bytes
    batch = conf["batch_size"]
    training = states + frozen + batch * per_clip
    line(
        "kept for backward, per clip",
        f"{per_clip / MIB:,.0f} MiB (Q-Former {qformer_bytes / MIB:,.0f}, language "
        f"model {lm_bytes / MIB:,.0f})",
    )
    line(
        f"training, one GPU, batch {batch}",
        f"{training / GIB:,.1f} GiB = weights and AdamW {states / GIB:,.1f} + frozen "
        f"{frozen / GIB:,.1f} + batch {batch * per_clip / GIB:,.1f}",
    )
    cache = cache_bytes(plan, options.seconds) if lm else 0
    decoding = 4 * (trained + carried) + frozen + size(encoder) + cache
    beams = f", {BEAMS} beams" if lm else ""
    line(f"decoding, batch {DECODING_BATCH}{beams}", f"{decoding / GIB:,.1f} GiB")
    need = states + frozen + options.batch * per_clip
    print_step(plan, options, need)
    print(flush=True)


def print_step(plan: Plan, options: argparse.Namespace, need: float) -> None:
    """Time a step if it fits, or say why not."""
    on_gpu = options.device == "cuda"
    kind = "GPU" if on_gpu else "CPU"
    label = f"{kind} step, {options.batch} clips of {options.seconds:g} s"
    room = available_gpu_bytes() if on_gpu else available_bytes()
    room = min(options.limit_gib * GIB, room)
    if options.no_step:
        line(label, "not run: --no_step")
    elif need > room:
        line(label, f"not run: needs {need / GIB:.1f} GiB, has {room / GIB:.1f}")
    else:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with _quiet():
            wall, cpu, peak = step_seconds(
                plan, options.batch, options.seconds, options.device, options.steps
            )
        threads = torch.get_num_threads()
        if on_gpu:
            rate, name = options.batch / wall, torch.cuda.get_device_name()
            line(label, f"{wall:.3f} s, {rate:.0f} clips a second ({name})")
            line("peak memory of that step", f"{peak / GIB:.1f} GiB")
        else:
            line(label, f"{wall:.1f} s, {cpu:.1f} CPU seconds ({threads} threads)")
    if plan.stage == "representation" and not options.no_step:
        with _quiet(), tempfile.TemporaryDirectory() as folder:
            encoder = plan.encoder(folder).to(options.device)
            samples = int(options.seconds * encoder.sample_rate)
            speech = torch.randn(options.batch, samples, device=options.device) * 0.1
            lengths = torch.full((options.batch,), samples)
            for _ in range(1 + on_gpu):  # a GPU's first call takes long
                start = time.perf_counter()
                frames = encoder(speech, lengths)[0]
                frames[0, 0, 0].item()  # waits for the device
                wall = time.perf_counter() - start
        line(
            f"{kind} encoding, {options.batch} clips",
            f"{wall:.2f} s, {frames.shape[1]} frames",
        )


def line(label: str, value: str) -> None:
    """One line of the report."""
    print(f"{label:<34} {value}".rstrip(), flush=True)


@contextlib.contextmanager
def _quiet():
    import logging

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


if __name__ == "__main__":
    main()
