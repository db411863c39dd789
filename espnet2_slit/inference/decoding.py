"""Decode evaluation sets: every task of a set, resumable, complete or not there at all.

Owns the decode directory of a set and the order in which its files appear: parts of
each task, then the task's files, then `decode.json`, whose presence says that the set
is complete. It leaves the models to `inference`, the measures to `scoring`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from espnet2_slit.common import templates
from espnet2_slit.common.files import (
    atomic,
    read_lines,
    sha256,
    write_atomically,
    write_json,
)
from espnet2_slit.data.clips import read_clips
from espnet2_slit.data.feature_cache import check_features
from espnet2_slit.data.kaldi_dir import DataDirError, read_map, read_pairs, read_set
from espnet2_slit.inference.slit import (
    LABEL_TEMPLATES,
    RERANK,
    ROUTES,
    Features,
    InferenceError,
    Speech,
    answer_options,
    generation_options,
    read_decode_config,
)

SCHEMA = 1
CHUNK = 128  # samples of one part: what a killed run loses at most
NEEDS = {
    "caption": "generator",
    "retrieval": "representation",
    "question_answering": "generator",
    "classification": None,
}


@dataclass(frozen=True)
class DecodeOptions:
    """Everything that decides the result of decoding; conf/decode*.yaml has these keys.

    Args:
        caption: fields of GenerationOptions for captions.
        question_answering: fields of GenerationOptions for free answers.
        caption_instruction: wording for sets without `instruction`; "": the default.
        classification_instruction: likewise.
        routes: how labels are scored, of similarity, matching and language_model.
        label_templates: texts with "{}" for the label.
        rerank: candidates of each query that the matching head looks at; 0 for none.
        rerank_scale: of the cosine that is added to the matching logit in retrieval;
            None: 1 / temperature, the scale of logits; 1: the bare cosine, as LAVIS.
        attention_clips: clips whose attention maps are kept for the report.
        seed: for sampling.
    """

    caption: dict = field(default_factory=dict)
    question_answering: dict = field(default_factory=dict)
    caption_instruction: str = ""
    classification_instruction: str = ""
    routes: tuple = ROUTES
    label_templates: tuple = LABEL_TEMPLATES
    rerank: int = RERANK
    rerank_scale: float | None = None
    attention_clips: int = 4
    seed: int = 0

    def __post_init__(self):
        for name in ("routes", "label_templates"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        unknown = sorted(set(self.routes) - set(ROUTES))
        if unknown:
            raise InferenceError(f"routes: expected some of {ROUTES}, found {unknown}.")
        generation_options(self.caption)
        answer_options(self.question_answering)

    @classmethod
    def from_config(cls, path=None, **overrides):
        """Options of a YAML file; `overrides` that are not None come first.

        Raises:
            InferenceError: an unknown key.
        """
        known = list(cls.__dataclass_fields__)
        content = read_decode_config(path, known)
        for name, value in overrides.items():
            if value is not None:
                both = isinstance(value, dict) and isinstance(content.get(name), dict)
                content[name] = {**content[name], **value} if both else value
        return cls(**content)

    def generation(self, task):
        """GenerationOptions of a task, seeded."""
        return generation_options({"seed": self.seed, **getattr(self, task)})

    def of_system(self, slit):
        """These options, without what the system has no part for: says what."""
        if not self.caption.get("rerank") or slit.representation is not None:
            return self
        logging.warning(
            "captions are not re-ranked (rerank %s): the system has no representation"
            " part",
            self.caption["rerank"],
        )
        return replace(self, caption={**self.caption, "rerank": 0})


# -------------------------------------------------------------------------- the set


class EvaluationSet:
    """An evaluation set with its audio, cached or not.

    Args:
        data_dir: data directory; with feats.scp and feats.json the frames are cached.
        slit: system that will read it.
        audio: "auto" takes cached features where they are, "features" insists on
            them, "waveform" ignores them.

    Raises:
        DataDirError: an empty set, or files that do not fit together.
        FeatureCacheError: features of another encoder.
    """

    def __init__(self, data_dir, slit, audio="auto"):
        self.dir = Path(data_dir)
        self.facts = read_set(self.dir)
        cached = (self.dir / "feats.json").is_file()
        if audio == "features" and not cached:
            raise DataDirError(
                f"{self.dir}: no feats.json, expected cached features. Run stage 1, or"
                " decode waveforms (--audio waveform)."
            )
        self.cached = cached and audio != "waveform"
        self.samples, clips = read_clips(self.dir)  # {sample: clip}, {clip: Clip}
        if self.cached:
            check_features(self.dir, slit.encoder_identity)
            kept = set(sample_ids_of(self.dir / "feats.scp"))
            self.samples = {s: c for s, c in self.samples.items() if s in kept}
        first = {}
        for sample, clip in self.samples.items():
            first.setdefault(clip, sample)
        self.clip_ids = sorted(first, key=str.encode)
        self.clip_index = {clip: i for i, clip in enumerate(self.clip_ids)}
        if self.cached:
            keys = [first[clip] for clip in self.clip_ids]
            fps = slit.encoder_identity["frames_per_second"]
            self.clips = Features(self.dir / "feats.scp", keys, fps)
        else:
            some = [clips[clip] for clip in self.clip_ids]
            self.clips = Speech.of_clips(some, slit.sample_rate)

    def tasks(self):
        """Tasks that set.json names; without it, those that the files allow."""
        if self.facts.get("tasks"):
            return list(self.facts["tasks"])
        if (self.dir / "labels").is_file():
            return ["classification"]
        if (self.dir / "instruction").is_file():
            return ["question_answering"]
        return ["caption", "retrieval"]

    def map(self, name):
        """{sample: value} of a file; {} if the set has no such file."""
        path = self.dir / name
        return read_map(path) if path.is_file() else {}

    def lines(self, name):
        """Lines of a file without keys; None if there is none."""
        path = self.dir / name
        return read_lines(path) if path.is_file() else None

    def texts(self):
        """(clip id, text) pairs that retrieval searches with and among."""
        if (self.dir / "references").is_file():
            pairs = read_pairs(self.dir / "references")
        else:
            pairs = [(self.samples.get(s, s), t) for s, t in self.map("text").items()]
        pairs = [
            (clip, text) for clip, text in pairs if clip in self.clip_index and text
        ]
        if not pairs:
            raise DataDirError(
                f"{self.dir}: no text for retrieval, expected references (or text) of"
                " its clips."
            )
        return pairs


def sample_ids_of(path):
    """Ids of a Kaldi-style file."""
    return [key for key, _ in read_pairs(path)]


# -------------------------------------------------------------------------- parts


class Parts:
    """Results of pieces of a task on disk, so that a killed run goes on.

    Args:
        folder: of the set's decode directory.
        key: what decides the results; parts of another key are not used.
        job: number of this job, from 1.
        num_jobs: jobs that share the pieces.
    """

    def __init__(self, folder, key, job=1, num_jobs=1):
        self.root = Path(folder) / ".parts"
        self.folder = self.root / key[:16]
        self.job, self.num_jobs = job, num_jobs

    def run(self, name, count, compute, size=None, every=False):
        """Compute this job's pieces of `range(count)`.

        Args:
            name: of the task.
            count: items.
            compute: indices -> {name: array with one row per index}.
            size: items of a piece; None: CHUNK.
            every: this job goes on with all pieces; then those that no other job has
                computed by then are computed here, after its own.
        """
        size = size or CHUNK
        self.folder.mkdir(parents=True, exist_ok=True)
        pieces = range(-(-count // size))
        mine = [k for k in pieces if k % self.num_jobs == self.job - 1]
        # Others' pieces from the end, which their own jobs come to last.
        others = [k for k in reversed(pieces) if k not in mine] if every else []
        kept = sum(self._path(name, k).is_file() for k in mine)
        if kept:
            logging.info("%s: %d of %d parts are kept", name, kept, len(mine))
        started, done = time.monotonic(), 0
        for k in [*mine, *others]:
            if self._path(name, k).is_file():  # perhaps another job's, just now
                continue
            indices = list(range(k * size, min((k + 1) * size, count)))
            arrays = compute(indices)
            with atomic(self._path(name, k)) as stream:
                np.savez(stream, **arrays)
            done += len(indices)
            rate = done / max(time.monotonic() - started, 1e-9)
            logging.info(
                "%s: %d of %d (%.1f a second)", name, indices[-1] + 1, count, rate
            )

    def merged(self, name, count, size=None):
        """All pieces joined.

        Raises:
            InferenceError: pieces that no job has computed.
        """
        size = size or CHUNK
        pieces = []
        absent = 0
        for k in range(-(-count // size)):
            path = self._path(name, k)
            if not path.is_file():
                absent += 1
                continue
            with np.load(path, allow_pickle=False) as loaded:
                pieces.append({key: loaded[key] for key in loaded.files})
        if absent:
            raise InferenceError(
                f"{self.folder}: {absent} parts of {name} are missing. Run the decoding"
                " jobs again; finished parts are kept."
            )
        return {key: np.concatenate([p[key] for p in pieces]) for key in pieces[0]}

    def _path(self, name, k):
        return self.folder / f"{name}.{k:05d}.npz"

    def remove(self):
        """Delete all parts; the set is complete."""
        shutil.rmtree(self.root, ignore_errors=True)


# ------------------------------------------------------------------------- decoding


def decode_set(
    slit,
    data_dir,
    output_dir,
    options=None,
    audio="auto",
    job=1,
    num_jobs=1,
    merge=None,
):
    """Decode one evaluation set.

    Args:
        slit: system.
        data_dir: the set.
        output_dir: its decode directory.
        options: DecodeOptions.
        audio: as for `EvaluationSet`.
        job: number of this job, from 1.
        num_jobs: jobs that share the set.
        merge: join the parts of all jobs; by default what one job alone does.

    Returns:
        The content of decode.json; None for a job whose set is not yet complete.

    Raises:
        InferenceError: the system can do none of the set's tasks; parts are missing.
        DataDirError: the set cannot be used.
    """
    options = (options or DecodeOptions()).of_system(slit)
    merge = num_jobs == 1 if merge is None else merge
    output_dir = Path(output_dir)
    data = EvaluationSet(data_dir, slit, audio)
    key = decode_key(slit, data, options)
    done = output_dir / "decode.json"
    if done.is_file():
        try:
            content = json.loads(done.read_text(encoding="utf-8"))
        except ValueError:
            content = {}  # damaged by somebody; it is written again
        if content.get("key") == key:
            logging.info("%s: is complete and kept", output_dir)
            return content
        logging.info(
            "%s: model, data or options have changed: decoded again", output_dir
        )
        done.unlink()
    tasks, left_out = [], {}
    for task in data.tasks():
        needed = NEEDS[task]
        if needed and getattr(slit, needed) is None:
            left_out[task] = f"the system has no {needed} part"
            logging.warning("%s: %s is not decoded: %s", data_dir, task, left_out[task])
        else:
            tasks.append(task)
    if not tasks:
        raise InferenceError(
            f"{data_dir}: the system can do none of its tasks {data.tasks()}:"
            f" {left_out}."
        )
    logging.info(
        "%s: %d samples of %d clips (%s): %s", data_dir, len(data.samples),
        len(data.clip_ids), "cached features" if data.cached else "waveforms",
        ", ".join(tasks),
    )  # fmt: skip
    parts = Parts(output_dir, key, job, num_jobs)
    started = time.monotonic()
    files = []
    for task in tasks:
        files += DECODERS[task](slit, data, output_dir, options, parts, merge)
    if not merge:
        return None
    if options.attention_clips:
        files.append(_write_attention(slit, data, output_dir, options))
    identities = slit.describe()
    content = {
        "schema": SCHEMA,
        "set": data.facts.get("name") or data.dir.name,
        "tasks": tasks,
        "not_decoded": left_out,
        "n": len(data.samples),
        "clips": len(data.clip_ids),
        "audio": "cached features" if data.cached else "waveforms",
        "model": _model_name(identities),
        "encoder": _part_name(identities["encoder"]),
        "language_model": _part_name(identities.get("language_model")),
        "decoding": decoding_facts(options, tasks),
        "seed": options.seed,
        "seconds": round(time.monotonic() - started, 1),
        "device": str(slit.device),
        "key": key,
        "identities": identities,
        "files": {
            str(path.relative_to(output_dir)): {
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
            }
            for path in files
        },
    }
    write_json(done, content)
    parts.remove()
    return content


def decode_key(slit, data, options):
    """Digest of all that decides the result."""
    from espnet2_slit.common.identity import fingerprint

    digest = hashlib.sha256()
    weights = {
        name: fingerprint(part.model_file)
        for name in ("representation", "generator")
        if (part := getattr(slit, name)) is not None
    }
    identities = [slit.encoder_identity]
    if slit.generator is not None:
        identities.append(slit.generator.options.language_model_identity)
    identities = [{k: v for k, v in i.items() if k != "path"} for i in identities]
    facts = [SCHEMA, weights, identities, asdict(options), data.cached, data.facts]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name in ("wav.scp", "segments", "utt2audio", "instruction", "references",
                 "text", "labels", "answers", "feats.json"):  # fmt: skip
        path = data.dir / name
        if path.is_file():
            digest.update(f"{name} {sha256(path)}\n".encode())
    return digest.hexdigest()


def decoding_facts(options, tasks):
    """What a score's protocol says of decoding: only what the tasks use."""
    facts = {}
    for task in ("caption", "question_answering"):
        if task in tasks:
            generation = asdict(options.generation(task))
            if not generation["do_sample"]:
                for name in ("temperature", "top_p", "top_k", "seed"):
                    del generation[name]
            if not generation["rerank"]:
                del generation["rerank"]
            facts[task] = generation
    if "retrieval" in tasks:
        facts["rerank"] = options.rerank
        if options.rerank:
            scale = options.rerank_scale
            facts["rerank_scale"] = "1 / temperature" if scale is None else scale
    if "classification" in tasks:
        facts["label_templates"] = list(options.label_templates)
    return facts


