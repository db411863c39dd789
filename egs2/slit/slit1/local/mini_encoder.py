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
from collections.abc import Callable
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
from espnet2_slit.common.precision import choose_precision
from espnet2_slit.common.weights import read_checkpoint
from espnet2_slit.data.audio import read_audio
from espnet2_slit.model.audio_encoder.beats_attention import use_lean_attention

VERSION = 2
FBANK_MEAN = 15.41663  # as the public BEATs checkpoints
FBANK_STD = 6.55582
FRAMES_PER_PATCH = 16  # 10 ms each: one time step of the encoder is 160 ms
BANDS = 8  # patches along frequency: 128 mel bins / 16
SETTINGS = {"epochs": 6, "batch_size": 24, "learning_rate": 3e-3, "seed": 1}
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
    "conv_pos_groups": 9,  # of 16 channels: with 18 its gradient takes twice as long
    "relative_position_embedding": True,
    "num_buckets": 64,
    "max_distance": 256,
    "gru_rel_pos": True,
    "finetuned_model": False,
}


def build_encoder(config: dict, seed: int) -> BeatsEncoder:
    """ESPnet's BEATs with BEATs' own initialisation, by the "cfg" of a checkpoint."""
    torch.manual_seed(seed)
    scale = {"fbank_mean": FBANK_MEAN, "fbank_std": FBANK_STD}
    encoder = BeatsEncoder(input_size=1, beats_config=config, **scale)
    encoder.loaded_state_dict_ = None
    encoder.reload_pretrained_parameters()
    use_lean_attention(encoder)
    return encoder


def fbank(waveform):
    """Normalised filterbank as BeatsEncoder.preprocess makes it.

    (S,) float32 in [-1, 1], 16 kHz -> (frames, 128) float32, one frame per 10 ms.
    """
    frames = torchaudio.compliance.kaldi.fbank(
        waveform.unsqueeze(0) * 2**15,
        num_mel_bins=16 * BANDS,
        sample_frequency=SAMPLE_RATE,
        frame_length=25,
        frame_shift=10,
    )
    return (frames - FBANK_MEAN) / (2 * FBANK_STD)


def encode(encoder: BeatsEncoder, frames):
    """BeatsEncoder from its normalised filterbank on, without padding.

    (B, frames, 128) -> (B, T, D_a), 8 patches (low to high) for each 160 ms.
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


def save_checkpoint(path: Path, encoder: BeatsEncoder, config: dict, about: dict):
    """Write a BEATs checkpoint, with plain values of how it was made, atomically."""
    checkpoint = {"cfg": config, "model": encoder.state_dict(), "about": about}
    with atomic(path) as stream:
        torch.save(checkpoint, stream)


def make_encoder(
    args, about: dict, config: dict, initial: dict | None, learn: Callable
):
    """Write args.output, unless it is there and made by the same settings.

    Args:
        args: of the command line: output, seed, precision.
        about: settings.
        config: BEATs configuration.
        initial: weights to go on from; None begins at random.
        learn: trains an encoder in a precision -> what `about` shall say of it.
    """
    if args.output.exists():
        found = read_checkpoint(args.output)
        made = {**found.get("about", {}), "cfg": found["cfg"]}
        if is_there(args.output, made, {**about, "cfg": config}, args.precision):
            return
    precision = choose_precision(args.precision)
    encoder = build_encoder(config, args.seed)
    if initial is not None:
        encoder.load_state_dict(initial)
    about = {**about, "precision": precision, **learn(encoder, precision)}
    save_checkpoint(args.output, encoder.eval(), config, about)
    LOGGER.info("Encoder: %s", args.output)


# --------------------------------------------------------------------------------- tags


def tag_names():
    """Names of the tags; classes that training never has get no output."""
    names = [f"source {name}" for name in SOURCES]
    names += [f"manner {name}" for name in MANNERS]
    names += [f"class {manner} {source}" for manner, source in SEEN_CLASSES]
    values = ("low", "high", "loud", "quiet")
    names += [f"{source} {value}" for source in SOURCES for value in values]
    names += ["slow", "fast"]
    # Queries read frames as a set: what comes when must be in the frames themselves.
    names += ["order first", "order second", "order together"]
    names += ["repetition 2", "repetition 3", "repetition 4"]
    names += [f"background {name}" for name in BACKGROUNDS]
    return names


def scene_tags(scene, steps, index):
    """Tags of each 160 ms of a Scene, (steps, tags) float32 of 0 and 1.

    `index` gives a tag's column. An event counts where it fills half of a step or more.
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


def load_split(audio_dir: Path, split: str) -> list:
    """((frames, 128), (steps, tags)) tensors of a split's clips, e.g. of mini_train.

    `audio_dir` has scenes.jsonl and <split>/<clip>.flac.
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


# ----------------------------------------------------------------------------- training


def batches(items, batch_size, generator):
    """One epoch of the items of load_split, of like length, cut: nothing is padded.

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


def train(encoder, items, epochs, batch_size, learning_rate, seed, **options):
    """Train on the items of load_split; `options` are of `fit`, the rate the highest.

    Returns:
        torch.nn.Linear from D_a to tags, trained with it, thrown away afterwards.
    """
    tagger = torch.nn.Linear(encoder.output_size(), items[0][1].shape[1])
    modules = [encoder, tagger]
    torch.nn.init.constant_(tagger.bias, -3.0)  # most tags are absent
    generator = np.random.default_rng(seed)

    def loss_of(batch):
        frames, tags = batch
        logits = tagger(encode(encoder, frames))  # (B,T,tags)
        # Every band of a step has to tell its tags, not their mean alone: a query
        # that looks anywhere then finds them.
        return F.binary_cross_entropy_with_logits(
            logits.float(), tags.repeat_interleave(BANDS, dim=1)
        )

    steps = -(-len(items) // batch_size)
    drawn = (b for _ in range(epochs) for b in batches(items, batch_size, generator))
    how = {"lr": learning_rate, "weight_decay": 0.01, "betas": (0.9, 0.98)}
    how |= {"precision": "auto", "warm_up": 0.1, "every": steps, **options}
    fit("Encoder", modules, drawn, epochs * steps, loss_of, **how)
    return tagger


@torch.no_grad()
def evaluate(encoder, tagger, items):
    """Mean average precision of clip tags: the highest score in time counts.

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
    folder = Path("downloads/mini")
    paths = {"audio_dir": folder / "audio", "output": folder / "audio_encoder.pt"}
    parser = make_parser(__doc__, **paths, **SETTINGS)
    parser.add_argument("--random", action="store_true", help="do not train (ablation)")
    args = parser.parse_args()
    prepare(1)  # a language model is trained beside
    stamp = args.audio_dir / "corpus.json"
    if not stamp.exists():
        parser.error(f"no {stamp}; run mini_corpus.py first")
    settings = {name: getattr(args, name) for name in SETTINGS}
    corpus = json.loads(stamp.read_text())["audio_digest"]
    about = {"version": VERSION, "corpus": corpus, **settings}
    if args.random:
        about["epochs"] = 0

    def learn(encoder, precision):
        if args.random:
            return {}
        items = load_split(args.audio_dir, "mini_train")
        how = {**settings, "precision": precision, "end_threads": args.threads}
        tagger = train(encoder, items, **how)
        scores = evaluate(encoder, tagger, load_split(args.audio_dir, "mini_valid"))
        LOGGER.info("Encoder: mean average precision, validation clips: %s", scores)
        return {"valid_mean_average_precision": scores}

    make_encoder(args, about, CONFIG, None, learn)


if __name__ == "__main__":
    main()
