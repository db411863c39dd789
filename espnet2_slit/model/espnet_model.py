"""The three training stages as ESPnet models: each forward reads like its figure.

Owns how the parts meet (frames -> Q-Former -> heads or language model), the named
losses and the statistics. It leaves networks to `qformer`, losses to `objectives`,
the frozen parts to `audio_encoder` and `language_model`.

Loss convention: see `objectives`. The weight that a model returns is its local batch
size, so ESPnet's Trainer makes W ranks of B/W equal one rank of B. The keys of `stats`
are the same on every rank, at every step, in training and validation.
"""

from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_slit.common import compat
from espnet2_slit.common.precision import autocast, check_precision
from espnet2_slit.model.objectives import (
    RepresentationHeads,
    contrastive,
    gather_memory,
    gather_rows,
    gather_text,
    generation,
    global_mean,
    matching,
    sample_negative_pairs,
)
from espnet2_slit.model.qformer import AudioMemory, QFormer
from espnet2_slit.model.query_windows import QueriedWindows, query_windows

compat.prepare_espnet_import()

from espnet2.torch_utils.device_funcs import force_gatherable  # noqa: E402
from espnet2.train.abs_espnet_model import AbsESPnetModel  # noqa: E402

# A loss above this multiple of its running mean is counted as a spike.
SPIKE_RATIO = 3.0
RUNNING_MEAN_DECAY = 0.98  # about the last 50 steps


