#!/usr/bin/env python3
"""Two peers of SLIT on the same frozen frames: a CLAP-style dual encoder, a captioner.

Owns the two networks and their predictions, in the files that slit_score takes of any
system. Data, batches, optimizer, precision and choice of the best epoch are those of
SLITTask and of the configuration that the SLIT stage itself is trained with, so that
what differs is the model:

    baselines.py train --model dual_encoder --config conf/train_representation_mini.yaml
        --output_dir exp/dual_encoder ...        (the options of slit_train)
    baselines.py predict --experiment exp/dual_encoder --data_dir dump/mini_beats/test
        --output exp/dual_encoder/test.npz
"""

import argparse
import copy
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from espnet2_slit.common import compat
from espnet2_slit.common.files import atomic, read_yaml, write_atomically
from espnet2_slit.common.padded import IGNORED, Padded
from espnet2_slit.data.preprocessor import (
    load_qformer_tokenizer,
    qformer_tokenizer_identity,
)
from espnet2_slit.inference.clips import pad
from espnet2_slit.inference.evaluation_set import EvaluationSet
from espnet2_slit.model.espnet_model import SLITModel
from espnet2_slit.model.objectives import Temperature, contrastive, global_mean
from espnet2_slit.model.qformer_layers import sinusoids
from espnet2_slit.task import SLITTask

compat.prepare_espnet_import()

from espnet2.train.class_choices import ClassChoices  # noqa: E402

LOGGER = logging.getLogger("baselines")
BEST = "valid.loss.best.pth"
BATCH = 64  # clips or texts of one pass when predicting