def _part_name(identity):
    if not identity:
        return None
    name = os.path.basename(str(identity.get("path") or "")) or identity.get("kind")
    return f"{name} (sha256 {str(identity['fingerprint'])[:12]})"


def _model_name(identities):
    names = []
    for part in ("generator", "representation"):
        if part in identities:
            path = Path(os.path.abspath(identities[part]["model_file"]))
            names.append(f"{path.parent.name}/{path.name}")
    return " + ".join(names)


def _write_texts(path, ids, texts):
    # A text file has one line for each id, whatever the model wrote.
    write_atomically(
        path,
        (
            f"{key} {' '.join(str(text).split())}"
            for key, text in zip(ids, texts, strict=True)
        ),
    )
    return path


def _write_arrays(path, **arrays):
    with atomic(path) as stream:
        np.savez(stream, **arrays)
    return path


def _decode_caption(slit, data, output_dir, options, parts, merge):
    wording = options.caption_instruction or templates.instruction("caption")
    given = data.map("instruction")
    of_clip = {data.samples[s]: text for s, text in given.items() if s in data.samples}

    def compute(indices):
        requests = [(i, of_clip.get(data.clip_ids[i], wording)) for i in indices]
        texts, _ = slit.respond(
            data.clips, requests, options=options.generation("caption")
        )
        return {"text": np.array(texts)}

    count = len(data.clip_ids)
    parts.run("caption", count, compute)
    if not merge:
        return []
    texts = parts.merged("caption", count)["text"]
    return [_write_texts(output_dir / "caption" / "text", data.clip_ids, texts)]


