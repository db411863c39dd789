#!/usr/bin/env python3
"""Train a BEATs checkpoint on, or on from another to, the labels of a data directory.

Owns the training of a small encoder on clip labels: few real recordings, so much is
varied (time shift, loudness, masked bands and stretches, mixtures of two clips). Only
the directories that are named are heard: name training folds. The encoder's parts and
its checkpoint are `mini_encoder`'s.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from mini.training import LOGGER, fit, make_parser, prepare
from mini_encoder import (
    BANDS,
    CONFIG,
    FBANK_STD,
    FRAMES_PER_PATCH,
    SAMPLE_RATE,
    encode,
    fbank,
    make_encoder,
)

from espnet2_slit.common.weights import read_checkpoint
from espnet2_slit.data.audio import read_audio
from espnet2_slit.data.clips import read_clips
from espnet2_slit.data.kaldi_dir import read_map

VERSION = 2
SETTINGS = dict(epochs=20, batch_size=16, learning_rate=1e-3, crop_s=2.56, seed=1)


def load_clips(directories, labels=None):
    """Filterbanks and labels of all clips; samples that are no labels are left out.

    Args:
        directories: Paths of data directories with wav.scp and text.
        labels: list of label names; None takes all that there are, sorted.

    Returns:
        (list of (frames, 128) tensors, (N,) label numbers, label names).

    Raises:
        ValueError: nothing to train on, or a label that is not among `labels`.
    """
    clips = {}
    for directory in directories:
        samples, audio = read_clips(directory)
        text, tasks = read_map(directory / "text"), directory / "utt2task"
        tasks = read_map(tasks) if tasks.exists() else {}
        for sample, clip in samples.items():
            if tasks.get(sample, "classification") == "classification":
                clips[clip] = audio[clip], text[sample]
    if not clips:
        raise ValueError(
            f"{', '.join(map(str, directories))}: no sample with a label (utt2task "
            "classification) in wav.scp; expected some"
        )
    found = sorted({label for _, label in clips.values()})
    labels = labels or found
    if not set(found) <= set(labels):
        raise ValueError(
            f"labels {sorted(set(found) - set(labels))} are not among the "
            f"{len(labels)} of training"
        )
    frames, targets = [], []
    for clip, label in clips.values():
        waveform = read_audio(clip.path, SAMPLE_RATE, clip.start_s, clip.end_s)
        frames.append(fbank(torch.as_tensor(waveform)))
        targets.append(labels.index(label))
    return frames, torch.tensor(targets), labels


def cut(frames, length, start):
    """`length` frames from `start` on, going round: (length, 128)."""
    index = (start + torch.arange(length)) % len(frames)
    return frames[index]


def vary(frames, generator):
    """A normalised logarithmic filterbank, louder or softer, and masked; (frames, 128).

    Loudness, masked bands and stretches are drawn; the input is not changed.
    """
    # 1 unit is 2 * 6.56 in log power: a factor of 10 in amplitude is 0.35.
    frames = frames + generator.uniform(-0.35, 0.2)
    slope = torch.linspace(-0.5, 0.5, frames.shape[1]) * generator.uniform(-0.3, 0.3)
    frames = frames + slope  # another microphone
    for _ in range(2):
        width = int(generator.integers(0, 24))
        low = int(generator.integers(0, frames.shape[1] - width))
        frames[:, low : low + width] = frames.mean()
        width = int(generator.integers(0, len(frames) // 6))
        start = int(generator.integers(0, len(frames) - width))
        frames[start : start + width] = frames.mean()
    return frames


def mix(one, other, share: float):
    """Filterbank (frames, 128) of two clips played together, `share` of the first.

    It is the logarithm of the weighted sum of powers.
    """
    scale = 2 * FBANK_STD
    log_share, log_rest = (float(np.log(s)) * 2 / scale for s in (share, 1 - share))
    one, other = (one + log_share) * scale, (other + log_rest) * scale
    return torch.logaddexp(one, other) / scale


class Tagger(torch.nn.Module):
    """Linear on the mean and the maximum over time, thrown away after training."""

    def __init__(self, width, labels):
        super().__init__()
        self.linear = torch.nn.Linear(2 * width, labels)

    def forward(self, tokens):
        """(B, T, D_a) -> (B, labels)."""
        steps = tokens.unflatten(1, (-1, BANDS)).mean(2)  # (B, steps, D_a)
        return self.linear(torch.cat([steps.mean(1), steps.amax(1)], dim=1))


def train(encoder, frames, targets, labels, options):
    """Train an encoder in place, with a Tagger, which is returned.

    Args:
        encoder: of mini_encoder.
        frames: list of (frames, 128).
        targets: (N,) label numbers.
        labels: how many there are.
        options: epochs, batch_size, learning_rate, crop_s, seed, precision.
    """
    torch.manual_seed(options.seed)
    generator = np.random.default_rng(options.seed)
    tagger = Tagger(encoder.output_size(), labels)
    length = int(options.crop_s * 100) // FRAMES_PER_PATCH * FRAMES_PER_PATCH

    def draw(number):
        start = int(generator.integers(0, len(frames[number])))
        return vary(cut(frames[number], length, start), generator)

    def batches():
        for _ in range(options.epochs):
            order = generator.permutation(len(frames))
            for first in range(0, len(order), options.batch_size):
                yield order[first : first + options.batch_size]

    def loss_of(numbers):
        inputs, wanted = [], []
        for number in numbers:
            other = int(generator.integers(0, len(frames)))
            share = float(generator.uniform(0.5, 0.98))
            inputs.append(mix(draw(number), draw(other), share))
            row = torch.zeros(labels)
            # What is heard counts, and it counts by its part of the amplitude.
            row[targets[number]] += share
            row[targets[other]] += 1 - share
            wanted.append(row)
        logits = tagger(encode(encoder, torch.stack(inputs)))
        return torch.nn.functional.cross_entropy(
            logits.float(), torch.stack(wanted), label_smoothing=0.1
        )

    steps = -(-len(frames) // options.batch_size)
    how = {"lr": options.learning_rate, "weight_decay": 0.05}
    settings = options.epochs * steps, loss_of, options.precision, 0.15, 10 * steps
    fit("Encoder", [encoder, tagger], batches(), *settings, **how)
    return tagger


@torch.no_grad()
def accuracy(encoder, tagger, frames, targets):
    """Share of clips whose label has the highest score."""
    right = 0
    for clip, target in zip(frames, targets, strict=True):
        length = max(1, len(clip) // FRAMES_PER_PATCH) * FRAMES_PER_PATCH
        logits = tagger(encode(encoder, cut(clip, length, 0).unsqueeze(0)))
        right += int(logits.argmax() == target)
    return right / len(frames)


def main():
    """Command line."""
    parser = make_parser(__doc__, **SETTINGS)
    parser.add_argument("--data-dir", type=Path, nargs="+", required=True)
    parser.add_argument("--valid-dir", type=Path, nargs="*", default=[])
    parser.add_argument("--init", type=Path, help="BEATs checkpoint to go on from")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    prepare(args.threads)

    names = ("wav.scp", "text")
    sources = [folder / name for folder in args.data_dir for name in names]
    sources += [args.init] if args.init else []
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    about = {"version": VERSION, "made_from": digest.hexdigest()}
    about |= {name: getattr(args, name) for name in SETTINGS}
    first = read_checkpoint(args.init) if args.init else {"cfg": CONFIG, "model": None}

    def learn(encoder, precision):
        args.precision = precision
        frames, targets, labels = load_clips(args.data_dir)
        LOGGER.info("Encoder: %d clips of %d labels", len(frames), len(labels))
        tagger = train(encoder, frames, targets, len(labels), args)
        if not args.valid_dir:
            return {}
        frames, targets, _ = load_clips(args.valid_dir, labels)
        right = accuracy(encoder, tagger, frames, targets)
        share = f"{100 * right:.1f} % of {len(frames)} validation clips"
        LOGGER.info("Encoder: %s right", share)
        return {"valid_accuracy": right}

    make_encoder(args, about, first["cfg"], first["model"], learn)


if __name__ == "__main__":
    main()
