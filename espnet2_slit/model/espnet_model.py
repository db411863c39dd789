"""The three training stages as ESPnet models: each forward reads like its figure.

Owns how the parts meet (frames -> Q-Former -> heads or language model), the named
losses and the statistics. It leaves networks to `qformer`, losses to `objectives`,
the frozen parts to `audio_encoder` and `language_model`.

Loss convention: see `ranks`. The weight that a model returns is its local batch
size, so ESPnet's Trainer makes W ranks of B/W equal one rank of B. The keys of `stats`
are the same on every rank, at every step, in training and validation.
"""

from contextlib import nullcontext
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_slit.common import compat
from espnet2_slit.common.padded import IGNORED, Padded
from espnet2_slit.common.precision import autocast, check_precision
from espnet2_slit.model.attention import attention_weights
from espnet2_slit.model.frame_stack import FrameStack
from espnet2_slit.model.objectives import (
    ContrastiveOutput,
    RepresentationHeads,
    contrastive,
    generation,
    matching,
    sample_negative_pairs,
)
from espnet2_slit.model.qformer import QFormer
from espnet2_slit.model.qformer_layers import FrameKV
from espnet2_slit.model.ranks import fetch, gather_memory, gather_rows, global_mean

compat.prepare_espnet_import()

from espnet2.torch_utils.device_funcs import force_gatherable  # noqa: E402
from espnet2.train.abs_espnet_model import AbsESPnetModel  # noqa: E402

# A loss above this multiple of its running mean is counted as a spike.
SPIKE_RATIO = 3.0
RUNNING_MEAN_DECAY = 0.98  # about the last 50 steps


class SLITModel(AbsESPnetModel):
    """What the three stages share: audio in, health watch, ESPnet's return value.

    Args:
        qformer: the trained Q-Former; None in a model without one.
        audio_encoder: frozen encoder (its parameters, if any, weight its layers);
            None if frames come from the feature cache.
        precision: "float32", or "bfloat16": forward runs under autocast, also on a CPU,
            where ESPnet's --use_amp does nothing; or "auto": bfloat16 where the
            hardware has it. Weights stay float32.
    """

    # ESPnet's switch: nothing is normalised by statistics here, so that its
    # collect-stats stage never needs the model.
    extract_feats_in_collect_stats = False
    # Weights of other stages' models that this one may be given and has no use for,
    # and parts that an earlier stage does not have (see checkpoint.load_init_params).
    ignored_keys: Tuple[str, ...] = ()
    new_keys: Tuple[str, ...] = ()

    def __init__(
        self,
        qformer: Optional[QFormer],
        audio_encoder: Optional[nn.Module] = None,
        precision: str = "float32",
    ):
        super().__init__()
        check_precision(precision, option="model_conf.precision")
        self.precision = precision
        self.qformer: Any = qformer  # None in a model without one
        self.audio_encoder = audio_encoder
        # of this process, for the watch alone: not in checkpoints, not broadcast
        self._running_loss: Optional[Tensor] = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """forward, in the configured precision."""
        # in float32 the Trainer's own autocast decides
        with autocast(self.precision, next(self.parameters()).device):
            return super().__call__(*args, **kwargs)

    def encode_audio(
        self,
        speech: Optional[Tensor] = None,
        speech_lengths: Optional[Tensor] = None,
        feats: Optional[Tensor] = None,
        feats_lengths: Optional[Tensor] = None,
        **unused: Any,
    ) -> Padded:
        """Frames of the frozen encoder, computed here or before.

        Args:
            speech: (B, S) in [-1, 1] at the encoder's rate; or
            feats: (B, T, D_a) from the cache.
            speech_lengths: (B,).
            feats_lengths: (B,).
            **unused: utterance ids and whatever else a batch has.

        Returns:
            (B, T, D_a).

        Raises:
            ValueError: neither or both given, or speech without an encoder.
        """
        if (speech is None) == (feats is None):
            raise ValueError(
                "expected either speech or feats, found "
                f"{'neither' if speech is None else 'both'}. Give one of them with "
                "--train_data_path_and_name_and_type."
            )
        if feats is not None:
            return Padded(feats, feats_lengths)
        if self.audio_encoder is None:
            raise ValueError(
                "found speech, but this model was built for cached features and has "
                "no audio encoder. Give feats, or build it without `features`."
            )
        return Padded(*self.audio_encoder(speech, speech_lengths))

    @torch.no_grad()
    def attention_maps(
        self,
        qformer_instruction: Optional[Tensor] = None,
        qformer_instruction_lengths: Optional[Tensor] = None,
        **audio: Any,
    ) -> Dict[str, List[Any]]:
        """Where the queries look, as the Trainer's pictures take it.

        Args:
            qformer_instruction: (B, L) what the queries read, if they do.
            qformer_instruction_lengths: (B,).
            **audio: see `encode_audio`.

        Returns:
            {"queries": B arrays (layers, Q, T)}; {} of a model without queries.
        """
        if self.qformer is None:
            return {}
        frames = self.encode_audio(**audio)
        reads = _padded(qformer_instruction, qformer_instruction_lengths)
        weights = attention_weights(self.qformer, frames, reads)
        lengths = frames.mask().sum(dim=1).tolist()
        return {"queries": [w[..., :n] for w, n in zip(weights, lengths, strict=True)]}

    def collect_feats(self, **batch: Tensor) -> Dict[str, Tensor]:
        """Nothing: no layer is normalised by corpus statistics."""
        return {}

    def _report(
        self, losses: Dict[str, Tensor], stats: Dict[str, Tensor], batch_size: int
    ) -> Tuple[Tensor, Dict[str, Tensor], Tensor]:
        """Sum the losses and add the watch on numbers to the statistics.

        Args:
            losses: weighted, by name.
            stats: scalars, by name.
            batch_size: B of this rank.

        Returns:
            loss, stats and weight, as ESPnet's Trainer takes them.
        """
        loss = torch.stack([v.float() for v in losses.values()]).sum()
        value = loss.detach()
        mean = value if self._running_loss is None else self._running_loss
        if self.training:
            kept = mean * RUNNING_MEAN_DECAY + value * (1 - RUNNING_MEAN_DECAY)
            self._running_loss = torch.where(kept.isfinite(), kept, mean)
        stats = {
            "loss": value,
            **stats,
            # a mean over ranks above 0 tells every rank that some rank was hit
            "non_finite": (~value.isfinite()).float(),
            "loss_spike": (value > SPIKE_RATIO * mean).float(),
        }
        stats = {name: v.detach().float() for name, v in stats.items()}
        return force_gatherable((loss, stats, batch_size), loss.device)