def _decode_question_answering(slit, data, output_dir, options, parts, merge):
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

    def compute(indices):
        requests = [
            (data.clip_index[data.samples[order[i]]], questions[order[i]])
            for i in indices
        ]
        texts, scores = slit.respond(
            data.clips,
            requests,
            options=options.generation("question_answering"),
            candidates=answers,
        )
        arrays = {"text": np.array(texts)}
        if answers:
            arrays["best"] = scores.argmax(axis=1)
        return arrays

    parts.run("question_answering", len(order), compute)
    if not merge:
        return []
    found = parts.merged("question_answering", len(order))
    folder = output_dir / "question_answering"
    rank = sorted(range(len(order)), key=lambda i: order[i].encode())
    ids = [order[i] for i in rank]
    files = [_write_texts(folder / "text", ids, found["text"][rank])]
    if answers:
        best = [answers[found["best"][i]] for i in rank]
        files.append(_write_texts(folder / "ranked", ids, best))
    return files


def _decode_retrieval(slit, data, output_dir, options, parts, merge):
    pairs = data.texts()
    texts = [text for _, text in pairs]
    count = len(data.clip_ids)

    # All jobs need all embeddings, to know which pairs are worth a second look.
    def embed(indices):
        return {"audio": slit.embed_clips(_Some(data.clips, indices))}

    parts.run("audio_embeddings", count, embed, every=True)
    found = slit.retrieve(
        data.clips,
        texts,
        options.rerank,
        audio_embeddings=parts.merged("audio_embeddings", count)["audio"],
        match=lambda *wanted: _match_in_parts(slit, data, *wanted, parts, merge),
        rerank_scale=options.rerank_scale,
    )
    if not merge:
        return []
    path = output_dir / "retrieval" / "scores.npz"
    audio_ids = np.array(data.clip_ids)
    text_ids = np.array([clip for clip, _ in pairs])
    return [
        _write_arrays(
            path,
            audio_ids=audio_ids,
            text_audio_ids=text_ids,
            texts=np.array(texts),
            **found,
        )
    ]