class SLITModel(AbsESPnetModel):
    """What the three stages share: audio in, health watch, ESPnet's return value.

    Args:
        qformer: the trained Q-Former.
        audio_encoder: frozen encoder (its parameters, if any, weight its layers);
            None if frames come from the feature cache.
        precision: "float32", or "bfloat16": forward runs under autocast, also on a CPU,
            where ESPnet's --use_amp does nothing; or "auto": bfloat16 where the
            hardware has it. Weights stay float32.
        extract_feats_in_collect_stats: ESPnet's switch; nothing is normalised by
            statistics here, so its collect-stats stage never needs the model.
    """

    # Weights of other stages' models that this one may be given and has no use for,
    # and parts that an earlier stage does not have (see checkpoint.load_init_params).
    parts_of_other_stages: Tuple[str, ...] = ()
    new_parts: Tuple[str, ...] = ()

    def __init__(
        self,
        qformer: QFormer,
        audio_encoder: Optional[nn.Module] = None,
        precision: str = "float32",
        extract_feats_in_collect_stats: bool = False,
    ):
        super().__init__()
        check_precision(precision, option="model_conf.precision")
        self.precision = precision
        self.qformer = qformer
        self.audio_encoder = audio_encoder
        self.extract_feats_in_collect_stats = extract_feats_in_collect_stats
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
    ) -> Tuple[Tensor, Tensor]:
        """Frames of the frozen encoder, computed here or before.

        Args:
            speech: (B, S) in [-1, 1] at the encoder's rate; or
            feats: (B, T, D_a) from the cache.
            speech_lengths: (B,).
            feats_lengths: (B,).

        Returns:
            frames (B, T, D_a) and lengths (B,).

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
            return feats, feats_lengths
        if self.audio_encoder is None:
            raise ValueError(
                "found speech, but this model was built for cached features and has "
                "no audio encoder. Give feats, or build it without `features`."
            )
        return self.audio_encoder(speech, speech_lengths)

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
    """Stage 1: the Q-Former learns to represent audio with the help of text.

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
        extract_feats_in_collect_stats: ESPnet's switch.
    """

    parts_of_other_stages: Tuple[str, ...] = ("language_projection.", "language_model.")
    new_parts = ("audio_encoder.",)

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
        extract_feats_in_collect_stats: bool = False,
    ):
        super().__init__(
            qformer, audio_encoder, precision, extract_feats_in_collect_stats
        )
        if qformer.query_window:
            raise ValueError(
                "model representation: expected one set of queries for a clip, found "
                f"queries for every {qformer.query_window} frames. Leave "
                "qformer_conf.query_window_s out."
            )
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
        speech: Optional[Tensor] = None,
        speech_lengths: Optional[Tensor] = None,
        feats: Optional[Tensor] = None,
        feats_lengths: Optional[Tensor] = None,
        **kwargs: Any,
    ) -> Tuple[Tensor, Dict[str, Tensor], Tensor]:
        """One step on B clips, each with one text.

        Args:
            qformer_text: (B, L) ids, [CLS] ... [SEP].
            qformer_text_lengths: (B,).
            clip_id: (B, 1) hash of the clip; equal ones are never negatives.
            text_id: (B, 1) hash of the caption, likewise.
            speech: (B, S), or
            feats: (B, T, D_a).
            speech_lengths: (B,).
            feats_lengths: (B,).
            **kwargs: utt_id and lengths that are not needed.

        Returns:
            loss, stats, weight = B.
        """
        batch = len(qformer_text)
        if self.training:
            self.training_step += 1
        frames, frame_lengths = self.encode_audio(
            speech, speech_lengths, feats, feats_lengths
        )
        memory = self.qformer.read_frames(frames, frame_lengths)
        queries = self.qformer.forward_queries(memory)  # (B, Q, D_q)
        summary = self.qformer.forward_text(qformer_text, qformer_text_lengths)

        contrast = contrastive(
            self.heads.embed_audio(queries.hidden),
            self.heads.embed_text(summary),
            self.heads.temperature(),
            clip_id[:, 0],
            text_id[:, 0],
            self.label_smoothing,
            self.gather,
        )
        losses = {"contrastive": contrast.loss}
        stats = _contrast_stats(contrast)
        if self.weights["matching"]:
            # Drawn by the samples' names: the order of the batch, and how it is spread
            # over ranks, do not matter. Validation draws the same in each epoch.
            names = gather_rows((clip_id ^ text_id)[:, 0], contrast.world, "detach")
            negatives = sample_negative_pairs(
                contrast, self.training_step if self.training else 0, names
            )
            pairs = self.qformer.forward_triplets(
                memory,
                qformer_text,
                qformer_text_lengths,
                gather_memory(
                    self.qformer,
                    memory,
                    frames,
                    frame_lengths,
                    negatives.audio,
                    contrast.world,
                ),
                *gather_text(
                    qformer_text, qformer_text_lengths, negatives.text, contrast.world
                ),
            )  # (3B, Q, D_q)
            logits = self.heads.match(pairs)  # (3B, 2)
            losses["matching"] = matching(
                logits, negatives.labels, negatives.valid, batch
            )
            right = (logits.argmax(1) == negatives.labels) & negatives.valid
            stats["accuracy_matching"] = global_mean(
                right.sum().float(), negatives.valid.sum(), batch
            )
        if self.weights["generation"]:
            logits, targets = self.qformer.forward_generation(
                queries.cache, qformer_text, qformer_text_lengths
            )  # (N_pred, V), (N_pred,)
            losses["generation"] = generation(
                logits, targets, batch, self.label_smoothing
            )
            right = (logits.argmax(1) == targets).sum().float()
            stats["accuracy_token"] = global_mean(right, targets.numel(), batch)

        stats = {
            **{f"loss_{name}": value for name, value in losses.items()},
            **stats,
            "temperature": self.heads.temperature(),
            "query_diversity": query_diversity(queries.hidden),
        }
        losses = {
            name: self.weights[name] * value
            for name, value in losses.items()
            if self.weights[name]
        }
        return self._report(losses, stats, batch)

    # -- for inference --

    def embed_audio(
        self, frames: Tensor, frame_lengths: Tensor
    ) -> Tuple[Tensor, AudioMemory]:
        """Clips in the joint space.

        Args:
            frames: (B, T, D_a).
            frame_lengths: (B,).

        Returns:
            (B, Q, E) unit length, and the memory for `match`.
        """
        memory = self.qformer.read_frames(frames, frame_lengths)
        hidden = self.qformer.forward_queries(memory).hidden
        return self.heads.embed_audio(hidden), memory

    def embed_text(self, qformer_text: Tensor, qformer_text_lengths: Tensor) -> Tensor:
        """Texts in the joint space: (S, L) ids -> (S, E) unit length."""
        summary = self.qformer.forward_text(qformer_text, qformer_text_lengths)
        return self.heads.embed_text(summary)

    def match(
        self,
        memory: AudioMemory,
        text: Tensor,
        text_lengths: Tensor,
        audio_index: Tensor,
        text_index: Tensor,
    ) -> Tensor:
        """Matching logit of any pairs, (N,): the second output, as LAVIS re-ranks.

        Args:
            memory: B clips, of `embed_audio`.
            text: (S, L) ids.
            text_lengths: (S,).
            audio_index: (N,) clip of each pair.
            text_index: (N,) text of each pair.
        """
        pairs = self.qformer.forward_pairs(
            memory, text, text_lengths, audio_index, text_index
        )
        return self.heads.match(pairs)[:, 1]

    @property
    def temperature(self) -> float:
        """Learned temperature; similarities are divided by it."""
        return float(self.heads.temperature().detach())


class _PromptedModel(SLITModel):
    """Queries become a soft prompt of the frozen language model.

    Args:
        qformer: its language head is not needed.
        language_model: frozen, possibly with trained LoRA weights.
        audio_encoder: frozen encoder; None for cached features.
        precision: see SLITModel.
        extract_feats_in_collect_stats: ESPnet's switch.
    """

    parts_of_other_stages: Tuple[str, ...] = (
        "heads.",
        "training_step",
        "qformer.language_head.",
    )
    new_parts = ("language_projection.", "language_model.", "audio_encoder.")

    def __init__(
        self,
        qformer: QFormer,
        language_model: nn.Module,
        audio_encoder: Optional[nn.Module] = None,
        precision: str = "float32",
        extract_feats_in_collect_stats: bool = False,
    ):
        super().__init__(
            qformer, audio_encoder, precision, extract_feats_in_collect_stats
        )
        self.language_model = language_model
        self.language_projection = nn.Linear(qformer.width, language_model.width)

    def prefix(
        self,
        frames: Tensor,
        frame_lengths: Tensor,
        qformer_instruction: Optional[Tensor] = None,
        qformer_instruction_lengths: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Soft prompt of each clip.

        Args:
            frames: (B, T, D_a).
            frame_lengths: (B,).
            qformer_instruction: (B, L) ids that the queries read beside the audio.
            qformer_instruction_lengths: (B,).

        Returns:
            prefix (B, N, D_l), the Q queries of each of a clip's windows after each
            other, and their number (B,); None: N for every clip.
        """
        queries = query_windows(
            self.qformer,
            frames,
            frame_lengths,
            qformer_instruction,
            qformer_instruction_lengths,
        )
        return queries.join(self.language_projection(queries.hidden))

    def _step(
        self,
        queries: QueriedWindows,
        llm_target: Tensor,
        llm_target_lengths: Tensor,
        llm_prompt: Optional[Tensor],
        llm_prompt_lengths: Optional[Tensor],
    ) -> Tuple[Tensor, Dict[str, Tensor], Tensor]:
        batch = len(llm_target)
        prefix, lengths = queries.join(self.language_projection(queries.hidden))
        total, tokens, right = self.language_model.loss(
            prefix,  # (B, N, D_l)
            llm_prompt,
            llm_prompt_lengths,
            llm_target,
            llm_target_lengths,
            lengths,
        )
        losses = {"language_model": global_mean(total, tokens, batch)}
        stats = {
            "loss_language_model": losses["language_model"],
            "accuracy_token": global_mean(right.float(), tokens, batch),
            "query_diversity": query_diversity(queries.hidden),
        }
        return self._report(losses, stats, batch)