class RepresentationModel(SLITModel):
    """Representation learning: the Q-Former learns from audio and its text.

    Contrastive (which text belongs to which clip), matching (does this text belong to
    this clip) and generation (write the text from the queries) share one pass over
    the audio.

    Args:
        qformer: with text branch and language head.
        audio_encoder: frozen encoder; None for cached features.
        joint_width: E of the contrastive space.
        temperature: start value; similarities are divided by it.
        min_temperature: lower bound.
        max_temperature: upper bound.
        label_smoothing: of contrastive and generation.
        contrastive_weight: of the loss; 0 leaves the objective out.
        matching_weight: of the loss; 0 leaves the objective out.
        generation_weight: of the loss; 0 leaves the objective out.
        gather: gradient through the other ranks' embeddings: "full" or "detach".
        precision: see SLITModel.
    """

    ignored_keys: Tuple[str, ...] = ("language_projection.", "language_model.")
    new_keys = ("audio_encoder.",)

    def __init__(
        self,
        qformer: QFormer,
        audio_encoder: Optional[nn.Module] = None,
        joint_width: int = 256,
        temperature: float = 0.07,
        min_temperature: float = 0.01,
        max_temperature: float = 1.0,
        label_smoothing: float = 0.1,
        contrastive_weight: float = 1.0,
        matching_weight: float = 1.0,
        generation_weight: float = 1.0,
        gather: str = "full",
        precision: str = "float32",
    ):
        super().__init__(qformer, audio_encoder, precision)
        self.weights = {
            "contrastive": contrastive_weight,
            "matching": matching_weight,
            "generation": generation_weight,
        }
        if min(self.weights.values()) < 0 or not any(self.weights.values()):
            raise ValueError(
                "model_conf: expected weights >= 0 of which one is positive, found "
                f"{self.weights}."
            )
        self.label_smoothing = label_smoothing
        self.gather = gather
        self.heads = RepresentationHeads(
            qformer.width, joint_width, temperature, min_temperature, max_temperature
        )
        # Seeds the draw of hard negatives: equal on all ranks, restored by resume.
        self.register_buffer("training_step", torch.zeros((), dtype=torch.long))
        for part in self._idle_parts():
            part.requires_grad_(False)

    def _idle_parts(self) -> List[nn.Module]:
        """What no loss reaches with these weights: DDP would wait for its gradient."""
        last = self.qformer.layers[-1]
        # of the last layer: generation reads the queries' keys and values before it
        # changes them, matching the text's
        losses_of = [
            (self.heads.audio_projection, ("contrastive",)),
            (self.heads.text_projection, ("contrastive",)),
            (self.heads.temperature, ("contrastive",)),
            (self.heads.matching_head, ("matching",)),
            (self.qformer.language_head, ("generation",)),
            (last.cross_attention, ("contrastive", "matching")),
            (last.query_feed_forward, ("contrastive", "matching")),
            (last.text_feed_forward, ("contrastive", "generation")),
        ]
        return [
            part
            for part, names in losses_of
            if part is not None and not any(self.weights[name] for name in names)
        ]

    def forward(
        self,
        qformer_text: Tensor,
        qformer_text_lengths: Tensor,
        clip_id: Tensor,
        text_id: Tensor,
        **audio: Any,
    ) -> Tuple[Tensor, Dict[str, Tensor], Tensor]:
        """One step on B clips, each with one text.

        Args:
            qformer_text: (B, L) ids, [CLS] ... [SEP].
            qformer_text_lengths: (B,).
            clip_id: (B, 1) hash of the clip; equal ones are never negatives.
            text_id: (B, 1) hash of the caption, likewise.
            **audio: see `encode_audio`.

        Returns:
            loss, stats, weight = B.
        """
        if self.training:
            self.training_step += 1
        text = Padded(qformer_text, qformer_text_lengths)
        frames = self.encode_audio(**audio)
        losses, stats = self.losses(frames, text, clip_id[:, 0], text_id[:, 0])
        weighted = {
            name: self.weights[name] * loss
            for name, loss in losses.items()
            if self.weights[name]
        }
        stats = {f"loss_{name}": loss for name, loss in losses.items()} | stats
        return self._report(weighted, stats, len(qformer_text))

    def losses(
        self, frames: Padded, text: Padded, clip_id: Tensor, text_id: Tensor
    ) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
        """The objectives that are switched on, and their statistics.

        Args:
            frames: (B, T, D_a) of the clips.
            text: (B, L) ids; text i belongs to clip i.
            clip_id: (B,).
            text_id: (B,).

        Returns:
            Losses before their weights (the contrastive one always, since negatives are
            drawn by it) and statistics, scalars by name.
        """
        memory = self.qformer.encode_frames(frames)
        predicted: Optional[Tuple[Tensor, Tensor]] = None  # logits and targets
        first: Any = nullcontext()
        second: Any = nullcontext()
        if self.weights["generation"] and memory.counts is None:
            if self.weights["matching"]:
                first, second = self.qformer.two_passes()
            with first:
                output = self.qformer.forward_captions(memory, text)
            hidden, cls = output.hidden, output.cls
            predicted = output.logits, output.targets
        else:
            queries = self.qformer.forward_queries(memory)
            hidden, cls = queries.hidden, self.qformer.forward_text(text)
        contrast = contrastive(
            self.heads.embed_audio(hidden),  # (B, Q, D_q)
            self.heads.embed_text(cls),
            self.heads.temperature(),
            clip_id,
            text_id,
            self.label_smoothing,
            self.gather,
        )
        losses, stats = {"contrastive": contrast.loss}, contrast.statistics()
        if self.weights["matching"]:
            with second:
                losses["matching"], stats["accuracy_matching"] = self._matching(
                    memory, frames, text, contrast, clip_id ^ text_id
                )
        if self.weights["generation"]:
            if predicted is None:
                predicted = self.qformer.forward_generation(queries, text)
            logits, targets = predicted
            losses["generation"], stats["accuracy_token"] = self._generation(
                logits, targets, len(text.values)
            )
        stats["temperature"] = self.heads.temperature()
        stats["query_diversity"] = query_diversity(hidden)
        return losses, stats

    def _matching(
        self,
        memory: FrameKV,
        frames: Padded,
        text: Padded,
        contrast: ContrastiveOutput,
        sample_id: Tensor,
    ) -> Tuple[Tensor, Tensor]:
        """Loss and accuracy over each clip with its text and with hard negatives.

        Drawn by the samples' ids: the order of the batch, and how it is spread over
        ranks, do not matter. Validation draws the same in each epoch.
        """
        world, batch = contrast.world, len(sample_id)
        sample_keys = gather_rows(sample_id, world, "detach")
        seed = self.training_step if self.training else 0
        negatives = sample_negative_pairs(contrast, seed, sample_keys)
        pairs = self.qformer.forward_matching(
            memory,
            text,
            gather_memory(self.qformer, memory, frames, negatives.audio, world),
            fetch(text, negatives.text, world),
        )
        logits = self.heads.match(pairs)  # (3B, 2)
        loss = matching(logits, negatives.labels, negatives.valid, batch)
        correct = (logits.argmax(1) == negatives.labels) & negatives.valid
        return loss, global_mean(correct.sum().float(), negatives.valid.sum(), batch)

    def _generation(
        self, logits: Tensor, targets: Tensor, batch: int
    ) -> Tuple[Tensor, Tensor]:
        """Loss and accuracy over the tokens of each text, written from the queries."""
        loss = generation(logits, targets, batch, self.label_smoothing)
        correct = (logits.argmax(1) == targets).sum().float()
        return loss, global_mean(correct, (targets != IGNORED).sum(), batch)

    # -- for inference --

    @property
    def encoder_width(self) -> int:
        """D_a of the frames that this model reads."""
        return self.qformer.encoder_width

    def embed_audio(self, frames: Padded) -> Tuple[Tensor, FrameKV]:
        """Clips in the joint space.

        Args:
            frames: (B, T, D_a).

        Returns:
            (B, W Q, E) unit length, and the memory for `match`. Where a clip has fewer
            query windows than others, its first query fills the rest, which changes no
            maximum.
        """
        memory = self.qformer.encode_frames(frames)
        hidden = self.qformer.forward_queries(memory).hidden
        return self.heads.embed_audio(hidden), memory

    def embed_text(self, text: Padded) -> Tensor:
        """Texts in the joint space: (S, L) ids -> (S, E) unit length."""
        return self.heads.embed_text(self.qformer.forward_text(text))

    def match(
        self, memory: FrameKV, text: Padded, audio_index: Tensor, text_index: Tensor
    ) -> Tensor:
        """Matching logit of any pairs, (N,): the second output, as LAVIS re-ranks.

        Args:
            memory: B clips, of `embed_audio`.
            text: (S, L) ids.
            audio_index: (N,) clip of each pair.
            text_index: (N,) text of each pair.
        """
        pairs = self.qformer.forward_pairs(memory, text, audio_index, text_index)
        return self.heads.match(pairs)[:, 1]

    @property
    def temperature(self) -> float:
        """Learned temperature; similarities are divided by it."""
        return float(self.heads.temperature().detach())


