"""From decode directories to a score table: reads both sides, checks that they agree.

Owns the file formats between decoding and scoring, for this package's systems and for
any other's predictions. How a score is computed is the business of `metrics`.
"""

import hashlib
import json
import logging
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from espnet2_slit.data.kaldi_dir import (
    clip_of,
    read_lines,
    read_map,
    read_pairs,
    read_set,
    sample_ids,
)
from espnet2_slit.scoring.metrics import classification, question_answering, retrieval
from espnet2_slit.scoring.metrics.bootstrap import (
    Items,
    NotComputed,
    mean_items,
    replicates,
)
from espnet2_slit.scoring.metrics.captioning import CaptionOptions, score_captions
from espnet2_slit.scoring.metrics.score_table import (
    Row,
    ScoreTable,
    read_items,
    read_scores,
)

DECODE_SCHEMA = 1
# classification/scores.npz: array -> what made it.
ROUTES = {
    "similarity": "contrastive similarity of clip and label prompt",
    "matching": "matching head on clip and label prompt",
    "language_model_sum": "language model, log-likelihood of the label",
    "language_model_mean": "language model, log-likelihood per token of the label",
}
# decode.json: option -> the one task that it concerns.
DECODING_OWNERS = {
    "rerank": "retrieval",
    "rerank_scale": "retrieval",
    "label_templates": "classification",
}
EXAMPLES = 8  # of each task in the report
# Cells of a similarity matrix computed at once from embeddings.
CELLS_PER_CHUNK = 16_000_000
CAPTION_CHANCE = "a reference of another, random clip of the set"
RETRIEVAL_CHANCE = "random order"
LABEL_CHANCE = "uniform guess"
ANSWER_CHANCE = "the most frequent answer of these rows"


class ScoringError(ValueError):
    """Predictions and data do not fit; the message says what was expected."""


@dataclass(frozen=True)
class Predictions:
    """Where the predictions of one task of one set are.

    Attributes:
        path: a file (another system's) or the task's folder in a decode directory.
        task: what they answer.
        external: they are another system's.
    """

    path: Path
    task: str
    external: bool = False


# ------------------------------------------------------------------------------ reading


