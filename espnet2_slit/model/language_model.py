"""One interface over Hugging Face language models that read audio as a soft prefix.

Owns the layout of the sequence (where prefix, prompt and target stand), padding sides,
the label shift, the loss, generation and the scoring of candidates. Loading is
`load_language_model`'s, freezing `frozen`'s, special tokens around texts
`prompt_encoder`'s, wording `templates`'.

Layout, one row; only the target is predicted:

    seq2seq   encoder: <head> prefix prompt          decoder: <start> target <eos>
    causal    <head> prefix prompt target <eos>

The head is what stands before a user's text; the prompt's ids carry what comes after.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espnet2_slit.common.identity import fingerprint
from espnet2_slit.common.padded import IGNORED, Padded, is_on_host
from espnet2_slit.data.prompt_encoder import PromptEncoder
from espnet2_slit.model.causal_decoding import CausalDecoder
from espnet2_slit.model.cpu_attention import use_fast_attention
from espnet2_slit.model.frozen import Frozen
from espnet2_slit.model.kv_cache import has_plain_layers, rows_of, select_rows
from espnet2_slit.model.lora import add_lora, merge_lora
from espnet2_slit.model.search import Search, TokenDecoder
from espnet2_slit.model.t5_decoding import T5Decoder, decodes_quickly

# Tokens before the audio from which on they are read once for all rows of a batch.
SHARED_HEAD = 8


@dataclass(frozen=True)
class GenerationOptions:
    """How to decode; nothing is taken from the model's own generation defaults.

    Args:
        num_beams: 1 for greedy search or plain sampling.
        max_new_tokens: longest answer.
        min_new_tokens: shortest answer, before the end-of-sequence token.
        length_penalty: above 0 prefers longer beams, below 0 shorter ones.
        repetition_penalty: of tokens generated before; 1 for none.
        no_repeat_ngram_size: among generated tokens; 0 for none.
        do_sample: sample instead of taking the best. The samples of a row then depend
            on the batch it is in; without sampling they do not.
        temperature: for sampling.
        top_p: for sampling; 1 keeps all.
        top_k: for sampling; 0 keeps all.
        seed: for sampling; None takes torch's current random state.
        rerank: texts of a row that `SLIT` chooses from by what its representation part
            thinks of them; 0 takes the most likely one.

    Raises:
        ValueError: an impossible number; more texts are wanted than beams are kept.
    """

    num_beams: int = 5
    max_new_tokens: int = 40
    min_new_tokens: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 50
    seed: int | None = None
    rerank: int = 0

    def __post_init__(self) -> None:
        least = dict(num_beams=1, max_new_tokens=1, min_new_tokens=0, rerank=0, top_k=0)
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ValueError(
                    f"{name}: expected {lowest} or more, found {getattr(self, name)}"
                )
        if self.rerank <= self.num_beams:
            return
        if self.do_sample and self.num_beams > 1:
            raise ValueError(
                f"rerank: {self.rerank} texts are sampled one by one, which needs "
                f"num_beams 1, found {self.num_beams}. Set num_beams: 1."
            )
        if not self.do_sample:
            raise ValueError(
                f"rerank: expected at most num_beams ({self.num_beams}) texts to "
                f"choose from, found {self.rerank}. Raise num_beams, or sample "
                "(do_sample, num_beams 1)."
            )


class LanguageModel(nn.Module):
    """A frozen language model, sequence-to-sequence or causal, with a soft prefix.

    Args:
        model: a transformers model with a language-model head.
        text: its tokenizer and the wording around texts.
        path: where it came from, as the user gave it.
        revision: of the Hub repository, if any.
        weights: file, folder or module that `fingerprint` digests; None for `model`.
        lora: keywords of `peft.LoraConfig` to train adapters in the frozen model; None
            for none. Their weights are parameters of this module, in float32.
        load_in_bits: how `model` was loaded, for `identity()`.

    Attributes:
        kind: "seq2seq" or "causal".
        width: D_l, of the embeddings that prefix vectors stand among.
        vocabulary: rows V of the output.
        eos_id: ends every target.
        pad_id: what padding is filled with; masks never depend on it.

    Raises:
        ValueError: tokenizer and model disagree.
        ImportError: lora is given and PEFT is not installed.
    """

    def __init__(
        self,
        model: nn.Module,
        text: PromptEncoder,
        *,
        path: str | Path = "",
        revision: str | None = None,
        weights: str | Path | nn.Module | None = None,
        lora: dict | None = None,
        load_in_bits: int | None = None,
    ):
        super().__init__()
        config = model.config
        tokenizer = text.tokenizer
        self.kind, self.text = text.kind, text
        self.path, self.revision = str(path), revision
        # In a tuple, since torch would register a module.
        self._weights = (model if weights is None else weights,)
        self.lora, self.load_in_bits = lora, load_in_bits
        embedding = model.get_input_embeddings().weight
        self.width = embedding.shape[1]
        self.vocabulary = model.get_output_embeddings().weight.shape[0]
        stop_ids = _check_ids(model, tokenizer, self.path)
        self.eos_id = tokenizer.eos_token_id
        self.pad_id = next(
            i
            for i in (tokenizer.pad_token_id, config.pad_token_id, self.eos_id)
            if i is not None
        )
        self._reset_generation(model, stop_ids)
        use_fast_attention(model)
        adapters = {} if lora is None else add_lora(model, lora)
        self.frozen = Frozen(model)
        # torch forbids dots in a parameter's own name.
        self.adapters = nn.ParameterDict(
            {name.replace(".", "/"): p.requires_grad_() for name, p in adapters.items()}
        )
        # Not in checkpoints: the tokenizer gives them.
        for name, ids in (("_head", text.head), ("_no_prompt", text.encode_prompt(""))):
            row = torch.tensor(ids, dtype=torch.long)
            self.register_buffer(name, row, persistent=False)
        self._shares_head = text.kind == "causal" and len(text.head) >= SHARED_HEAD
        self._reads_once = True  # for all beams; until a cache says that it cannot
        self._is_fixed = not self.adapters  # nothing in it will change
        self._heads: dict = {}  # of `_head_memory`: fixed, so once is enough

    # ------------------------------------------------------------------ text

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.text.tokenizer

    def encode_prompt(self, text: str) -> list[int]:
        """Ids that follow the prefix; see `PromptEncoder.encode_prompt`."""
        return self.text.encode_prompt(text)

    def encode_target(self, text: str) -> list[int]:
        """Ids to predict, EOS at the end; see `PromptEncoder.encode_target`."""
        return self.text.encode_target(text)

    # ------------------------------------------------------------------ loss

    def loss(
        self,
        prefix: Padded,
        prompt: Padded | None,
        target: Padded,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Negative log-likelihood of the targets; gradients reach the prefix.

        On a CPU logits are computed at positions that predict a token of a target and
        nowhere else; to leave out padding elsewhere would be a wait for the device.

        Args:
            prefix: (B, Q, D_l) in any floating dtype.
            prompt: (B, L) from `encode_prompt`, or None: the ids of an empty prompt.
            target: (B, L) from `encode_target`.

        Returns:
            Sum over all target tokens in nats (float32 scalar), their number (int64
            scalar), and how many of them were the most likely token (int64 scalar).
        """
        mask, target_ids = target.mask(), target.values
        rows, columns = _places(mask)
        memory = self._head_memory(len(target_ids))
        embedded, used = self._inputs(prefix, prompt, with_head=memory is None)
        if self.kind == "seq2seq":
            states, used = self._encode(embedded, used)
            start = target_ids.new_full((len(target_ids), 1), self._start_id)
            with self._project_only(rows, columns):
                output = self.frozen(
                    encoder_outputs=states,
                    attention_mask=used,
                    decoder_input_ids=torch.cat([start, target_ids[:, :-1]], dim=1),
                    use_cache=False,
                )
        else:
            embedded = torch.cat([embedded, self._embed(target_ids)], dim=1)
            first = used.sum(dim=1)  # of the target
            embedded = _align(embedded, torch.cat([used, mask], dim=1), "left")[0]
            # Padding is at the end, where causal attention keeps it from being seen:
            # no mask is needed and attention takes its fast path.
            with self._project_only(rows, first[rows] + columns - 1):
                output = self.frozen(
                    inputs_embeds=embedded,
                    use_cache=memory is not None,
                    **self._continuing(memory),
                )
        logits = self._projected(output.logits, len(rows))
        labels = target_ids.masked_fill(~mask, IGNORED)[rows, columns]
        total = nn.functional.cross_entropy(
            logits, labels, ignore_index=IGNORED, reduction="sum"
        )
        correct = (logits.detach().argmax(dim=-1) == labels).sum()
        return total, mask.sum(), correct

    # ------------------------------------------------------------ generation

    def generate(
        self,
        prefix: Padded,
        prompt: Padded | None = None,
        options: GenerationOptions | None = None,
    ) -> list[str]:
        """The most likely text of every row: the first of `generate_several`."""
        written = self.generate_several(prefix, prompt, options)
        return [texts[0] for texts in written]

    @torch.no_grad()
    def generate_several(
        self,
        prefix: Padded,
        prompt: Padded | None = None,
        options: GenerationOptions | None = None,
    ) -> list[list[str]]:
        """Texts for every row, by beam search, greedy search or sampling.

        Args:
            prefix: (B, Q, D_l).
            prompt: (B, L), or None: the ids of an empty prompt.
            options: None for the defaults.

        Returns:
            For each of B rows max(1, `options.rerank`) texts without special tokens and
            outer blanks; beams stand in their order, the best first.
        """
        options = options or GenerationOptions()
        seeded = options.do_sample and options.seed is not None
        device = prefix.values.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=seeded):
            if seeded:  # torch.manual_seed would seed devices that are not in use, too
                torch.default_generator.manual_seed(options.seed)
                for device in devices:
                    generator = torch.cuda.default_generators[device.index]
                    generator.manual_seed(options.seed)
            ids = self._write(prefix, prompt, options)
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        texts, count = [text.strip() for text in texts], max(1, options.rerank)
        return [texts[i : i + count] for i in range(0, len(texts), count)]

    def _write(
        self, prefix: Padded, prompt: Padded | None, options: GenerationOptions
    ) -> Any:
        """Ids of max(1, rerank) texts for each of B rows, in their order."""
        network, rules = self.frozen.module, self._logits_processors(options)
        stop_ids = network.generation_config.eos_token_id
        usual = (
            not options.do_sample and not network.generation_config.forced_bos_token_id
        )
        enough = (1 + len(stop_ids)) * options.num_beams <= self.vocabulary
        decode = None
        if usual and enough:
            decode = self._token_decoder(prefix, prompt, options.max_new_tokens)
        if decode is not None:
            search = Search(
                [self._start_id] if self.kind == "seq2seq" else [],
                stop_ids,
                options.max_new_tokens,
                options.min_new_tokens,
                options.num_beams,
                options.length_penalty,
                rules,
            )
            found = search.run(decode)
            return [ids for texts in found for ids in texts[: max(1, options.rerank)]]
        # Decoders continue at the right end, so their padding stands at the left.
        side = "left" if self.kind == "seq2seq" else "right"
        embedded, used = _align(*self._inputs(prefix, prompt), side)
        return network.generate(
            inputs_embeds=embedded,
            attention_mask=used.long(),
            generation_config=self._generation_config(options),
            logits_processor=rules,
        )

    def _token_decoder(
        self, prefix: Padded, prompt: Padded | None, steps: int
    ) -> TokenDecoder | None:
        """What `Search` asks, having read its clips; None: left to transformers."""
        if self.kind == "seq2seq":
            if not decodes_quickly(self.frozen.module):
                return None
            states, used = self._encode(*self._inputs(prefix, prompt))
            return T5Decoder(self.frozen.module, states[0], used, steps)
        if not self._reads_once:
            return None
        output, used = self._read(prefix, prompt)
        self._reads_once = has_plain_layers(output.past_key_values)
        if not self._reads_once:
            return None

        def go_on(cache: Any, **inputs: Tensor) -> Any:
            return self.frozen(**inputs, use_cache=True, **self._continuing(cache))

        return CausalDecoder(go_on, output, used)

    def _read(self, prefix: Padded, prompt: Padded | None) -> tuple[Any, Tensor]:
        """A causal model's output for head, prefix and prompt, with its cache.

        Returns:
            It, and (B, N) where the cache is real; logits are those of the last place.
        """
        memory = self._head_memory(len(prefix.values))
        embedded, used = self._inputs(prefix, prompt, with_head=memory is None)
        embedded, used = _align(embedded, used, "right")
        count = embedded.shape[1]
        if memory is not None:
            used = nn.functional.pad(used, (len(self._head), 0), value=True)
        output = self.frozen(
            inputs_embeds=embedded,
            attention_mask=used.long(),
            position_ids=(used.long().cumsum(dim=1) - 1).clamp(min=0)[:, -count:],
            use_cache=True,
            logits_to_keep=1,
            **self._continuing(memory),
        )
        return output, used

    @torch.no_grad()
    def embed_prompt(
        self, prefix: Padded, prompt: Padded | None = None
    ) -> list[Tensor]:
        """What the model reads of each row before it writes, without padding.

        Args:
            prefix: (B, Q, D_l).
            prompt: (B, L) ids, or None: those of an empty prompt.

        Returns:
            B tensors (N, D_l) in the model's dtype.
        """
        embedded, used = self._inputs(prefix, prompt)
        return [row[kept] for row, kept in zip(embedded, used.bool(), strict=True)]

    def _generation_config(self, options: GenerationOptions) -> Any:
        from transformers import GenerationConfig

        settings = dict(
            num_beams=options.num_beams,
            max_new_tokens=options.max_new_tokens,
            min_new_tokens=options.min_new_tokens,
            do_sample=options.do_sample,
            num_return_sequences=max(1, options.rerank),
        )
        if options.num_beams > 1:
            settings["length_penalty"] = options.length_penalty
        if options.do_sample:
            settings["temperature"] = options.temperature
            settings["top_p"] = options.top_p
            settings["top_k"] = options.top_k
        return GenerationConfig(**settings)

    def _logits_processors(self, options: GenerationOptions) -> Any:
        """Repetition rules over the tokens generated so far.

        As `generate` makes them itself, but for its repetition penalty leaving out as
        many generated tokens as a row has padding, because it takes them for the
        prompt, which it does not see when it is given embeddings.
        """
        from transformers import (
            LogitsProcessorList,
            NoRepeatNGramLogitsProcessor,
            RepetitionPenaltyLogitsProcessor,
        )

        rules = LogitsProcessorList()
        if options.repetition_penalty != 1.0:
            rules.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
        if options.no_repeat_ngram_size > 0:
            rules.append(NoRepeatNGramLogitsProcessor(options.no_repeat_ngram_size))
        return rules

    # ------------------------------------------------------------ candidates

    @torch.no_grad()
    def score_candidates(
        self,
        prefix: Padded,
        prompt: Padded | None,
        candidates: Padded,
        batch_size: int = 64,
    ) -> Tensor:
        """Log-likelihood of every candidate for every clip.

        Prefix and prompt go through the model once per clip; candidates continue from
        the keys and values kept.

        Args:
            prefix: (B, Q, D_l).
            prompt: (B, L), or None: the ids of an empty prompt.
            candidates: (C, L) from `encode_target`.
            batch_size: pairs of clip and candidate that are run at once.

        Returns:
            (B, C) float32 sums over tokens, EOS included, in nats; divide by
            the candidates' lengths for means per token.
        """
        clips_count = len(prefix.values)
        ids = candidates.values.to(prefix.values.device)
        if self.kind == "seq2seq":
            start = ids.new_full((clips_count, 1), self._start_id)
            states, used = self._encode(*self._inputs(prefix, prompt))
            output = self.frozen(
                encoder_outputs=states,
                attention_mask=used,
                decoder_input_ids=start,
                use_cache=True,
            )
        else:
            states = None
            output, used = self._read(prefix, prompt)
        first = output.logits[:, -1].float().log_softmax(dim=-1)  # (B, V)
        mask = candidates.mask().to(ids.device)
        lengths = mask.sum(dim=1).tolist()
        # Shortest first, all clips of a candidate together: little padding in a batch.
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        pairs = [(clip, c) for c in order for clip in range(clips_count)]
        scores = first.new_zeros(clips_count, len(ids))
        for i in range(0, len(pairs), batch_size):
            clips, chosen = torch.tensor(
                pairs[i : i + batch_size], device=first.device
            ).unbind(dim=1)
            longest = max(lengths[c] for _, c in pairs[i : i + batch_size])
            tokens = ids[chosen, :longest]  # (N, L)
            total = first[clips, tokens[:, 0]]
            if longest > 1:
                cache = select_rows(output.past_key_values, clips)
                real = mask[chosen, :longest]
                total = total + self._continue(tokens, real, cache, clips, used, states)
            scores[clips, chosen] = total
        return scores

    def _continue(
        self,
        tokens: Tensor,
        mask: Tensor,
        cache: Any,
        clips: Tensor,
        used: Tensor,
        states: Any,
    ) -> Tensor:
        """(N,) log-likelihoods of tokens (N, L) after the first, from a cache."""
        rows, columns = mask[:, 1:].nonzero(as_tuple=True)
        if self.kind == "seq2seq":
            inputs = dict(
                encoder_outputs=type(states)(last_hidden_state=states[0][clips]),
                attention_mask=used[clips],
                decoder_input_ids=tokens[:, :-1],
            )
        else:
            seen = used[clips]
            steps = torch.arange(tokens.shape[1] - 1, device=tokens.device)
            inputs = dict(
                inputs_embeds=self._embed(tokens[:, :-1]),
                attention_mask=torch.cat([seen, mask[:, :-1]], dim=1).long(),
                position_ids=seen.sum(dim=1, keepdim=True) + steps,
            )
        with self._project_only(rows, columns):
            output = self.frozen(**inputs, use_cache=True, **self._continuing(cache))
        logits = self._projected(output.logits, len(rows))
        losses = nn.functional.cross_entropy(
            logits, tokens[:, 1:][rows, columns], reduction="none"
        )
        return logits.new_zeros(len(tokens)).index_add(0, rows, -losses)

    # ------------------------------------------------------------- internals

    @property
    def _start_id(self) -> int:
        return self.frozen.module.generation_config.decoder_start_token_id

    def _embed(self, ids: Tensor) -> Tensor:
        return self.frozen.module.get_input_embeddings()(ids)

    def _continuing(self, cache: Any) -> dict[str, Any]:
        """Keyword of `forward` for a cache: transformers 5.24 renames it."""
        model = getattr(
            self.frozen.module, "get_base_model", lambda: self.frozen.module
        )()
        known = inspect.signature(model.forward).parameters
        return {"cache" if "cache" in known else "past_key_values": cache}

    def _head_memory(self, rows: int) -> Any:
        """Keys and values of the head for B rows, or None where it is read with each.

        It is the same for all: read once a batch while LoRA trains, else but once.
        Of a chat model's caption sample it is nearly half of the tokens: its part of a
        step takes 0.65 of the time, with LoRA 0.81 (bench/shared_head.py).
        """
        from transformers.cache_utils import DynamicCache

        if not self._shares_head:
            return None
        if not self._is_fixed and not is_on_host(self._head):
            return None  # more kernels to start in each step
        device = self._head.device
        cast = torch.is_autocast_enabled(device.type)
        key = (device, torch.get_autocast_dtype(device.type) if cast else None)
        cache = self._heads.get(key)
        if cache is None:
            trains = not self._is_fixed and torch.is_grad_enabled()
            with torch.set_grad_enabled(trains):
                head = self._embed(self._head)[None]
                reader = self.frozen.module.base_model  # without the vocabulary
                output = reader(inputs_embeds=head, use_cache=True)
            cache = getattr(output, "past_key_values", None)
            self._shares_head = has_plain_layers(cache)
            if not self._shares_head:
                return None
            if self._is_fixed:
                self._heads[key] = cache
        kept = [(layer.keys, layer.values) for layer in cache.layers]
        return DynamicCache([(rows_of(k, rows), rows_of(v, rows)) for k, v in kept])

    def _inputs(
        self, prefix: Padded, prompt: Padded | None, with_head: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(B, N, D_l) of [head,] prefix and prompt, (B, N) where they are real."""
        vectors = prefix.values
        if vectors.dim() != 3 or vectors.shape[2] != self.width:
            raise ValueError(
                f"prefix: expected (B, Q, {self.width}), found {tuple(vectors.shape)}"
            )
        rows, device = len(vectors), vectors.device
        if prompt is None:
            prompt = Padded(self._no_prompt.expand(rows, -1))
        head = self._embed(self._head if with_head else self._head[:0])
        head = head.expand(rows, -1, -1)
        prompt_vectors = self._embed(prompt.values.to(device))
        embedded = torch.cat([head, vectors.to(head.dtype), prompt_vectors], dim=1)
        real = torch.ones(rows, head.shape[1], dtype=torch.bool, device=device)
        return embedded, torch.cat([real, prefix.mask(), prompt.mask().to(device)], 1)

    def _encode(self, embedded: Tensor, used: Tensor) -> tuple[Any, Tensor]:
        """Run the encoder of a seq2seq model: its output and the mask as integers."""
        embedded, used = _align(embedded, used, "left")
        encoder = self.frozen.module.get_encoder()
        return encoder(inputs_embeds=embedded, attention_mask=used.long()), used.long()

    @contextlib.contextmanager
    def _project_only(self, rows: Tensor, columns: Tensor) -> Iterator[None]:
        """Within it the vocabulary projection runs on these positions only.

        The head sees one row of len(rows) positions; whatever a model does to logits
        after it (a bias, a cap) still happens, as its own forward does it.
        """
        head = self.frozen.module.get_output_embeddings()

        def pick(module: nn.Module, inputs: tuple) -> tuple:
            return (inputs[0][rows, columns].unsqueeze(0), *inputs[1:])

        handle = head.register_forward_pre_hook(pick)
        try:
            yield
        finally:
            handle.remove()

    def _projected(self, logits: Tensor, count: int) -> Tensor:
        """(1, N, V) logits of `_project_only` -> (N, V) float32."""
        if logits.shape[:2] != (1, count):
            raise RuntimeError(
                f"{type(self.frozen.module).__name__} does not apply its output layer "
                f"to hidden states alone: expected logits (1, {count}, V), found "
                f"{tuple(logits.shape)}. This model is not supported."
            )
        return logits.squeeze(0).float()

    def _reset_generation(self, model: nn.Module, stop_ids: list[int]) -> None:
        """Keep ids from the model's generation defaults, and nothing else."""
        from transformers import GenerationConfig

        old = model.generation_config
        model.generation_config = GenerationConfig(
            bos_token_id=old.bos_token_id,
            eos_token_id=stop_ids,
            pad_token_id=self.pad_id,
            decoder_start_token_id=_start_id(model, self.path),
            forced_bos_token_id=old.forced_bos_token_id,
        )

    def train(self, mode: bool = True) -> "LanguageModel":
        """Only the dropout of LoRA adapters follows `mode`."""
        super().train(mode)
        for name, module in self.frozen.module.named_modules():
            if name.endswith("lora_dropout"):
                module.train(mode)
        return self

    def merge_adapters(self) -> None:
        """For good: to write, not to train on; see `merge_lora`."""
        if self.adapters:
            merge_lora(self.frozen.module)
        self._is_fixed = True

    def identity(self) -> dict:
        """What was trained with: plain values to compare when a model is loaded."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        digest = hashlib.sha256(repr(vocabulary).encode())
        return {
            "kind": self.kind,
            "model_type": self.frozen.module.config.model_type,
            "path": self.path,
            "revision": self.revision,
            "fingerprint": fingerprint(self._weights[0]),
            "tokenizer_fingerprint": digest.hexdigest(),
            "width": self.width,
            "vocabulary": self.vocabulary,
            "dtype": str(self.frozen.dtype).removeprefix("torch."),
            "load_in_bits": self.load_in_bits,
            "lora": self.lora,
            "chat_template": self.text.uses_chat_template,
            # of plain lists, as it comes back from a config.yaml; None where none is
            "layout": self.text.layout
            and json.loads(json.dumps(asdict(self.text.layout))),
        }


# ------------------------------------------------- does the tokenizer fit the model


def _check_ids(model: nn.Module, tokenizer: Any, path: str) -> list[int]:
    """Ids that end a text; raises if tokenizer and model disagree on any id."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model {rows} rows "
            f"of embeddings, so ids from {rows} on have no vector. Use the tokenizer "
            "that was saved with the model."
        )
    eos = tokenizer.eos_token_id
    stop_ids: list[int] = []
    for source in (model.generation_config, model.config):
        value = getattr(source, "eos_token_id", None)
        values = value if isinstance(value, (list, tuple)) else [value]
        stop_ids += [i for i in values if i is not None and i not in stop_ids]
    if stop_ids and eos not in stop_ids:
        raise ValueError(
            f"{path}: the tokenizer ends texts with id {eos} "
            f"({tokenizer.eos_token!r}), the model stops at {stop_ids}: it would be "
            "trained to write an end that generation does not stop at. Correct "
            "eos_token_id in generation_config.json and config.json, or eos_token in "
            "tokenizer_config.json."
        )
    pads = tokenizer.pad_token_id, model.config.pad_token_id
    if None not in pads and pads[0] != pads[1]:
        raise ValueError(
            f"{path}: the tokenizer pads with id {pads[0]} ({tokenizer.pad_token!r}), "
            f"the model with {pads[1]} "
            f"({tokenizer.convert_ids_to_tokens(pads[1])!r}): finished rows of a batch "
            "would be filled with a token that decodes as text, or real tokens be "
            "taken for padding. Correct pad_token_id in config.json or pad_token in "
            "tokenizer_config.json."
        )
    return stop_ids or [eos]


def _start_id(model: nn.Module, path: str) -> int | None:
    """The id decoding starts with; None for causal models."""
    if not model.config.is_encoder_decoder:
        return None
    for source in (model.generation_config, model.config):
        value = getattr(source, "decoder_start_token_id", None)
        if value is not None:
            return value
    raise ValueError(
        f"{path}: a sequence-to-sequence model without decoder_start_token_id; its "
        "decoder has no first input. Set it in config.json."
    )


# --------------------------------------------------------------- tensors of sequences


def _places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of what is real; of everything where to ask would be a wait."""
    if is_on_host(mask):
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns
    count, longest = mask.shape
    steps = torch.arange(count * longest, device=mask.device)
    return steps // longest, steps % longest


def _align(embedded: Tensor, used: Tensor, side: str) -> tuple[Tensor, Tensor]:
    """Move what is used to one side of each row, in order, and padding to the other."""
    rank = used if side == "right" else ~used
    order = rank.to(torch.uint8).argsort(dim=1, stable=True)  # (B, N)
    index = order.unsqueeze(-1).expand_as(embedded)
    return embedded.gather(1, index), used.gather(1, order)