class AudioInput(nn.Module):
    """Frames -> an eighth of them, by a convolution over 8 neighbours at a time.

    At 50 frames a second that is one vector per 0.16 s, for BEATs one per column of its
    8 bands. Transformers over it cost what they cost the text.

    Args:
        encoder_width: D_a.
        width: of the result.
        frame_position: see QFormer.
    """

    step = 8

    def __init__(self, encoder_width, width, frame_position=0.0):
        super().__init__()
        self.frame_position = frame_position
        self.norm = nn.LayerNorm(encoder_width)
        self.convolution = nn.Conv1d(encoder_width, width, self.step, self.step)

    def forward(self, frames):
        """Padded (B, T, D_a) -> (B, T', width), (B, T') bool, True: there is audio."""
        values = self.norm(frames.values)
        if self.frame_position:
            places = sinusoids(*values.shape[1:], values.device)
            values = values + self.frame_position * places
        values = values * frames.mask()[..., None]
        values = F.pad(values, (0, 0, 0, -values.size(1) % self.step))
        hidden = self.convolution(values.transpose(1, 2)).transpose(1, 2)
        return hidden, Padded(hidden, -(-frames.lengths // self.step)).mask()


class DualEncoder(SLITModel):
    """CLAP's scheme: one vector per clip, one per text, the contrastive loss alone.

    The frozen frames go through a small transformer and are averaged over time; the
    text tower is a BERT. Both end in CLAP's two-layer projection.

    Args:
        encoder_width: D_a.
        vocab_size: of the text tokenizer.
        width: of both towers, as heads, feed_forward and dropout.
        layers: of the text tower.
        audio_layers: transformer layers over the frames.
        heads: of attention.
        feed_forward: inner width.
        max_text_length: positions of the text tower.
        dropout: of outputs and attention.
        frame_position: places of the frames, as the Q-Former gets them.
        joint_width: E.
        temperature: start value, learned.
        label_smoothing: of the loss.
        precision: see SLITModel.

    Source: the scheme of LAION-CLAP, arXiv 2211.06687 section 3; here the audio encoder
        stays frozen, and equal texts and clips are positives as in SLIT.
    """

    def __init__(
        self,
        encoder_width,
        vocab_size,
        width=768,
        layers=12,
        audio_layers=2,
        heads=12,
        feed_forward=3072,
        max_text_length=512,
        dropout=0.1,
        frame_position=0.0,
        joint_width=256,
        temperature=0.07,
        label_smoothing=0.1,
        precision="float32",
    ):
        super().__init__(None, None, precision)
        from transformers import BertConfig, BertModel

        self.label_smoothing = label_smoothing
        self.audio_input = AudioInput(encoder_width, width, frame_position)
        layer = width, heads, feed_forward, dropout, "gelu"
        self.audio_layers = nn.ModuleList(
            nn.TransformerEncoderLayer(*layer, batch_first=True)
            for _ in range(audio_layers)
        )
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=feed_forward,
            max_position_embeddings=max_text_length,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            type_vocab_size=1,
        )
        self.text_tower = BertModel(config, add_pooling_layer=False)
        self.audio_projection, self.text_projection = (
            nn.Sequential(
                nn.Linear(width, joint_width),
                nn.ReLU(),
                nn.Linear(joint_width, joint_width),
            )
            for _ in range(2)
        )
        self.temperature = Temperature(temperature)

    def embed_audio(self, frames):
        """Padded (B, T, D_a) -> (B, E), unit length."""
        hidden, heard = self.audio_input(frames)
        for layer in self.audio_layers:
            hidden = layer(hidden, src_key_padding_mask=~heard)
        total = (hidden.float() * heard[..., None]).sum(1)
        pooled = total / heard.sum(1, keepdim=True)
        return F.normalize(self.audio_projection(pooled).float(), dim=-1)

    def embed_text(self, text):
        """Padded (S, L) ids -> (S, E), unit length; [CLS] speaks for the text."""
        read = text.mask().long()
        hidden = self.text_tower(text.values, attention_mask=read).last_hidden_state
        return F.normalize(self.text_projection(hidden[:, 0]).float(), dim=-1)

    def forward(self, qformer_text, qformer_text_lengths, clip_id, text_id, **audio):
        """One step on B clips, each with one text -> loss, stats, weight = B.

        Args:
            qformer_text: (B, L) ids, [CLS] ... [SEP].
            qformer_text_lengths: (B,).
            clip_id: (B, 1) hash of the clip.
            text_id: (B, 1) hash of the caption.
            **audio: see `encode_audio`.
        """
        contrast = contrastive(
            self.embed_audio(self.encode_audio(**audio))[:, None],
            self.embed_text(Padded(qformer_text, qformer_text_lengths)),
            self.temperature(),
            clip_id[:, 0],
            text_id[:, 0],
            self.label_smoothing,
        )
        stats = contrast.statistics() | {"temperature": self.temperature()}
        return self._report({"contrastive": contrast.loss}, stats, len(clip_id))

    @torch.inference_mode()
    def predict(self, clips, preprocess, folder, **unused):
        """Write an .npz of embeddings for `slit_score --predictions SET:retrieval=`.

        `preprocess` is the task's; `unused` are options of the other baseline.
        """
        of_clips, texts = zip(*clips.texts(), strict=True)
        ids = [preprocess("", {"text": text})["qformer_text"] for text in texts]
        audio = map(self.embed_audio, batches(clips.clips.load, len(clips.clips)))
        text = map(self.embed_text, batches(ids.__getitem__, len(ids)))
        with atomic(folder / f"{clips.dir.name}.npz") as stream:
            np.savez(
                stream,
                audio_ids=np.array(clips.clip_ids),
                audio=torch.cat([*audio]).numpy(),
                text_audio_ids=np.array(of_clips),
                texts=np.array(texts),
                text=torch.cat([*text]).numpy(),
            )


class Captioner(SLITModel):
    """An encoder-decoder captioner: T5 of the language model's sizes, all trained.

    The frozen frames take the place of the encoder's token embeddings.

    Args:
        encoder_width: D_a.
        config: T5Config; the weights start at random.
        precision: see SLITModel.
    """

    def __init__(self, encoder_width, config, precision="float32"):
        super().__init__(None, None, precision)
        from transformers import T5ForConditionalGeneration

        self.audio_input = AudioInput(encoder_width, config.d_model)
        self.network = T5ForConditionalGeneration(config)

    def _inputs(self, frames):
        hidden, heard = self.audio_input(frames)
        return {"inputs_embeds": hidden, "attention_mask": heard.long()}

    def forward(self, llm_target, llm_target_lengths, **audio):
        """One step on B clips, each with a caption to write -> loss, stats, weight = B.

        Args:
            llm_target: (B, L) ids, EOS included.
            llm_target_lengths: (B,).
            **audio: see `encode_audio`.
        """
        real = Padded(llm_target, llm_target_lengths).mask()
        logits = self.network(
            **self._inputs(self.encode_audio(**audio)),
            labels=llm_target.masked_fill(~real, IGNORED),
        ).logits
        total = F.cross_entropy(logits[real].float(), llm_target[real], reduction="sum")
        right = (logits[real].argmax(-1) == llm_target[real]).float().sum()
        batch, tokens = len(llm_target), real.sum()
        losses = {"generation": global_mean(total, tokens, batch)}
        stats = {"accuracy_token": global_mean(right, tokens, batch)}
        return self._report(losses, stats, batch)

    @torch.inference_mode()
    def write(self, frames, options):
        """Captions of Padded (B, T, D_a) as (B, L) ids, by transformers' `generate`."""
        return self.network.generate(**self._inputs(frames), **options)

    def predict(self, clips, preprocess, folder, config):
        """Write `id caption` lines for `slit_score --predictions SET:caption=`.

        `config` is a conf/decode*.yaml, whose `caption` are the options.
        """
        options = read_yaml(config, "Give a conf/decode*.yaml.")["caption"]
        options.pop("rerank", None)  # it has no matching head to choose with
        tokenizer, captions = preprocess.prompt_encoder.tokenizer, []
        for frames in batches(clips.clips.load, len(clips.clips)):
            ids = self.write(frames, options)
            captions += tokenizer.batch_decode(ids, skip_special_tokens=True)
        rows = zip(clips.clip_ids, captions, strict=True)
        lines = (f"{clip} {' '.join(text.split())}" for clip, text in rows)
        write_atomically(folder / f"{clips.dir.name}.txt", lines)


class BaselineTask(SLITTask):
    """SLITTask with the two baselines in place of its three stages."""

    # Which stage's preprocessor makes the arrays that a baseline reads.
    stage_of = {"dual_encoder": "representation", "captioner": "generative"}
    models = {"dual_encoder": DualEncoder, "captioner": Captioner}
    class_choices_list = [ClassChoices("model", models, default="dual_encoder")]

    @classmethod
    def build_preprocess_fn(cls, args, train):
        """The arrays of the stage that a baseline stands beside."""
        args = copy.copy(args)
        args.model = cls.stage_of[args.model]
        return super().build_preprocess_fn(args, train)

    @classmethod
    def _check_parts(cls, args):
        wanted = args.model == "captioner"
        if wanted != bool(args.language_model):
            raise ValueError(
                f"--model {args.model}: expected {'a' if wanted else 'no'}"
                f" --language_model, found {args.language_model!r}. The captioner takes"
                " its sizes and its tokenizer from there, and no weights."
            )

    @classmethod
    def _assemble(cls, args, audio_encoder, facts):
        if audio_encoder is not None:
            raise ValueError("the baselines read cached features: give --features.")
        if args.model == "captioner":
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(args.language_model)
            args.language_model_identity = {"config": config.to_diff_dict()}
            return Captioner(facts["width"], config, **args.model_conf)
        tokenizer = load_qformer_tokenizer(args.qformer_tokenizer)
        args.qformer_tokenizer_identity = qformer_tokenizer_identity(tokenizer)
        sizes = dict(args.qformer_conf)
        for name in ("num_queries", "initial_std"):  # one vector; PyTorch's own start
            sizes.pop(name, None)
        return DualEncoder(facts["width"], len(tokenizer), **sizes, **args.model_conf)


# ---------------------------------------------------------------------- predictions


def batches(load, number):
    """What `load` gives for 0 to `number` - 1, as Padded (B, L, ...) of BATCH each."""
    for start in range(0, number, BATCH):
        yield pad([load(i) for i in range(start, min(start + BATCH, number))])


def evaluation_set(data_dir, identity):
    """EvaluationSet of frames that are cached, of the encoder in training."""
    system = SimpleNamespace(encoder_identity=identity)
    return EvaluationSet(data_dir, system, audio="features")


def predict(args):
    """Predictions of every test set, one file each: <output_dir>/<set>.{npz,txt}."""
    model, options = BaselineTask.build_model_from_file(
        model_file=args.experiment / BEST, with_audio_encoder=False
    )
    preprocess = BaselineTask.build_preprocess_fn(options, train=False)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for data_dir in args.data_dir:
        clips = evaluation_set(data_dir, options.audio_encoder_identity)
        model.predict(clips, preprocess, args.output_dir, config=args.config)
        LOGGER.info("%s: %d clips", data_dir, len(clips.clip_ids))


def main(cmd=None):
    """Command line."""
    cmd = sys.argv[1:] if cmd is None else cmd
    if cmd[:1] == ["train"]:
        return BaselineTask.main(cmd=cmd[1:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="the options are those of slit_train")
    one = commands.add_parser("predict", help="write the files that slit_score reads")
    one.add_argument("--experiment", type=Path, required=True, help="trained baseline")
    one.add_argument("--data_dir", type=Path, nargs="+", required=True)
    one.add_argument("--output_dir", type=Path, required=True)
    one.add_argument(
        "--config", default="conf/decode_mini.yaml", help="whose `caption` options"
    )
    args = parser.parse_args(cmd)
    form = "%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s"
    logging.basicConfig(level="INFO", format=form)
    predict(args)
    return None


if __name__ == "__main__":
    main()