def read_decode(folder):
    """decode.json of a set.

    Args:
        folder: `<decode directory>/<set>`.

    Returns:
        Its content.

    Raises:
        ScoringError: the folder or decode.json is missing (decoding did not end), or
            its schema is another.
    """
    path = Path(folder) / "decode.json"
    if not path.is_file():
        found = sorted(p.name for p in Path(folder).glob("*"))
        raise ScoringError(
            f"{path}: expected decode.json, which decoding writes last; found "
            f"{', '.join(found) or 'nothing'}. Decoding of this set is not complete: "
            "run it again (stage 5), it continues."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScoringError(
            f"{path}: expected JSON, found {error}: delete it and decode again"
        ) from error
    schema = content.get("schema") if isinstance(content, dict) else content
    if schema != DECODE_SCHEMA:
        raise ScoringError(
            f"{path}: expected schema {DECODE_SCHEMA}, found {schema!r}:"
            " decode again with this version"
        )
    return content


def read_references(data_dir):
    """clip id -> its reference texts: from `references`, else from `text`."""
    data_dir = Path(data_dir)
    references: dict[str, list[str]] = {}
    if (data_dir / "references").is_file():
        for clip, text in read_pairs(data_dir / "references"):
            references.setdefault(clip, []).append(text)
        return references
    clips = clip_of(data_dir)
    for sample, text in read_pairs(data_dir / "text"):
        references.setdefault(clips.get(sample, sample), []).append(text)
    return references


def check_ids(expected, found, expected_in, found_in):
    """Refuse predictions for other items than the data's.

    Raises:
        ScoringError: counts of both sides and examples of what is missing or too much.
    """
    expected, found = set(expected), set(found)
    if expected == found:
        return
    parts = []
    for what, ids in (
        ("missing", expected - found),
        ("not in the data", found - expected),
    ):
        if ids:
            shown = ", ".join(repr(i) for i in sorted(ids)[:3])
            parts.append(f"{len(ids)} {what} (e.g. {shown})")
    raise ScoringError(
        f"{found_in}: expected the {len(expected)} ids of {expected_in}, found "
        f"{len(found)}: {'; '.join(parts)}. Decode the set again, or score against the "
        "data it was decoded from (--data_dir)."
    )


def load_arrays(path, known):
    """Arrays of an .npz file, without pickles.

    Args:
        path: of the file.
        known: list of tuples; the arrays of one tuple must be there.

    Returns:
        {name: array}.

    Raises:
        ScoringError: not an .npz file, or none of the tuples is complete.
    """
    path = Path(path)
    if not path.is_file():
        raise ScoringError(f"{path}: expected this file; decode the set again")
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except Exception as error:  # a truncated zip raises one of several
        raise ScoringError(
            f"{path}: expected an .npz file without pickled objects, found "
            f"{type(error).__name__}: {error}"
        ) from error
    if not any(set(names) <= set(arrays) for names in known):
        options = " or ".join("(" + ", ".join(names) + ")" for names in known)
        raise ScoringError(f"{path}: expected {options}, found {sorted(arrays)}")
    return arrays


def _strings(array):
    return [str(v) for v in np.asarray(array).reshape(-1)]


def _sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _decoding_of(task, decoding):
    """The task's own part of decode.json's `decoding`, and what no task owns."""
    if not isinstance(decoding, dict):
        return decoding
    if task in decoding:
        return decoding[task]
    owned = {*SCORERS, *(n for n, owner in DECODING_OWNERS.items() if owner != task)}
    return {k: v for k, v in decoding.items() if k not in owned}


def _plain(value):
    """A protocol value as one short string."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{k}={_plain(v)}" for k, v in value.items())
    return json.dumps(value, ensure_ascii=False)


# ------------------------------------------------------------------------------ scoring


def score_set(table, data_dir, decode_dir, options=None):
    """Score one decoded set, every task it was decoded for.

    Args:
        table: ScoreTable to add to.
        data_dir: the set's data directory.
        decode_dir: `<decode directory>/<set>`.
        options: CaptionOptions.

    Raises:
        ScoringError: decoding is incomplete, or ids, labels or counts do not agree.
    """
    data_dir, decode_dir = Path(data_dir), Path(decode_dir)
    decoded = read_decode(decode_dir)
    facts = read_set(data_dir)
    tasks = facts.get("tasks") or decoded["tasks"]
    protocol = base_protocol(data_dir, facts)
    for name in ("model", "encoder", "language_model", "seed"):
        protocol[name] = _plain(decoded.get(name))
    for task in tasks:
        decoding = _plain(_decoding_of(task, decoded.get("decoding")))
        if task not in decoded["tasks"]:
            reason = decoded.get("not_decoded", {}).get(task, "no reason given")
            needs = (
                f"the set decoded for it (decode.json lists {decoded['tasks']}: "
                f"{reason})"
            )
            logging.warning("%s: %s is not decoded: %s", data_dir.name, task, reason)
            table.add_missing(data_dir.name, task, needs, protocol)
            continue
        predictions = Predictions(decode_dir / task, task)
        here = protocol | {"decoding": decoding}
        SCORERS[task](table, data_dir, predictions, here, options)


def score_predictions(table, data_dir, task, path, options=None):
    """Score another system's predictions of one task of one set.

    Args:
        table: ScoreTable to add to; its `system` names the system.
        data_dir: the set's data directory.
        task: caption, retrieval, question_answering or classification.
        path: `id hypothesis` lines (caption, question_answering, classification) or an
            .npz (retrieval, classification); `slit_score --help` names its arrays.
        options: CaptionOptions.

    Raises:
        ScoringError: unknown task, or the file does not fit the data.
    """
    data_dir, path = Path(data_dir), Path(path)
    if task not in SCORERS:
        raise ScoringError(f"expected a task of {list(SCORERS)}, found {task!r}")
    if not path.is_file():
        raise ScoringError(f"{path}: expected a file of predictions, found none")
    protocol = base_protocol(data_dir, read_set(data_dir))
    protocol |= {
        "model": table.system,
        "encoder": None,
        "language_model": None,
        "decoding": f"{path.name}, sha256 {_sha256(path)[:16]}",
        "seed": None,
    }
    predictions = Predictions(path, task, external=True)
    SCORERS[task](table, data_dir, predictions, protocol, options)


def base_protocol(data_dir, facts):
    """What the data says of itself."""
    return {
        "corpus": facts.get("corpus", ""),
        "split": facts.get("split", ""),
        "variant": facts.get("variant", ""),
        "zero_shot": bool(facts.get("zero_shot", False)),
        "notes": facts.get("notes", ""),
    }


def _text_file(predictions, *names):
    path = predictions.path
    if not predictions.external:
        path = path.joinpath(*names)
    if not path.is_file():
        raise ScoringError(f"{path}: expected this file; decode the set again")
    return path


def _score_caption(table, data_dir, predictions, protocol, options):
    path = _text_file(predictions, "text")
    found, references = read_map(path), read_references(data_dir)
    check_ids(references, found, data_dir, path)
    ids = sorted(references)
    hypotheses = [found[i] for i in ids]
    wanted = [references[i] for i in ids]
    options = options or CaptionOptions()
    result = score_captions(hypotheses, wanted, options)
    counts = Counter(len(r) for r in wanted)
    protocol = protocol | {
        "tokenizer": result.tokenizer,
        "references_per_clip": ", ".join(map(str, sorted(counts))),
        "empty_hypotheses": result.empty,
        "cider_d_document_frequency": "these references",
        "resampled": "clips",
        "chance": CAPTION_CHANCE,
    }
    chance = caption_chance(wanted, table.seed, options)
    table.add(
        data_dir.name, "caption", (), result.scores, protocol, len(ids), ids, chance
    )
    details = table.details.setdefault(data_dir.name, {})
    details["caption"] = _caption_examples(ids, hypotheses, wanted, result.scores)


def caption_chance(references, seed, options):
    """Scores of a system that captions each clip with a reference of another one.

    Args:
        references: N lists of captions.
        seed: of the choice.
        options: CaptionOptions; SPICE and FENSE are left out.

    Returns:
        metric -> value; {} with fewer than two clips.
    """
    clips = len(references)
    if clips < 2:
        return {}
    generator = np.random.default_rng(seed)
    order = generator.permutation(clips)
    donor = np.empty(clips, dtype=np.int64)
    donor[order] = np.roll(order, 1)  # one cycle: nobody describes himself
    chosen = [
        references[d][generator.integers(len(references[d]))] for d in donor.tolist()
    ]
    result = score_captions(chosen, references, options.quick())
    return {
        metric: score.value
        for metric, score in result.scores.items()
        if isinstance(score, Items)
    }


def _caption_examples(ids, hypotheses, references, scores):
    """The best, the middle and the worst by CIDEr-D."""
    ranked = scores["cider_d"]
    if isinstance(ranked, NotComputed):
        ranked = scores["rouge_l"]
    value = ranked.stats[:, 0]
    order = np.argsort(-value, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, EXAMPLES).astype(int))]
    return [
        {
            "id": ids[i],
            "hypothesis": hypotheses[i],
            "references": references[i],
            "score": float(value[i]),
        }
        for i in chosen
    ]


def _score_retrieval(table, data_dir, predictions, protocol, options):
    path = predictions.path
    if not predictions.external:
        path = path / "scores.npz"
    ours = ("audio_ids", "text_audio_ids", "contrastive")
    theirs = ("audio_ids", "text_audio_ids", "similarity")
    embeddings = ("audio_ids", "text_audio_ids", "audio", "text")
    arrays = load_arrays(path, [ours, theirs, embeddings])
    references = read_references(data_dir)
    audio_ids, text_audio_ids = map(
        _strings, (arrays["audio_ids"], arrays["text_audio_ids"])
    )
    if len(set(audio_ids)) != len(audio_ids):
        twice = [i for i, n in Counter(audio_ids).items() if n > 1]
        raise ScoringError(f"{path}: expected each audio id once, {twice[0]!r} repeats")
    check_ids(references, audio_ids, data_dir, f"{path} audio_ids")
    check_ids(references, text_audio_ids, data_dir, f"{path} text_audio_ids")
    counts = Counter(text_audio_ids)
    wrong = [i for i, texts in references.items() if counts[i] != len(texts)]
    if wrong:
        raise ScoringError(
            f"{path}: expected {sum(map(len, references.values()))} texts, as many for "
            f"each clip as it has references, found {len(text_audio_ids)}: "
            f"{len(wrong)} clips differ (e.g. {wrong[0]!r}: expected "
            f"{len(references[wrong[0]])}, found {counts[wrong[0]]})"
        )
    number = {audio: i for i, audio in enumerate(audio_ids)}
    owner = np.array([number[i] for i in text_audio_ids], dtype=np.int64)
    first = _similarity(arrays)
    shape = (len(text_audio_ids), len(audio_ids))
    directions = {
        "text_to_audio": (retrieval.text_to_audio, "reranked_text_to_audio"),
        "audio_to_text": (retrieval.audio_to_text, "reranked_audio_to_text"),
    }
    details = {}
    for direction, (score, reranked) in directions.items():
        for where, matrix in (
            ("contrastive", first),
            ("reranked", arrays.get(reranked)),
        ):
            if matrix is None:
                continue
            if matrix.shape != shape:
                raise ScoringError(
                    f"{path} {where}: expected (texts, audios) {shape}, found "
                    f"{matrix.shape}"
                )
            result = score(matrix, owner)
            table.add(
                data_dir.name,
                "retrieval",
                (direction, where),
                result.scores,
                protocol
                | {
                    "direction": direction,
                    "reranked": where == "reranked",
                    "gallery": result.gallery,
                    "relevant_per_query": (
                        "1" if direction == "text_to_audio" else _range(counts)
                    ),
                    "map_divisor": "min(relevant, 10)",
                    "ties": "counted against the system",
                    "resampled": "clips; the gallery is kept",
                    "chance": RETRIEVAL_CHANCE,
                },
                result.queries,
                audio_ids,
                result.chance,
            )
            if direction == "text_to_audio":
                details[where] = matrix, result.ranks[:, 0]
    texts = _strings(arrays["texts"]) if "texts" in arrays else None
    matrix, ranks = details.get("reranked", details["contrastive"])
    table.details.setdefault(data_dir.name, {})["retrieval"] = _retrieval_examples(
        matrix, ranks, audio_ids, text_audio_ids, texts, references
    )


def _range(counts):
    low, high = min(counts.values()), max(counts.values())
    return str(low) if low == high else f"{low}-{high}"


def _similarity(arrays):
    """(M, N) similarity: as given, or cosine of the embeddings."""
    for name in ("contrastive", "similarity"):
        if name in arrays:
            return arrays[name]
    audio, text = (_unit(arrays[name], name) for name in ("audio", "text"))
    if audio.shape[1] != text.shape[1]:
        raise ScoringError(
            f"expected embeddings of one width, found audio {audio.shape} and text "
            f"{text.shape}"
        )
    similarity = np.empty((len(text), len(audio)), dtype=np.float32)
    step = max(1, CELLS_PER_CHUNK // len(audio))
    for start in range(0, len(text), step):
        similarity[start : start + step] = text[start : start + step] @ audio.T
    return similarity


def _unit(array, name):
    if array.ndim != 2:
        raise ScoringError(f"{name}: expected (items, width), found {array.shape}")
    array = array.astype(np.float32)
    norm = np.linalg.norm(array, axis=1, keepdims=True)
    if not np.isfinite(norm).all() or (norm == 0).any():
        raise ScoringError(
            f"{name}: expected embeddings of a length, found "
            f"{int((~(norm > 0)).sum())} that are zero or not finite"
        )
    return array / norm


def _retrieval_examples(matrix, ranks, audio_ids, text_audio_ids, texts, references):
    """Queries spread from the best to the worst rank, with their first three audios."""
    order = np.argsort(ranks, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, EXAMPLES).astype(int))]
    seen = Counter()
    position = []
    for audio in text_audio_ids:
        position.append(seen[audio])
        seen[audio] += 1
    return [
        {
            "query": (
                texts[i] if texts else references[text_audio_ids[i]][position[i]]
            ),
            "audio": text_audio_ids[i],
            "rank": int(ranks[i]) + 1,
            "first": [
                {"audio": audio_ids[j], "score": float(matrix[i, j])}
                for j in np.argsort(-matrix[i], kind="stable")[:3]
            ],
        }
        for i in chosen.tolist()
    ]


def _score_question_answering(table, data_dir, predictions, protocol, options):
    truth = read_map(data_dir / "text")
    questions = read_map(data_dir / "instruction")
    clips = clip_of(data_dir)
    kinds = None
    if (data_dir / "utt2kind").is_file():
        kinds = read_map(data_dir / "utt2kind")
    ids = sorted(truth)
    files = {"free": _text_file(predictions, "text")}
    candidates = None
    if not predictions.external and (data_dir / "answers").is_file():
        candidates = len(read_lines(data_dir / "answers"))
        ranked = predictions.path / "ranked"
        if ranked.is_file():
            files["ranked"] = ranked
        else:
            needs = f"{ranked.name} answers in {predictions.path} (decode again)"
            row = {"exact_match": NotComputed(needs)}
            table.add(
                data_dir.name, "question_answering", ("ranked",), row, protocol, 0, []
            )
    for answering, path in files.items():
        found = read_map(path)
        check_ids(truth, found, data_dir, path)
        hypotheses = [found[i] for i in ids]
        empty = sum(not h.strip() for h in hypotheses)
        if empty:
            logging.warning(
                "%s: %d of %d answers are empty: they count as wrong",
                path,
                empty,
                len(ids),
            )
        result = question_answering.exact_match(
            hypotheses,
            [truth[i] for i in ids],
            [questions.get(i, "") for i in ids],
            [clips.get(i, i) for i in ids],
            None if kinds is None else [kinds.get(i, "") for i in ids],
        )
        for name, score in result.items():
            extra = {
                "answering": answering,
                "rows": name,
                "normalisation": question_answering.NORMALISATION,
                "empty_answers": empty,
                "resampled": "clips",
                "chance": ANSWER_CHANCE,
            }
            if score.question_prior is not None:
                prior = f"{100 * score.question_prior:.1f} %"
                extra["most_frequent_answer_of_each_question"] = prior
            if answering == "ranked":
                extra["candidates"] = candidates
            table.add(
                data_dir.name,
                "question_answering",
                (answering, name.replace("/", "_")),
                {"exact_match": score.items},
                protocol | extra,
                score.n,
                score.clips,
                {"exact_match": score.majority},
            )
        if answering == "free":
            details = table.details.setdefault(data_dir.name, {})
            details["question_answering"] = _answer_examples(
                ids, hypotheses, truth, questions, clips
            )


def _answer_examples(ids, hypotheses, truth, questions, clips):
    chosen = np.unique(np.linspace(0, len(ids) - 1, 2 * EXAMPLES).astype(int))
    normalise = question_answering.normalise
    return [
        {
            "id": ids[i],
            "audio": clips.get(ids[i], ids[i]),
            "question": questions.get(ids[i], ""),
            "hypothesis": hypotheses[i],
            "answer": truth[ids[i]],
            "correct": normalise(hypotheses[i]) == normalise(truth[ids[i]]),
        }
        for i in chosen.tolist()
    ]


def read_labels(data_dir):
    """Candidate labels and the true ones of each clip.

    Args:
        data_dir: classification set.

    Returns:
        (labels (C,), ids (N,), truth: (N,) int, or (N, C) bool where clips have several
        labels).

    Raises:
        ScoringError: a clip's label is not among the candidates.
    """
    labels = read_lines(data_dir / "labels")
    number = {label: i for i, label in enumerate(labels)}
    if len(number) != len(labels):
        twice = [i for i, n in Counter(labels).items() if n > 1]
        raise ScoringError(f"{data_dir / 'labels'}: {twice[0]!r} comes twice")
    several = (data_dir / "references").is_file()
    truth = (
        read_references(data_dir)
        if several
        else {i: [t] for i, t in read_map(data_dir / "text").items()}
    )
    ids = sample_ids(data_dir)
    check_ids(ids, truth, data_dir, data_dir / ("references" if several else "text"))
    unknown = {t for texts in truth.values() for t in texts if t not in number}
    if unknown:
        raise ScoringError(
            f"{data_dir}: expected labels of {data_dir / 'labels'} ({len(labels)}), "
            f"found {len(unknown)} others, e.g. {sorted(unknown)[0]!r}"
        )
    ids = sorted(ids)
    if all(len(truth[i]) == 1 for i in ids):
        return labels, ids, np.array([number[truth[i][0]] for i in ids])
    matrix = np.zeros((len(ids), len(labels)), dtype=bool)
    for row, i in enumerate(ids):
        matrix[row, [number[t] for t in truth[i]]] = True
    return labels, ids, matrix


def _score_classification(table, data_dir, predictions, protocol, options):
    labels, ids, truth = read_labels(data_dir)
    folds = None
    if (data_dir / "utt2fold").is_file():
        fold_of = read_map(data_dir / "utt2fold")
        check_ids(ids, fold_of, data_dir, data_dir / "utt2fold")
        folds = np.array([fold_of[i] for i in ids])
    path = predictions.path
    if not predictions.external:
        path = path / "scores.npz"
    if path.suffix != ".npz":
        found = {"answer": _predicted_labels(path, data_dir, labels, ids, truth)}
    else:
        found = _label_scores(path, data_dir, labels, ids, predictions.external)
    for route, scores in found.items():
        extra = protocol | {
            "route": ROUTES.get(route, route),
            "labels": len(labels),
            "ties": "counted against the system",
            "resampled": "clips",
            "chance": LABEL_CHANCE,
        }
        if isinstance(scores, NotComputed):
            rows = {"accuracy": scores}
            table.add(
                data_dir.name, "classification", (route,), rows, extra, 0, [], None
            )
            continue
        try:
            result = _classify(scores, truth, len(labels))
        except ValueError as error:
            raise ScoringError(f"{path} {route}: {error}") from error
        details = {}
        if folds is not None and truth.ndim == 1:
            size = {f: int((folds == f).sum()) for f in np.unique(folds)}
            weight = np.array([1 / size[f] for f in folds])
            correct = result.predicted == truth
            result.scores["accuracy_mean_of_folds"] = mean_items(
                correct * weight, weight
            )
            result.chance["accuracy_mean_of_folds"] = result.chance["accuracy"]
            details["folds"] = classification.fold_accuracy(
                result.predicted, truth, folds
            )
        table.add(
            data_dir.name,
            "classification",
            (route,),
            result.scores,
            extra,
            len(ids),
            ids,
            result.chance,
        )
        if len(result.confusion):
            support = np.bincount(truth, minlength=len(labels))
            details |= {
                "labels": labels,
                "confusion": result.confusion.tolist(),
                "support": support.tolist(),
                "per_class_accuracy": [
                    None if not n else float(v)
                    for v, n in zip(
                        classification.per_class_accuracy(result.confusion, support),
                        support,
                        strict=True,
                    )
                ],
            }
        if details:
            here = table.details.setdefault(data_dir.name, {})
            here.setdefault("classification", {})[route] = details


def _classify(scores, truth, num_labels):
    if truth.ndim == 2:
        return classification.multi_label(scores, truth)
    if scores.ndim == 1:
        return classification.from_predictions(scores, truth, num_labels)
    return classification.single_label(scores, truth)


def _predicted_labels(path, data_dir, labels, ids, truth):
    """(N,) int from `id label` lines; -1 where the text is no label."""
    if truth.ndim == 2:
        raise ScoringError(
            f"{path}: expected an .npz with a score for each label, since clips of "
            f"{data_dir} have several labels; found a text file"
        )
    found = read_map(path)
    check_ids(ids, found, data_dir, path)
    number = {question_answering.normalise(v): i for i, v in enumerate(labels)}
    predicted = np.array(
        [number.get(question_answering.normalise(found[i]), -1) for i in ids]
    )
    if (predicted < 0).any():
        first = found[ids[int(np.argmax(predicted < 0))]]
        logging.warning(
            "%s: %d of %d answers are no label (e.g. %r): they count as wrong",
            path,
            int((predicted < 0).sum()),
            len(ids),
            first,
        )
    return predicted


def _label_scores(path, data_dir, labels, ids, external):
    """Route -> (N, C) in the order of ids and labels, or NotComputed."""
    known = [("ids", "labels", route) for route in ROUTES]
    known += [("ids", "labels", "scores"), ("ids", "labels", "audio", "text")]
    arrays = load_arrays(path, known)
    found_ids, found_labels = map(_strings, (arrays["ids"], arrays["labels"]))
    check_ids(ids, found_ids, data_dir, f"{path} ids")
    check_ids(labels, found_labels, data_dir / "labels", f"{path} labels")
    for what, names in (("ids", found_ids), ("labels", found_labels)):
        if len(set(names)) != len(names):
            raise ScoringError(f"{path}: expected each of {what} once, one repeats")
    row = {i: n for n, i in enumerate(found_ids)}
    column = {label: n for n, label in enumerate(found_labels)}
    rows, columns = [row[i] for i in ids], [column[label] for label in labels]
    routes = {}
    if "audio" in arrays:
        audio, text = _unit(arrays["audio"], "audio"), _unit(arrays["text"], "text")
        arrays["similarity"] = audio @ text.T
    if "scores" in arrays:
        arrays.setdefault("similarity", arrays["scores"])
    for route in ROUTES:
        if route not in arrays:
            if not external:
                part = "language model" if "language" in route else "representation"
                routes[route] = NotComputed(
                    f"array {route} in {path.name} (a system with its {part} part)"
                )
            continue
        scores = arrays[route]
        if scores.shape != (len(found_ids), len(found_labels)):
            raise ScoringError(
                f"{path} {route}: expected (clips, labels) "
                f"{(len(found_ids), len(found_labels))}, found {scores.shape}"
            )
        routes[route] = scores[rows][:, columns]
    return routes


SCORERS = {
    "caption": _score_caption,
    "retrieval": _score_retrieval,
    "question_answering": _score_question_answering,
    "classification": _score_classification,
}


# -------------------------------------------------------------------------------- folds


def average_folds(folders, system, resamples=1000, seed=0):
    """Mean over folds that were scored apart, one model each.

    Args:
        folders: directories with scores.json and items.npz, one per fold: with the
            same sets each, or each with one set of each task.
        system: name of the mean.
        resamples: bootstrap replicates.
        seed: of the replicates; clips are resampled within their fold.

    Returns:
        ScoreTable: the folds' own rows (set `<set>@fold<f>`), then the rows of the
        mean (`<set>@mean_of_<F>_folds`, without `<set>@` where its name differs).

    Raises:
        ScoringError: fewer than two folds, or folds with different rows.
    """
    if len(folders) < 2:
        raise ScoringError(f"expected two or more folds, found {len(folders)}")
    table = ScoreTable(system, resamples, seed)
    scored = [read_scores(folder / "scores.json")[0] for folder in map(Path, folders)]
    items = [read_items(Path(folder) / "items.npz") for folder in folders]
    names = [{row.set for row in one.rows} for one in scored]
    alike = all(found == names[0] for found in names)
    mean_of = f"mean_of_{len(folders)}_folds"
    groups: dict[tuple, list] = {}
    for index, one in enumerate(scored):
        for row in one.rows:
            suffix = row.key.removeprefix(f"{row.set}/")
            set_name = f"{row.set}@{mean_of}" if alike else mean_of
            groups.setdefault((set_name, suffix), []).append((index, row))
            here = f"{row.set}@fold{index + 1}"
            table.rows.append(replace(row, set=here, key=f"{here}/{suffix}"))
        for set_name, details in one.details.items():
            table.details[f"{set_name}@fold{index + 1}"] = details
    for (set_name, suffix), found in groups.items():
        if [index for index, _ in found] != list(range(len(folders))):
            raise ScoringError(
                f"{suffix}: expected one row in each of {len(folders)} folds, found "
                f"{len(found)} in folds {[index + 1 for index, _ in found]}"
            )
        rows = [row for _, row in found]
        mean = _mean_row(set_name, suffix, rows)
        drawn = [
            replicates([items[index][row.key][0]], resamples, seed + index)[:, 0]
            for index, row in found
            if row.key in items[index]
        ]
        if mean.value is not None and len(drawn) == len(rows):
            low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
            mean.low, mean.high = float(low), float(high)
        table.rows.append(mean)
    return table


def _mean_row(set_name, suffix, rows):
    """The mean of one score over folds; None where a fold lacks it."""
    values = [row.value for row in rows]
    chances = [row.chance for row in rows]
    protocol = {
        name: value if all(r.protocol.get(name) == value for r in rows) else "by fold"
        for name, value in rows[0].protocol.items()
    }
    return Row(
        set=set_name,
        task=rows[0].task,
        metric=rows[0].metric,
        value=None if None in values else float(np.mean(values)),
        chance=None if None in chances else float(np.mean(chances)),
        n=sum(row.n for row in rows),
        low=None,
        high=None,
        protocol=protocol | {"resampled": "clips within folds"},
        note=next((row.note for row in rows if row.note), ""),
        key=f"{set_name}/{suffix}",
    )


def decoded_sets(decode_dir):
    """Names of the sets below a decode directory, complete or not."""
    decode_dir = Path(decode_dir)
    if not decode_dir.is_dir():
        raise ScoringError(
            f"{decode_dir}: expected a decode directory (stage 5 writes it), found none"
        )
    skipped = re.compile(r"^(report|logdir|log|\..*)$")
    return sorted(
        p.name for p in decode_dir.iterdir() if p.is_dir() and not skipped.match(p.name)
    )


def audio_sources(table, data_dirs, decode_dir=None):
    """Where the audio of the report's examples is.

    Args:
        table: ScoreTable; its `details` name the examples.
        data_dirs: {set: data directory}.
        decode_dir: where `<set>/attention.npz` may name more clips, or None.

    Returns:
        {set: {id: (path, start_s, end_s or None)}}; entries of wav.scp that are no
        plain file (pipes, archives) are left out.
    """
    found: dict[str, dict] = {}
    for set_name, folder in data_dirs.items():
        wanted = _example_ids(table.details.get(set_name, {}))
        attention = Path(decode_dir or "", set_name, "attention.npz")
        if decode_dir is not None and attention.is_file():
            wanted |= set(_strings(load_arrays(attention, [("ids",)])["ids"]))
        if not wanted or not (folder / "wav.scp").is_file():
            continue
        crops = {}
        if (folder / "segments").is_file():
            for key, value in read_pairs(folder / "segments"):
                if key in wanted:
                    recording, start, end = value.split()
                    end = float(end)
                    crops[key] = recording, float(start), end if end > 0 else None
        recordings = {crop[0] for crop in crops.values()} or wanted
        paths = {k: v for k, v in read_pairs(folder / "wav.scp") if k in recordings}
        found[set_name] = {}
        for key in wanted:
            recording, start, end = crops.get(key, (key, 0.0, None))
            path = paths.get(recording, "")
            if path and Path(path).is_file():
                found[set_name][key] = path, start, end
    return found


def _example_ids(details):
    wanted = {item["id"] for item in details.get("caption", [])}
    wanted |= {item["id"] for item in details.get("question_answering", [])}
    for item in details.get("retrieval", []):
        wanted |= {hit["audio"] for hit in item["first"]}
    return wanted