class GenerativeModel(_PromptedModel):
    """Stage 2: the queries learn the language of the frozen language model.

    Args:
        qformer: with or without text branch.
        language_model: frozen.
        audio_encoder: frozen encoder; None for cached features.
        carry_text_branch: keep the Q-Former's text side, untrained, in the
            checkpoints, so that instruction tuning can start from this stage.
        precision: see SLITModel.
        extract_feats_in_collect_stats: ESPnet's switch.
    """

    def __init__(
        self,
        qformer: QFormer,
        language_model: nn.Module,
        audio_encoder: Optional[nn.Module] = None,
        carry_text_branch: bool = True,
        precision: str = "float32",
        extract_feats_in_collect_stats: bool = False,
    ):
        super().__init__(
            qformer,
            language_model,
            audio_encoder,
            precision,
            extract_feats_in_collect_stats,
        )
        if carry_text_branch != (qformer.embedding is not None):
            raise ValueError(
                f"carry_text_branch is {carry_text_branch}, so the Q-Former must be "
                f"built with text_branch {carry_text_branch}."
            )
        for part in text_branch(qformer):
            part.requires_grad_(False)
        if not carry_text_branch:
            self.parts_of_other_stages += text_branch_names(qformer)

    def forward(
        self,
        llm_target: Tensor,
        llm_target_lengths: Tensor,
        llm_prompt: Optional[Tensor] = None,
        llm_prompt_lengths: Optional[Tensor] = None,
        speech: Optional[Tensor] = None,
        speech_lengths: Optional[Tensor] = None,
        feats: Optional[Tensor] = None,
        feats_lengths: Optional[Tensor] = None,
        **kwargs: Any,
    ) -> Tuple[Tensor, Dict[str, Tensor], Tensor]:
        """One step on B clips, each with the text to write.

        Args:
            llm_target: (B, L) ids of the language model, EOS included.
            llm_target_lengths: (B,).
            llm_prompt: (B, L) ids before the target, if a prompt is configured.
            llm_prompt_lengths: (B,).
            speech: (B, S), or
            feats: (B, T, D_a).
            speech_lengths: (B,).
            feats_lengths: (B,).
            **kwargs: utt_id and ids that are not needed.

        Returns:
            loss, stats, weight = B.
        """
        frames, frame_lengths = self.encode_audio(
            speech, speech_lengths, feats, feats_lengths
        )
        queries = query_windows(self.qformer, frames, frame_lengths)
        return self._step(
            queries, llm_target, llm_target_lengths, llm_prompt, llm_prompt_lengths
        )