def _match_in_parts(slit, data, texts, wanted, parts, merge):
    """`SLIT.match_pairs` piece by piece; None while other jobs are at work."""

    def compute(indices):
        some = [wanted[i] for i in indices]
        logits = slit.match_pairs(_Some(data.clips, indices), texts, some)
        return {"logits": np.concatenate(logits)}

    count, size = len(data.clip_ids), 100  # a clip may stand in hundreds of pairs
    parts.run("matching", count, compute, size)
    if not merge:
        return None
    flat = parts.merged("matching", count, size)["logits"]
    return np.split(flat, np.cumsum([len(rows) for rows in wanted])[:-1])


def _decode_classification(slit, data, output_dir, options, parts, merge):
    labels = data.lines("labels")
    if not labels:
        raise DataDirError(
            f"{data.dir}: expected candidate labels, one a line, in {data.dir}/labels."
        )
    ids = list(data.samples)
    wording = options.classification_instruction or templates.instruction(
        "classification"
    )
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

    def compute(indices):
        some = [data.clip_index[data.samples[ids[i]]] for i in indices]
        with slit.encoded(_Some(data.clips, some)) as clips:
            return scores(clips, indices)

    def scores(clips, indices):
        arrays = {}
        if "similarity" in routes:
            arrays["similarity"] = slit.label_similarities(
                clips, labels, options.label_templates
            )
        if "matching" in routes:
            arrays["matching"] = slit.label_matches(
                clips, labels, options.label_templates
            )
        if "language_model" in routes:
            wordings = [given.get(ids[i], wording) for i in indices]
            sums, lengths = slit.label_likelihoods(clips, labels, wordings)
            arrays["language_model_sum"] = sums
            arrays["language_model_mean"] = sums / lengths
        return arrays

    parts.run("classification", len(ids), compute)
    if not merge:
        return []
    found = parts.merged("classification", len(ids))
    found = {name: array.astype(np.float32) for name, array in found.items()}
    path = output_dir / "classification" / "scores.npz"
    return [_write_arrays(path, ids=np.array(ids), labels=np.array(labels), **found)]


