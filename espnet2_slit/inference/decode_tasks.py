"""The tasks of an evaluation set: what each computes and the files that it writes.

Owns the files of a decode directory. Pieces are kept by `decode_parts`, whether all is
there is `decoding`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_slit.common.files import atomic, write_atomically
from espnet2_slit.data.choices import read_choices, rotated_files
from espnet2_slit.data.kaldi_dir import DataDirError
from espnet2_slit.inference.attention import attention
from espnet2_slit.inference.choices import Asked, choose, worded
from espnet2_slit.inference.classification import (
    label_likelihoods,
    label_matches,
    label_similarities,
)
from espnet2_slit.inference.clips import Clips, Subset
from espnet2_slit.inference.decode_options import DecodeOptions
from espnet2_slit.inference.decode_parts import Parts
from espnet2_slit.inference.engine import Engine
from espnet2_slit.inference.evaluation_set import EvaluationSet
from espnet2_slit.inference.generation import generate, generate_and_score
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.retrieval import embed_clips, match_pairs, retrieve
from espnet2_slit.inference.windows import find_moments

MOMENTS = 10  # for each query
MOMENT_CHUNK = 8  # clips of one part: each may be minutes long
MATCHING_CHUNK = 100  # clips of one part: a clip may stand in hundreds of pairs


@dataclass(frozen=True)
class Job:
    """One process' share of decoding a set.

    Attributes:
        slit: the system.
        data: the set.
        folder: its decode directory.
        options: how.
        parts: pieces of results, shared with other jobs.
        merge: whether this job writes the task's files once all pieces are there.
    """

    slit: Engine
    data: EvaluationSet
    folder: Path
    options: DecodeOptions
    parts: Parts
    merge: bool


def decode_caption(job: Job) -> list[Path]:
    """caption/text: clip id and caption."""
    data, options = job.data, job.options
    wording = options.caption_instruction or job.slit.wording("caption")
    given = data.map("instruction")
    of_clip = {data.samples[s]: text for s, text in given.items() if s in data.samples}

    def compute(indices: Sequence[int]) -> dict[str, np.ndarray]:
        requests = [(i, of_clip.get(data.clip_ids[i], wording)) for i in indices]
        texts = generate(job.slit, data.clips, requests, options.generation("caption"))
        return {"text": np.array(texts)}

    count = len(data.clip_ids)
    job.parts.run("caption", count, compute)
    if not job.merge:
        return []
    texts = job.parts.merged("caption", count)["text"]
    return [write_texts(job.folder / "caption" / "text", data.clip_ids, texts)]


def decode_question_answering(job: Job) -> list[Path]:
    """question_answering/text, ranked where the set has candidates or choices.

    With `choices` also ranked_mean, and text.rotated<r> for the options in other
    orders.
    """
    data = job.data
    questions = data.map("instruction")
    # Questions about one clip stand together, so that it is encoded once.
    order = sorted(data.samples, key=lambda s: (data.samples[s].encode(), s.encode()))
    absent = [sample for sample in order if not questions.get(sample)]
    if absent:
        raise DataDirError(
            f"{data.dir}: {len(absent)} of {len(order)} samples have no question, first"
            f" {absent[0]!r}. Expected one line each in {data.dir}/instruction."
        )
    answers = data.lines("answers")
    choices = read_choices(data.dir, data.samples)
    writing = job.options.generation("question_answering")

    def compute(indices: Sequence[int]) -> dict[str, np.ndarray]:
        samples = [order[i] for i in indices]
        numbers = [data.clip_index[data.samples[s]] for s in samples]
        some = sorted(set(numbers))
        place = {number: i for i, number in enumerate(some)}
        subset = Subset(data.clips, some)
        asked = [
            Asked(place[number], questions[s], choices.get(s, []))
            for s, number in zip(samples, numbers, strict=True)
        ]
        with job.slit.several_passes(subset, bool(choices)) as clips:
            texts, scores = generate_and_score(
                job.slit, clips, worded(job.slit, asked), writing, answers
            )
            arrays = {"text": np.array(texts)}
            if scores is not None:
                arrays["best"] = scores.argmax(axis=1)
            if choices:
                orders = job.options.choice_orders
                arrays |= choose(job.slit, clips, asked, writing, orders)
        return arrays

    job.parts.run("question_answering", len(order), compute)
    if not job.merge:
        return []
    found = job.parts.merged("question_answering", len(order))
    return _write_answers(job, order, found, answers, choices)


def _write_answers(
    job: Job,
    order: list[str],
    found: dict[str, np.ndarray],
    answers: list[str] | None,
    choices: dict[str, list[str]],
) -> list[Path]:
    """The files of `decode_question_answering`; arrays are in the order of samples."""
    folder = job.folder / "question_answering"
    for old in rotated_files(folder):  # of a run with more orders
        old.unlink()
    rank = sorted(range(len(order)), key=lambda i: order[i].encode())
    files = [
        write_texts(folder / "text", [order[i] for i in rank], found["text"][rank])
    ]
    with_choices = [i for i in rank if order[i] in choices]
    for name in sorted(name for name in found if name.startswith("rotated")):
        ids = [order[i] for i in with_choices]
        files.append(
            write_texts(folder / f"text.{name}", ids, found[name][with_choices])
        )
    for name, chosen in (("ranked", "option"), ("ranked_mean", "option_mean")):
        best = {order[i]: choices[order[i]][found[chosen][i]] for i in with_choices}
        if answers and name == "ranked":
            best |= {
                order[i]: answers[found["best"][i]]
                for i in rank
                if order[i] not in choices
            }
        if best:
            ids = sorted(best, key=str.encode)
            files.append(write_texts(folder / name, ids, [best[i] for i in ids]))
    return files


def decode_retrieval(job: Job) -> list[Path]:
    """retrieval/scores.npz: all texts with all clips."""
    data = job.data
    pairs = data.texts()
    texts = [text for _, text in pairs]
    count = len(data.clip_ids)

    def embed(indices: Sequence[int]) -> dict[str, np.ndarray]:
        return {"audio": embed_clips(job.slit, Subset(data.clips, indices))}

    # All jobs need all embeddings, to know which pairs are worth a second look.
    job.parts.run("audio_embeddings", count, embed, every=True)
    found = retrieve(
        job.slit,
        data.clips,
        texts,
        job.options.rerank,
        audio_embeddings=job.parts.merged("audio_embeddings", count)["audio"],
        match=lambda some, wanted: _match_in_parts(job, some, wanted),
        rerank_scale=job.options.rerank_scale,
    )
    if not job.merge:
        return []
    scores = _write_arrays(
        job.folder / "retrieval" / "scores.npz",
        audio_ids=np.array(data.clip_ids),
        text_audio_ids=np.array([clip for clip, _ in pairs]),
        texts=np.array(texts),
        **found,
    )
    return [scores]


def _match_in_parts(
    job: Job, texts: Sequence[str], wanted: Sequence[np.ndarray]
) -> list[np.ndarray] | None:
    """`match_pairs` piece by piece; None while other jobs are at work."""

    def compute(indices: Sequence[int]) -> dict[str, np.ndarray]:
        some = [wanted[i] for i in indices]
        logits = match_pairs(job.slit, Subset(job.data.clips, indices), texts, some)
        return {"logits": np.concatenate(logits)}

    count = len(job.data.clip_ids)
    job.parts.run("matching", count, compute, MATCHING_CHUNK)
    if not job.merge:
        return None
    flat = job.parts.merged("matching", count, MATCHING_CHUNK)["logits"]
    return np.split(flat, np.cumsum([len(rows) for rows in wanted])[:-1])


def decode_classification(job: Job) -> list[Path]:
    """classification/scores.npz: all labels for all samples, by each route."""
    slit, data, options = job.slit, job.data, job.options
    labels = data.lines("labels")
    if not labels:
        raise DataDirError(
            f"{data.dir}: expected candidate labels, one a line, in {data.dir}/labels."
        )
    ids = list(data.samples)
    wording = options.classification_instruction
    if slit.generator is not None:
        wording = wording or slit.wording("classification")
    given = data.map("instruction")
    routes = [
        route
        for route in options.routes
        if (slit.generator if route == "language_model" else slit.representation)
    ]
    if not routes:
        raise InferenceError(
            f"{data.dir}: the system has no part for the routes {options.routes}."
        )

    def scores(clips: Clips, indices: Sequence[int]) -> dict[str, np.ndarray]:
        arrays = {}
        if "similarity" in routes:
            arrays["similarity"] = label_similarities(
                slit, clips, labels, options.label_templates
            )
        if "matching" in routes:
            arrays["matching"] = label_matches(
                slit, clips, labels, options.label_templates
            )
        if "language_model" in routes:
            wordings = [given.get(ids[i], wording) for i in indices]
            sums, lengths = label_likelihoods(slit, clips, labels, wordings)
            arrays["language_model_sum"] = sums
            arrays["language_model_mean"] = sums / lengths
        return arrays

    def compute(indices: Sequence[int]) -> dict[str, np.ndarray]:
        some = [data.clip_index[data.samples[ids[i]]] for i in indices]
        with slit.several_passes(Subset(data.clips, some), len(routes) > 1) as clips:
            return scores(clips, indices)

    job.parts.run("classification", len(ids), compute)
    if not job.merge:
        return []
    found = job.parts.merged("classification", len(ids))
    found = {name: array.astype(np.float32) for name, array in found.items()}
    path = job.folder / "classification" / "scores.npz"
    return [_write_arrays(path, ids=np.array(ids), labels=np.array(labels), **found)]


def decode_moments(job: Job) -> list[Path]:
    """moments/predictions.jsonl: for each query the best moments of its clip.

    A line is {"qid": sample, "query": text, "vid": clip, "duration": seconds,
    "pred_relevant_windows": [[start, end, score], ...]}, best first.
    """
    data = job.data
    queries = data.map("text")
    absent = sorted(sample for sample in data.samples if not queries.get(sample))
    if absent:
        raise DataDirError(
            f"{data.dir}: {len(absent)} of {len(data.samples)} samples have no query,"
            f" first {absent[0]!r}. Expected one line each in {data.dir}/text."
        )
    asked: dict[str, list[str]] = {clip: [] for clip in data.clip_ids}
    for sample in sorted(data.samples, key=str.encode):
        asked[data.samples[sample]].append(sample)

    def compute(indices: Sequence[int]) -> dict[str, np.ndarray]:
        samples: list[str] = []
        windows = []
        for i in indices:
            some = asked[data.clip_ids[i]]
            texts = [queries[sample] for sample in some]
            found = find_moments(
                job.slit, data.clips, i, texts, MOMENTS, job.options.moment_windows_s
            )
            for sample, moments in zip(some, found, strict=True):
                rows = np.full((MOMENTS, 3), np.nan)
                rows[: len(moments)] = [[m.start_s, m.end_s, m.score] for m in moments]
                samples.append(sample)
                windows.append(rows)
        return {"sample": np.array(samples), "windows": np.stack(windows)}

    count = len(data.clip_ids)
    job.parts.run("moments", count, compute, MOMENT_CHUNK)
    if not job.merge:
        return []
    found = job.parts.merged("moments", count, MOMENT_CHUNK)
    lines = []
    for sample, rows in zip(found["sample"].tolist(), found["windows"], strict=True):
        clip = data.samples[sample]
        line = {
            "qid": sample,
            "query": queries[sample],
            "vid": clip,
            "duration": round(data.clips.durations_s[data.clip_index[clip]], 3),
            "pred_relevant_windows": rows[np.isfinite(rows[:, 0])].round(4).tolist(),
        }
        lines.append(json.dumps(line, ensure_ascii=False))
    path = job.folder / "moments" / "predictions.jsonl"
    write_atomically(path, lines)
    return [path]


def write_attention(job: Job) -> Path:
    """attention.npz: of a few clips (n, Q, T) what the queries look at, over layers."""
    data = job.data
    count = min(job.options.attention_clips, len(data.clip_ids))
    # Spread over the set: neighbours in id order are often alike.
    spread = np.linspace(0, len(data.clip_ids) - 1, count).round().astype(int)
    chosen = sorted(set(spread.tolist()))
    maps = [
        found.mean(axis=0) for found in attention(job.slit, Subset(data.clips, chosen))
    ]
    lengths = np.array([found.shape[-1] for found in maps])
    padded = np.zeros((len(maps), maps[0].shape[0], lengths.max()), np.float32)
    for row, found in zip(padded, maps, strict=True):
        row[:, : found.shape[-1]] = found
    return _write_arrays(
        job.folder / "attention.npz",
        ids=np.array([data.clip_ids[i] for i in chosen]),
        attention=padded,
        lengths=lengths,
        frames_per_second=np.float64(job.slit.encoder_identity["frames_per_second"]),
    )


def write_texts(path: Path, ids: Iterable[str], texts: Iterable[Any]) -> Path:
    """A text file; it has one line for each id, whatever the model wrote."""
    write_atomically(
        path,
        (
            f"{key} {' '.join(str(text).split())}"
            for key, text in zip(ids, texts, strict=True)
        ),
    )
    return path


def _write_arrays(path: Path, **arrays: Any) -> Path:
    with atomic(path) as stream:
        np.savez(stream, **arrays)
    return path


# What each task needs of a system (None: any part), and what decodes it.
DECODERS: dict[str, tuple[str | None, Callable[[Job], list[Path]]]] = {
    "caption": ("generator", decode_caption),
    "retrieval": ("representation", decode_retrieval),
    "question_answering": ("generator", decode_question_answering),
    "classification": (None, decode_classification),
    "moments": ("representation", decode_moments),
}
