#!/usr/bin/env python3
"""Train the mini recipe's frozen audio encoder: ESPnet's BEATs, small, on event tags.

Owns the encoder's size, its training and the BEATs checkpoint it writes ({"cfg",
"model"}); only training clips are heard. The module, its filterbank and its
initialisation are ESPnet's; the loop is ours because ESPnet's `cls` task needs a
package that ESPnet does not declare (torcheval), knows one label set per clip and
computes the filterbank anew in every epoch, while here each 160 ms have their tags
and the filterbank is computed once: with the same minutes that trains three times as
long on targets that are ten times as many.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio.compliance.kaldi
from mini.scenes import BACKGROUNDS, MANNERS, SEEN_CLASSES, SOURCES, scene_from_json
from mini.sounds import SAMPLE_RATE
from mini.training import LOGGER, fit, is_there, make_parser, prepare
from sklearn.metrics import average_precision_score

from espnet2_slit.common.compat import BeatsEncoder
from espnet2_slit.common.files import atomic
from espnet2_slit.common.precision import autocast, choose_precision
from espnet2_slit.common.weights import read_checkpoint
from espnet2_slit.data.audio import read_audio

VERSION = 2
FBANK_MEAN = 15.41663  # as the public BEATs checkpoints
FBANK_STD = 6.55582
FRAMES_PER_PATCH = 16  # 10 ms each: one time step of the encoder is 160 ms
BANDS = 8  # patches along frequency: 128 mel bins / 16
CONFIG = {
    "input_patch_size": 16,
    "embed_dim": 128,
    "conv_bias": False,
    "encoder_layers": 4,
    "encoder_embed_dim": 144,
    "encoder_ffn_embed_dim": 432,
    "encoder_attention_heads": 4,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "dropout_input": 0.0,
    "conv_pos": 32,
    "conv_pos_groups": 8,
    "relative_position_embedding": True,
    "num_buckets": 64,
    "max_distance": 256,
    "gru_rel_pos": True,
    "finetuned_model": False,
}


def build_encoder(config, seed):
    """ESPnet's BEATs with BEATs' own initialisation.

    Args:
        config: BEATs configuration, the "cfg" of a checkpoint.
        seed: int.

    Returns:
        BeatsEncoder.
    """
    torch.manual_seed(seed)
    encoder = BeatsEncoder(
        input_size=1,
        beats_config=config,
        fbank_mean=FBANK_MEAN,
        fbank_std=FBANK_STD,
    )
    encoder.loaded_state_dict_ = None
    encoder.reload_pretrained_parameters()
    return encoder


def fbank(waveform):
    """Normalised filterbank as BeatsEncoder.preprocess makes it.

    Args:
        waveform: (S,) float32 in [-1, 1], 16 kHz.

    Returns:
        (frames, 128) float32, one frame per 10 ms.
    """
    frames = torchaudio.compliance.kaldi.fbank(
        waveform.unsqueeze(0) * 2**15,
        num_mel_bins=16 * BANDS,
        sample_frequency=SAMPLE_RATE,
        frame_length=25,
        frame_shift=10,
    )
    return (frames - FBANK_MEAN) / (2 * FBANK_STD)


def encode(encoder, frames):
    """BeatsEncoder from its filterbank on, without padding.

    Args:
        encoder: BeatsEncoder.
        frames: (B, frames, 128) normalised filterbank.

    Returns:
        (B, T, D_a), 8 patches (low to high) for each 160 ms.
    """
    # The patches do not overlap, so their convolution is a matrix product, of which
    # backward takes less: a tenth of a step.
    patches = frames.unfold(1, FRAMES_PER_PATCH, FRAMES_PER_PATCH)  # (B,T,128,16)
    patches = patches.unflatten(2, (BANDS, -1)).transpose(3, 4)  # (B,T,8,time,mel)
    weight = encoder.patch_embedding.weight.flatten(1)
    tokens = F.linear(patches.flatten(3).flatten(1, 2), weight)
    tokens = encoder.layer_norm(tokens)
    if encoder.post_extract_proj is not None:
        tokens = encoder.post_extract_proj(tokens)
    return encoder.encoder(encoder.dropout_input(tokens))[0]


def save_checkpoint(path, encoder, config, about):
    """Write a BEATs checkpoint; the file appears whole or not at all.

    Args:
        path: Path.
        encoder: BeatsEncoder.
        config: its configuration.
        about: dict of plain values, how it was made.
    """
    with atomic(path) as stream:
        torch.save(
            {"cfg": config, "model": encoder.state_dict(), "about": about}, stream
        )


# ---------------------------------------------------------------------------------
# Tags
# ---------------------------------------------------------------------------------


def tag_names():
    """Names of the tags; classes that training never has get no output."""
    names = [f"source {name}" for name in SOURCES]
    names += [f"manner {name}" for name in MANNERS]
    names += [f"class {manner} {source}" for manner, source in SEEN_CLASSES]
    names += [
        f"{source} {value}"
        for source in SOURCES
        for value in ("low", "high", "loud", "quiet")
    ]
    names += ["slow", "fast"]
    # Queries read frames as a set: what comes when must be in the frames themselves.
    names += ["order first", "order second", "order together"]
    names += ["repetition 2", "repetition 3", "repetition 4"]
    names += [f"background {name}" for name in BACKGROUNDS]
    return names


def scene_tags(scene, steps, index):
    """Tags of each 160 ms.

    Args:
        scene: Scene.
        steps: number of encoder time steps.
        index: dict tag -> column.

    Returns:
        (steps, tags) float32 of 0 and 1; an event counts where it fills at least
        half of the step.
    """
    tags = np.zeros((steps, len(index)), dtype=np.float32)
    step_s = FRAMES_PER_PATCH * 0.01
    if scene.background:
        tags[:, index[f"background {scene.background}"]] = 1.0
    for number, event in enumerate(scene.events):
        names = [f"source {event.source}", f"manner {event.manner}"]
        names.append(f"class {event.label}")
        names += [f"{event.source} {v}" for v in (event.pitch, event.level) if v]
        names += [event.speed] if event.speed else []
        if scene.relation == "sequence":
            names.append(("order first", "order second")[number])
        elif scene.relation == "overlap":
            names.append("order together")
        columns = [index[name] for name in names]
        for repetition, (start_s, end_s) in enumerate(event.spans, start=1):
            first = round(start_s / step_s)
            last = max(round(end_s / step_s), first + 1)
            tags[first:last, columns] = 1.0
            if repetition > 1:
                tags[first:last, index[f"repetition {repetition}"]] = 1.0
    return tags


def load_split(audio_dir, split):
    """Filterbanks and tags of a split.

    Args:
        audio_dir: Path with scenes.jsonl and <split>/<clip>.flac.
        split: e.g. mini_train.

    Returns:
        list of ((frames, 128), (steps, tags)) tensors.
    """
    index = {name: column for column, name in enumerate(tag_names())}
    items = []
    with open(audio_dir / "scenes.jsonl", encoding="utf-8") as file:
        scenes = [scene_from_json(line) for line in file]
    scenes = [scene for scene in scenes if scene.clip.rsplit("_", 1)[0] == split]
    if not scenes:
        raise ValueError(
            f"{audio_dir}/scenes.jsonl has no clip of {split}; run mini_corpus.py"
        )
    for scene in scenes:
        path = audio_dir / split / f"{scene.clip}.flac"
        frames = fbank(torch.as_tensor(read_audio(path, SAMPLE_RATE)))
        steps = len(frames) // FRAMES_PER_PATCH
        frames = frames[: steps * FRAMES_PER_PATCH]
        items.append((frames, torch.from_numpy(scene_tags(scene, steps, index))))
    LOGGER.info("Encoder: filterbank of %d clips", len(items))
    return items


# ---------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------


def batches(items, batch_size, generator):
    """One epoch of clips of like length, cut to the shortest: nothing is padded.

    Args:
        items: list of ((frames, 128), (steps, tags)).
        batch_size: clips per batch.
        generator: numpy Generator.

    Yields:
        (B, frames, 128), (B, steps, tags).
    """
    noise = generator.uniform(0.0, 1.5, len(items))  # 160 ms: not the same company
    order = np.argsort([len(item[1]) + x for item, x in zip(items, noise, strict=True)])
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    for number in generator.permutation(len(groups)):
        group = [items[i] for i in groups[number]]
        steps = min(len(tags) for _, tags in group)
        yield (
            torch.stack([frames[: steps * FRAMES_PER_PATCH] for frames, _ in group]),
            torch.stack([tags[:steps] for _, tags in group]),
        )


def train(encoder, items, epochs, batch_size, learning_rate, seed, precision="auto"):
    """Train encoder and a linear tagger that is thrown away afterwards.

    Args:
        encoder: BeatsEncoder.
        items: list of ((frames, 128), (steps, tags)).
        epochs: passes over the clips.
        batch_size: clips per step.
        learning_rate: peak of a one-cycle schedule.
        seed: int.
        precision: of the products: auto, float32 or bfloat16.

    Returns:
        the tagger: torch.nn.Linear from D_a to tags.
    """
    tagger = torch.nn.Linear(encoder.output_size(), items[0][1].shape[1])
    torch.nn.init.constant_(tagger.bias, -3.0)  # most tags are absent
    optimizer = torch.optim.AdamW(
        [*encoder.parameters(), *tagger.parameters()],
        lr=learning_rate,
        weight_decay=0.01,
        betas=(0.9, 0.98),
        fused=True,
    )
    generator = np.random.default_rng(seed)

    def loss_of(batch):
        frames, tags = batch
        with autocast(precision):  # weights stay float32
            logits = tagger(encode(encoder, frames))  # (B,T,tags)
        # Every band of a step has to tell its tags, not their mean alone: a query
        # that looks anywhere then finds them.
        return F.binary_cross_entropy_with_logits(
            logits.float(), tags.repeat_interleave(BANDS, dim=1)
        )

    steps = -(-len(items) // batch_size)
    drawn = (b for _ in range(epochs) for b in batches(items, batch_size, generator))
    modules = [encoder, tagger]
    fit("Encoder", modules, optimizer, drawn, epochs * steps, loss_of, 0.1, steps)
    return tagger


@torch.no_grad()
def evaluate(encoder, tagger, items):
    """Mean average precision of clip tags: the highest score in time counts.

    Args:
        encoder: BeatsEncoder.
        tagger: Linear.
        items: list of ((frames, 128), (steps, tags)).

    Returns:
        dict kind of tag -> mean average precision, and "all".
    """
    scores, targets = [], []
    for frames, tags in items:
        tokens = encode(encoder, frames.unsqueeze(0))
        logits = tagger(tokens).unflatten(1, (-1, BANDS)).mean(2)  # (1,steps,tags)
        scores.append(logits.amax(1).squeeze(0).numpy())
        targets.append(tags.amax(0).numpy())
    scores, targets = np.stack(scores), np.stack(targets)
    kinds = {"all": []}
    for column, name in enumerate(tag_names()):
        if targets[:, column].any():
            value = average_precision_score(targets[:, column], scores[:, column])
            kinds["all"].append(value)
            kinds.setdefault(name.split()[0], []).append(value)
    names = ("all", "source", "manner", "class", "slow", "fast", "order", "repetition")
    return {name: round(float(np.mean(kinds[name])), 4) for name in names}


def main():
    """Command line."""
    parser = make_parser(
        __doc__,
        audio_dir=Path("downloads/mini/audio"),
        output=Path("downloads/mini/audio_encoder.pt"),
        epochs=6,
        batch_size=24,
        learning_rate=3e-3,
        seed=1,
    )
    parser.add_argument(
        "--random", action="store_true", help="do not train (for the ablation)"
    )
    args = parser.parse_args()
    prepare(args.threads)
    stamp = args.audio_dir / "corpus.json"
    if not stamp.exists():
        parser.error(f"no {stamp}; run mini_corpus.py first")
    about = {
        "version": VERSION,
        "corpus": json.loads(stamp.read_text())["audio_digest"],
        "epochs": 0 if args.random else args.epochs,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
    }
    if args.output.exists():
        found = read_checkpoint(args.output)
        made = {**found["about"], "cfg": found["cfg"]}
        if is_there(args.output, made, {**about, "cfg": CONFIG}, args.precision):
            return
    about["precision"] = choose_precision(args.precision)
    encoder = build_encoder(CONFIG, args.seed)
    if not args.random:
        items = load_split(args.audio_dir, "mini_train")
        settings = args.epochs, args.batch_size, args.learning_rate, args.seed
        tagger = train(encoder, items, *settings, about["precision"])
        valid = load_split(args.audio_dir, "mini_valid")
        scores = evaluate(encoder, tagger, valid)
        about["valid_mean_average_precision"] = scores
        LOGGER.info("Encoder: mean average precision, validation clips: %s", scores)
    save_checkpoint(args.output, encoder.eval(), CONFIG, about)
    LOGGER.info("Encoder: %s", args.output)


if __name__ == "__main__":
    main()
