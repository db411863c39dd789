"""A small decoded experiment of known quality, for the tests of scoring."""

import json
from pathlib import Path

import numpy as np
import soundfile

SOURCES = ("dog", "bell", "engine", "bird", "rain", "drum", "horn", "door")
MANNERS = ("loudly", "softly", "twice", "again and again")
LABELS = tuple(sorted(SOURCES))
CLIPS = 32
KNOWN = {"schema": 1, "model": "tiny", "encoder": "beats", "language_model": "t5"}


def _write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _audio(folder, clips):
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, clip in enumerate(clips):
        path = folder / f"{clip}.wav"
        time = np.arange(4000 + 400 * i) / 16000
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * (200 + 40 * i) * time), 16000)
        lines.append(f"{clip} {path}")
    return lines


def _facts(folder, split, tasks, **more):
    facts = {"schema": 1, "name": folder.name, "corpus": "case", "split": split}
    facts |= {"variant": "", "tasks": tasks, "zero_shot": False, "notes": ""} | more
    (folder / "set.json").write_text(json.dumps(facts))


def _decoded(folder, tasks, n, **more):
    decode = KNOWN | {"set": folder.name, "tasks": tasks, "n": n, "seed": 0}
    decode |= {"decoding": {"num_beams": 5}} | more
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "decode.json").write_text(json.dumps(decode))