def _write_attention(slit, data, output_dir, options):
    """attention.npz: of a few clips (n, Q, T) what the queries look at, over layers."""
    count = min(options.attention_clips, len(data.clip_ids))
    # Spread over the set: neighbours in id order are often alike.
    chosen = np.linspace(0, len(data.clip_ids) - 1, count).round().astype(int).tolist()
    chosen = sorted(set(chosen))
    maps = [found.mean(axis=0) for found in slit.attention(_Some(data.clips, chosen))]
    lengths = np.array([found.shape[-1] for found in maps])
    padded = np.zeros((len(maps), maps[0].shape[0], lengths.max()), np.float32)
    for row, found in zip(padded, maps, strict=True):
        row[:, : found.shape[-1]] = found
    return _write_arrays(
        output_dir / "attention.npz",
        ids=np.array([data.clip_ids[i] for i in chosen]),
        attention=padded,
        lengths=lengths,
        frames_per_second=np.float64(slit.encoder_identity["frames_per_second"]),
    )


class _Some:
    """Some of the clips, as clips of their own.

    Args:
        clips: Speech or Features.
        indices: which.
    """

    def __init__(self, clips, indices):
        self.whole, self.indices = clips, indices
        self.are_frames = clips.are_frames
        self.durations_s = [clips.durations_s[i] for i in indices]

    def __len__(self):
        return len(self.indices)

    def load(self, i):
        """Audio or frames of one clip."""
        return self.whole.load(self.indices[i])


DECODERS = {
    "caption": _decode_caption,
    "retrieval": _decode_retrieval,
    "question_answering": _decode_question_answering,
    "classification": _decode_classification,
}