class InstructionModel(_PromptedModel):
    """Instruction tuning: the instruction goes to the language model and the queries.

    Args:
        qformer: with text branch if the queries read the instruction.
        language_model: frozen.
        audio_encoder: frozen encoder; None for cached features.
        precision: see SLITModel.
        extract_feats_in_collect_stats: ESPnet's switch.
    """

    def __init__(
        self,
        qformer: QFormer,
        language_model: nn.Module,
        audio_encoder: Optional[nn.Module] = None,
        precision: str = "float32",
        extract_feats_in_collect_stats: bool = False,
    ):
        super().__init__(
            qformer,
            language_model,
            audio_encoder,
            precision,
            extract_feats_in_collect_stats,
        )
        if qformer.embedding is None:
            self.parts_of_other_stages += text_branch_names(qformer)
        else:
            # After the last layer only the queries are read: DDP would wait for ever
            # for the gradient of the text's last feed-forward.
            qformer.layers[-1].text_feed_forward.requires_grad_(False)

    def forward(
        self,
        llm_prompt: Tensor,
        llm_prompt_lengths: Tensor,
        llm_target: Tensor,
        llm_target_lengths: Tensor,
        qformer_instruction: Optional[Tensor] = None,
        qformer_instruction_lengths: Optional[Tensor] = None,
        speech: Optional[Tensor] = None,
        speech_lengths: Optional[Tensor] = None,
        feats: Optional[Tensor] = None,
        feats_lengths: Optional[Tensor] = None,
        **kwargs: Any,
    ) -> Tuple[Tensor, Dict[str, Tensor], Tensor]:
        """One step on B samples: clip, instruction, target.

        Args:
            llm_prompt: (B, L) the instruction for the language model.
            llm_prompt_lengths: (B,).
            llm_target: (B, L) ids of the language model, EOS included.
            llm_target_lengths: (B,).
            qformer_instruction: (B, L) the instruction for the Q-Former.
            qformer_instruction_lengths: (B,).
            speech: (B, S), or
            feats: (B, T, D_a).
            speech_lengths: (B,).
            feats_lengths: (B,).
            **kwargs: utt_id and ids that are not needed.

        Returns:
            loss, stats, weight = B.
        """
        frames, frame_lengths = self.encode_audio(
            speech, speech_lengths, feats, feats_lengths
        )
        queries = query_windows(
            self.qformer,
            frames,
            frame_lengths,
            qformer_instruction,
            qformer_instruction_lengths,
        )
        return self._step(
            queries, llm_target, llm_target_lengths, llm_prompt, llm_prompt_lengths
        )


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
def query_diversity(hidden: Tensor) -> Tensor:
    """How different a clip's queries are: 1 - mean cosine of two of them.

    Args:
        hidden: (B, Q, D_q).

    Returns:
        Scalar, mean over the clips: near 0 when all queries say the same (dead
        queries), NaN with a single query.
    """
    unit = F.normalize(hidden.detach().float(), dim=-1)
    count = hidden.size(1)
    # sum over all pairs of cosines = squared length of the sum
    both = unit.sum(1).square().sum(-1)  # (B,)
    return (1 - (both - count) / (count * (count - 1.0) or float("nan"))).mean()


@torch.no_grad()
def _contrast_stats(contrast) -> Dict[str, Tensor]:
    """In-batch recall of both directions, and how far the similarities spread."""
    stats = {}
    for direction in ("audio_to_text", "text_to_audio"):
        scores = getattr(contrast, direction)
        best = scores.argmax(dim=1, keepdim=True)
        stats[f"recall_{direction}"] = contrast.positives.gather(1, best).float().mean()
    # collapsed: all similarities of a clip equal
    stats["similarity_spread"] = contrast.audio_to_text.std(
        dim=1, unbiased=False
    ).mean()
    return stats