def captions_of(i):
    """Five references of clip i."""
    source, manner = SOURCES[i % len(SOURCES)], MANNERS[i // len(SOURCES)]
    return [
        f"A {source} sounds {manner}.",
        f"{manner}, a {source} can be heard",
        f"there is the sound of a {source}, {manner}",
        f"one hears a {source} that sounds {manner}",
        f"a {source} {manner} in the background",
    ]


def build(root, quality=0.8, seed=0, attention=False):
    """Write data/<set> and exp/case_instruction/decode_a/<set>.

    Args:
        root: Path, empty.
        quality: share of the items that the system gets right.
        seed: of which ones.
        attention: write attention.npz for the caption set.

    Returns:
        (data directory, decode directory).
    """
    root = Path(root)
    data = root / "data"
    decode = root / "exp" / "case_instruction" / "decode_a"
    random = np.random.RandomState(seed)
    clips = [f"clip-{i:02d}" for i in range(CLIPS)]
    audio = _audio(root / "wav", clips)
    right = random.rand(CLIPS) < quality
    _captions(data / "test_caption", decode / "test_caption", audio, clips, right)
    _labels(data / "test_class", decode / "test_class", audio, clips, right, random)
    _answers(data / "test_qa", decode / "test_qa", audio, clips, right)
    if attention:
        np.savez(
            decode / "test_caption" / "attention.npz",
            ids=np.array(clips[:2]),
            attention=random.rand(2, 4, 25).astype(np.float32),
            lengths=np.array([12, 25]),
            frames_per_second=np.float64(50),
        )
    return data, decode


def _captions(folder, decode, audio, clips, right):
    _write(folder / "wav.scp", audio)
    _write(folder / "text", [f"{c} {captions_of(i)[0]}" for i, c in enumerate(clips)])
    _write(folder / "utt2spk", [f"{c} dummy" for c in clips])
    references = [f"{c} {text}" for i, c in enumerate(clips) for text in captions_of(i)]
    _write(folder / "references", sorted(references))
    _facts(folder, "test", ["caption", "retrieval"])
    _decoded(decode, ["caption", "retrieval"], len(clips))
    hypotheses = [
        captions_of(i)[1] if right[i] else captions_of((i + 3) % CLIPS)[2]
        for i in range(CLIPS)
    ]
    lines = [f"{c} {h}" for c, h in zip(clips, hypotheses, strict=True)]
    _write(decode / "caption" / "text", lines)

    owner = np.repeat(np.arange(CLIPS), 5)
    random = np.random.RandomState(5)
    first = random.rand(len(owner), CLIPS).astype(np.float32)
    first[np.arange(len(owner)), owner] += np.where(right[owner], 0.8, 0.0)
    reranked = first.copy()
    reranked[np.arange(len(owner)), owner] += 0.2
    (decode / "retrieval").mkdir(parents=True)
    np.savez(
        decode / "retrieval" / "scores.npz",
        audio_ids=np.array(clips),
        text_audio_ids=np.array([clips[o] for o in owner]),
        texts=np.array([t for i in range(CLIPS) for t in captions_of(i)]),
        contrastive=first,
        reranked_text_to_audio=reranked,
        reranked_audio_to_text=reranked,
    )


def _labels(folder, decode, audio, clips, right, random):
    truth = [SOURCES[i % len(SOURCES)] for i in range(CLIPS)]
    _write(folder / "wav.scp", audio)
    _write(folder / "text", [f"{c} {t}" for c, t in zip(clips, truth, strict=True)])
    _write(folder / "utt2spk", [f"{c} dummy" for c in clips])
    _write(folder / "utt2fold", [f"{c} {1 + i % 4}" for i, c in enumerate(clips)])
    _write(folder / "labels", LABELS)
    _facts(folder, "test", ["classification"])
    _decoded(decode, ["classification"], len(clips))
    scores = random.rand(CLIPS, len(LABELS)).astype(np.float32)
    own = np.array([LABELS.index(t) for t in truth])
    scores[np.arange(CLIPS), own] += np.where(right, 1.0, 0.0)
    (decode / "classification").mkdir(parents=True)
    order = random.permutation(CLIPS)
    np.savez(
        decode / "classification" / "scores.npz",
        ids=np.array(clips)[order],
        labels=np.array(LABELS),
        similarity=scores[order],
        language_model_sum=scores[order] - 9,
        language_model_mean=scores[order] / 3,
    )


def _answers(folder, decode, audio, clips, right):
    paths = dict(line.split(" ", 1) for line in audio)
    rows = []
    for i, clip in enumerate(clips):
        source = SOURCES[i % len(SOURCES)]
        yes = "yes" if i % 3 else "no"
        rows.append((f"{clip}_q0", clip, "What is heard?", source, right[i]))
        rows.append((f"{clip}_q1", clip, "Is it loud?", yes, right[i]))
    _write(folder / "wav.scp", [f"{r[0]} {paths[r[1]]}" for r in rows])
    _write(folder / "text", [f"{r[0]} {r[3]}" for r in rows])
    _write(folder / "instruction", [f"{r[0]} {r[2]}" for r in rows])
    _write(folder / "utt2audio", [f"{r[0]} {r[1]}" for r in rows])
    _write(folder / "utt2spk", [f"{r[0]} dummy" for r in rows])
    _write(folder / "answers", ["yes", "no", *SOURCES])
    _facts(folder, "test", ["question_answering"])
    _decoded(decode, ["question_answering"], len(rows))
    free = [f"{r[0]} {r[3].title() + '.' if r[4] else 'nothing'}" for r in rows]
    ranked = [f"{r[0]} {r[3] if r[4] else 'yes'}" for r in rows]
    _write(decode / "question_answering" / "text", free)
    _write(decode / "question_answering" / "ranked", ranked)


def train_log(folder, epochs=5, first=1):
    """Write a train.log as ESPnet's Trainer does."""
    lines = ["# python -m espnet2_slit.bin.slit_train", "# Started at Mon Nov 23"]
    for epoch in range(first, first + epochs):
        stats = (
            f"iter_time=0.001, loss={3 / epoch:.3f}, loss_contrastive={2 / epoch:.3f}, "
            f"accuracy={1 - 0.8 / epoch:.3f}, backward_time=0.1, grad_norm=1.2, "
            "clip=100.000, loss_scale=1.000, optim_step_time=0.01, "
            "optim0_lr0=1.000e-04, train_time=0.2, "
        )
        lines.append(
            f"[host] 2025-11-23 12:00:00,000 (trainer:394) INFO: {epoch}epoch results: "
            f"[train] {stats}time=1 minute and 3.2 seconds, total_count={10 * epoch}, "
            f"gpu_max_cached_mem_GB=1.5, [valid] loss={3.3 / epoch:.3e}, "
            f"loss_contrastive=nan, accuracy={1 - 0.9 / epoch:.3f}, "
            "time=2.1 seconds, total_count=4, gpu_max_cached_mem_GB=1.5"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.log").write_text("\n".join(lines) + "\n")