class PromptedModel(SLITModel):
    """Generative learning and instruction tuning: queries prompt the language model.

    In generative learning the queries read the audio alone; in instruction tuning the
    instruction goes to the language model and, if they have a text branch, to the
    queries. In place of the queries, stacked frames may be the prompt.

    Args:
        qformer: its language head is not needed; None beside a connector.
        language_model: frozen, possibly with trained LoRA weights.
        audio_encoder: frozen encoder; None for cached features.
        connector: stands in for the Q-Former; None: there is one.
        instructed: instruction tuning.
        carry_text_branch: of generative learning: keep the Q-Former's text side,
            untrained, in the checkpoints, so that instruction tuning can start from it.
        precision: see SLITModel.
    """

    ignored_keys: Tuple[str, ...] = (
        "heads.",
        "training_step",
        "qformer.language_head.",
    )
    new_keys = (
        "connector.",
        "language_projection.",
        "language_model.",
        "audio_encoder.",
    )

    def __init__(
        self,
        qformer: Optional[QFormer],
        language_model: nn.Module,
        audio_encoder: Optional[nn.Module] = None,
        connector: Optional[FrameStack] = None,
        instructed: bool = False,
        carry_text_branch: bool = True,
        precision: str = "float32",
    ):
        super().__init__(qformer, audio_encoder, precision)
        self.language_model = language_model
        self.connector = connector
        width = self._reader.width
        self.language_projection = nn.Linear(width, language_model.width)
        if qformer is None:
            return
        has_text = qformer.embedding is not None
        if not has_text:
            self.ignored_keys += text_branch_names(qformer)
        if instructed:
            return
        if carry_text_branch != has_text:
            raise ValueError(
                f"carry_text_branch is {carry_text_branch}, so the Q-Former must be "
                f"built with text_branch {carry_text_branch}."
            )
        for part in text_branch(qformer):
            part.requires_grad_(False)

    def forward(
        self,
        llm_target: Tensor,
        llm_target_lengths: Tensor,
        llm_prompt: Optional[Tensor] = None,
        llm_prompt_lengths: Optional[Tensor] = None,
        qformer_instruction: Optional[Tensor] = None,
        qformer_instruction_lengths: Optional[Tensor] = None,
        **audio: Any,
    ) -> Tuple[Tensor, Dict[str, Tensor], Tensor]:
        """One step on B samples: clip, perhaps an instruction, text to write.

        Args:
            llm_target: (B, L) ids of the language model, EOS included.
            llm_target_lengths: (B,).
            llm_prompt: (B, L) ids before the target: the instruction, or a prompt if
                one is configured.
            llm_prompt_lengths: (B,).
            qformer_instruction: (B, L) the instruction for the queries.
            qformer_instruction_lengths: (B,).
            **audio: see `encode_audio`.

        Returns:
            loss, stats, weight = B.
        """
        batch, target = len(llm_target), Padded(llm_target, llm_target_lengths)
        instruction = _padded(qformer_instruction, qformer_instruction_lengths)
        vectors = self._read(self.encode_audio(**audio), instruction)
        total, tokens, correct = self.language_model.loss(
            self._project(vectors), _padded(llm_prompt, llm_prompt_lengths), target
        )
        losses = {"language_model": global_mean(total, tokens, batch)}
        stats = {
            "loss_language_model": losses["language_model"],
            "accuracy_token": global_mean(correct.float(), tokens, batch),
            "query_diversity": query_diversity(vectors),
        }
        return self._report(losses, stats, batch)

    @property
    def _reader(self) -> nn.Module:
        """What reads the frames: the Q-Former, or what stands in for it."""
        return self.connector if self.qformer is None else self.qformer

    @property
    def encoder_width(self) -> int:
        """D_a of the frames that this model reads."""
        return self._reader.encoder_width

    def prefix(self, frames: Padded, instruction: Optional[Padded] = None) -> Padded:
        """Soft prompt of each clip.

        Args:
            frames: (B, T, D_a).
            instruction: (B, L) ids that the queries read beside the audio.

        Returns:
            (B, W Q, D_l), window after window; of a connector one vector for each
            stack of frames.
        """
        return self._project(self._read(frames, instruction))

    def _read(self, frames: Padded, instruction: Optional[Padded]) -> Padded:
        if self.connector is not None:
            return self.connector(frames)
        memory = self.qformer.encode_frames(frames)
        return self.qformer.forward_queries(memory, instruction).hidden

    def _project(self, vectors: Padded) -> Padded:
        return Padded(self.language_projection(vectors.values), vectors.lengths)


