#!/usr/bin/env python3
"""One step of stage 2 or of instruction tuning against a plain loop on the same T5.

A step is forward, backward and AdamW of a BERT-base Q-Former in front of a frozen T5
(FLAN-T5 base in shape, untrained) on given frames. Contestants take turns:

    slit           ours: `PromptedModel`, float32
    slit_bf16      the same with `precision: bfloat16`
    slit_bf16_sdpa slit_bf16 with PyTorch's attention in the language model
    plain          what LAVIS' blip2_t5_instruct does, written on transformers'
                   InstructBlipQFormerModel with our weights: the frames' LayerNorm in
                   the graph, keys and values of all frames in every layer, prompt and
                   target padded to the longest, T5's own loss over all positions
    plain_bf16     the same under bfloat16 autocast

Before the clock starts their losses (no dropout) must agree to 1e-4 of their size. The
floating point operations of their matrix products are counted: in float32, where these
take nearly all of the time, a step can gain no more than they differ by.

    python bench/generative_step.py --output generative.json
    python bench/generative_step.py --stage generative --batch 4 --rounds 5
"""

import argparse
import contextlib
import tempfile

import torch
import transformers
from alternate import alternate, clock, count_flops, machine, ratio, spread, write
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn

from espnet2_slit.data.prompt_encoder import PromptEncoder
from espnet2_slit.model.cpu_attention import NAME
from espnet2_slit.model.espnet_model import PromptedModel
from espnet2_slit.model.language_model import LanguageModel
from espnet2_slit.model.qformer import QFormer
from espnet2_slit.model.qformer_weights import export_to_transformers

CONTESTANTS = (
    "slit",
    "slit_bf16",
    "slit_bf16_sdpa",
    "plain",
    "plain_bf16",
)
QFORMER_VOCAB, BOS, T5_VOCAB = 30523, 30522, 32128


def get_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--stage", default="instruction", choices=("generative", "instruction")
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, default=496, help="10 s of BEATs")
    parser.add_argument("--layers", type=int, default=12, help="of Q-Former and T5")
    parser.add_argument("--dropout", type=float, default=0.1, help="of the Q-Former")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS)
    )
    parser.add_argument("--output", help="JSON; a plot goes beside it")
    return parser


def make_batch(args: argparse.Namespace) -> dict:
    """Frames, instructions of 8-16 tokens, targets of 10-30."""
    generator = torch.Generator().manual_seed(0)

    def texts(shortest: int, longest: int, vocabulary: int) -> tuple[Tensor, Tensor]:
        lengths = torch.randint(
            shortest, longest + 1, (args.batch,), generator=generator
        )
        shape = args.batch, int(lengths.max())
        ids = torch.randint(1000, vocabulary, shape, generator=generator)
        return ids * (torch.arange(shape[1]) < lengths[:, None]), lengths

    feats = torch.randn(args.batch, args.frames, 768, generator=generator)
    content = {
        "feats": feats,
        "feats_lengths": torch.full((args.batch,), args.frames),
    }
    wanted = [("llm_target", (10, 30, T5_VOCAB))]
    if args.stage == "instruction":
        wanted += [
            ("llm_prompt", (8, 16, T5_VOCAB)),
            ("qformer_instruction", (8, 16, QFORMER_VOCAB)),
        ]
    for name, limits in wanted:
        content[name], content[f"{name}_lengths"] = texts(*limits)
    return {name: tensor.to(args.device) for name, tensor in content.items()}