def _padded(values: Optional[Tensor], lengths: Optional[Tensor]) -> Optional[Padded]:
    return None if values is None else Padded(values, lengths)


# ---------------------------------------------------------------------- parts


def text_branch(qformer: QFormer) -> List[nn.Module]:
    """Modules that only text passes through."""
    if qformer.embedding is None:
        return []
    return [qformer.embedding, *(layer.text_feed_forward for layer in qformer.layers)]


def text_branch_names(qformer: QFormer) -> Tuple[str, ...]:
    """Prefixes of the text branch's weights in a model that has one."""
    return ("qformer.embedding.",) + tuple(
        f"qformer.layers.{i}.text_feed_forward." for i in range(len(qformer.layers))
    )


# ---------------------------------------------------------------------- health


@torch.no_grad()
def query_diversity(queries: Padded) -> Tensor:
    """How different a clip's queries (or vectors) are: 1 - mean cosine of two.

    Args:
        queries: (B, Q, D).

    Returns:
        Scalar, mean over the clips: near 0 when all queries say the same (dead
        queries), NaN with a single query.
    """
    unit = F.normalize(queries.values.detach().float(), dim=-1)
    count = torch.full((len(unit),), float(unit.size(1)), device=unit.device)
    if queries.lengths is not None:
        unit = unit * queries.mask()[..., None]
        count = queries.lengths.float()
    # sum over all pairs of cosines = squared length of the sum
    both = unit.sum(1).square().sum(-1)  # (B,)
    pairs = count * (count - 1)
    cosine = ((both - count) / pairs).where(pairs > 0, float("nan"))
    return (1 - cosine).mean()