def t5(layers: int) -> LanguageModel:
    """FLAN-T5 base in shape, frozen, untrained, with a stand-in tokenizer."""
    config = transformers.T5Config(
        vocab_size=T5_VOCAB,
        d_model=768,
        d_ff=2048,
        num_layers=layers,
        num_heads=12,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    words = ("<pad>", "</s>", "<unk>", "a", "dog", "barks")
    vocabulary = {word: i for i, word in enumerate(words)}
    splitter = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    splitter.pre_tokenizer = Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=splitter,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    return LanguageModel(model, PromptEncoder(tokenizer, "seq2seq", "t5"))


def our_model(args: argparse.Namespace) -> PromptedModel:
    """Of this stage, random weights."""
    torch.manual_seed(0)
    qformer = QFormer(
        768,
        QFORMER_VOCAB,
        layers=args.layers,
        dropout=args.dropout,
        bos_id=BOS,
        language_head=False,
    )
    instructed = args.stage == "instruction"
    return PromptedModel(qformer, t5(args.layers), instructed=instructed)


class Plain(nn.Module):
    """The same loss as one would first write it; shares our frozen T5.

    Args:
        ours: whose weights to copy.
    """

    def __init__(self, ours: PromptedModel):
        super().__init__()
        mine = ours.qformer
        with tempfile.TemporaryDirectory() as folder:
            export_to_transformers(mine, folder)
            kind = transformers.InstructBlipQFormerModel
            self.qformer = kind.from_pretrained(folder)
        self.instructed = mine.embedding.word.weight.requires_grad
        for module in self.qformer.modules():
            if isinstance(module, nn.Dropout):
                module.p = mine.embedding_dropout.p
        self.query_tokens = nn.Parameter(mine.query_tokens.detach()[None].clone())
        self.frame_norm = nn.LayerNorm(mine.encoder_width)
        self.projection = nn.Linear(mine.width, ours.language_model.width)
        self.projection.load_state_dict(ours.language_projection.state_dict())
        self.t5 = [ours.language_model.frozen.module]  # a list: not trained, not copied
        self.no_prompt = ours.language_model.encode_prompt("")

    def forward(self, batch: dict) -> Tensor:
        """Mean loss of the target tokens."""

        def mask(name: str) -> Tensor:
            columns = torch.arange(batch[name].size(1), device=batch[name].device)
            return (columns < batch[f"{name}_lengths"][:, None]).long()

        frames = self.frame_norm(batch["feats"])
        count, rows = len(frames), self.query_tokens.size(1)
        queries = self.query_tokens.expand(count, -1, -1)
        ones = torch.ones(count, rows, dtype=torch.long, device=frames.device)
        t5, embed = self.t5[0], self.t5[0].get_input_embeddings()
        if self.instructed:
            output = self.qformer(
                input_ids=batch["qformer_instruction"],
                attention_mask=torch.cat((ones, mask("qformer_instruction")), 1),
                query_embeds=queries,
                encoder_hidden_states=frames,
            )
        else:
            output = self.qformer(
                input_ids=None, query_embeds=queries, encoder_hidden_states=frames
            )
        inputs = self.projection(output.last_hidden_state[:, :rows])
        if self.instructed:
            prompt, used = batch["llm_prompt"], mask("llm_prompt")
        else:
            prompt = ones.new_tensor([self.no_prompt] * count)
            used = torch.ones_like(prompt)
        inputs = torch.cat((inputs, embed(prompt)), 1)
        seen = mask("llm_target")
        labels = batch["llm_target"].masked_fill(seen == 0, -100)
        return t5(
            inputs_embeds=inputs,
            attention_mask=torch.cat((ones, used), 1),
            decoder_attention_mask=seen,
            labels=labels,
        ).loss


class Racer:
    """A model with its optimizer; number formats share both.

    Args:
        model: ours or `Plain`.
        args: of the command line.
    """

    def __init__(self, model: nn.Module, args: argparse.Namespace):
        self.model = model.to(args.device).train()
        self.device, self.is_plain = args.device, isinstance(model, Plain)
        # One language model for all: whose turn it is sets its attention.
        self.t5 = model.t5[0] if self.is_plain else model.language_model.frozen.module
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained, lr=1e-6, fused=None if self.is_plain else True
        )

    def loss(self, batch: dict, mode: str = "") -> Tensor:
        """Mode "", "bf16" or "bf16_sdpa"."""
        plain_attention = self.is_plain or mode == "bf16_sdpa"
        self.t5.set_attn_implementation("sdpa" if plain_attention else NAME)
        if self.is_plain:
            kind = torch.autocast(self.device, torch.bfloat16)
            with kind if mode == "bf16" else contextlib.nullcontext():
                return self.model(batch)
        self.model.precision = "bfloat16" if mode.startswith("bf16") else "float32"
        return self.model(**batch)[0]

    def step(self, batch: dict, mode: str) -> None:
        """Forward, backward, AdamW."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch, mode)
        loss.backward()
        self.optimizer.step()
        if not loss.isfinite():
            raise SystemExit(f"loss of {type(self.model).__name__}: {loss.item()}")


@torch.no_grad()
def check_equal(racers: dict[str, Racer], batch: dict) -> float:
    """Largest difference of the losses, float32, without dropout."""
    losses = {}
    for name, racer in racers.items():
        racer.model.eval()
        losses[name] = racer.loss(batch).item()
        racer.model.train()
        if racer.is_plain:
            racer.model.t5[0].eval()
    print(f"losses: {losses}")
    difference = max(losses.values()) - min(losses.values())
    if not difference < 1e-4 * max(1.0, *losses.values()):
        raise SystemExit(f"the losses differ, so this is not the same work: {losses}")
    return difference


def main() -> None:
    """Check, race, print, write."""
    args = get_parser().parse_args()
    torch.set_num_threads(args.threads)
    batch = make_batch(args)
    ours = our_model(args)
    racers = {"plain": Racer(Plain(ours), args), "slit": Racer(ours, args)}
    difference = check_equal(racers, batch)
    flops = {name: count_flops(r.step, batch, "") for name, r in racers.items()}
    runs = {}
    for name in args.only:
        family, _, mode = name.partition("_")
        runs[name] = lambda r=racers[family], m=mode: r.step(batch, m)
    times, _ = alternate(runs, args.rounds, args.device)
    key = clock(args.device)
    ratios = {
        f"{name}/{peer}": ratio(times, name, peer, key)
        for name in args.only
        for peer in args.only
        if name != peer and peer in ("plain", "plain_bf16", "slit_bf16_sdpa")
    }
    print(f"TFLOP in matrix products: { {k: v / 1e12 for k, v in flops.items()} }")
    for name, found in ratios.items():
        print(f"{name:<28}{ {k: round(v, 3) for k, v in found.items()} }")
    if args.output:
        result = {
            "what": f"{args.stage} step: forward, backward, AdamW",
            "settings": vars(args),
            "machine": machine(args.device),
            "losses_differ_by": difference,
            "flops": flops,
            "times": times,
            "time_ratios": ratios,
        }
        bars = {name: spread([t[key] for t in times[name]]) for name in args.only}
        write(result, args.output, bars, f"{key} of a step, batch {args.batch}")


if __name__ == "__main__":
    main()
