"""Data sets of Hugging Face `datasets`, by name or on disk: rows with their audio.

Rows are read as a stream; their audio is written to `<out>/audio`, once where several
rows have the same, and the texts to a data directory. Nothing in a row is executed or
used as a path: files are named by what is in them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from espnet2_slit.common.files import atomic
from espnet2_slit.common.templates import choice_question
from espnet2_slit.data.audio import AudioError, probe
from espnet2_slit.data.containers import AUDIO_SUFFIXES
from espnet2_slit.data.corpora.base import CAPTION, CLASS, QUESTION
from espnet2_slit.data.corpora.espnet_recipe import FORMS
from espnet2_slit.data.corpora.multiple_choice import options_of, right_option
from espnet2_slit.data.corpora.tables import CorpusError, clean
from espnet2_slit.data.report import Report
from espnet2_slit.data.writer import SetWriter

Row = dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; "": none does.

    Args:
        audio: the audio.
        text: caption, answer or label; a list is as many samples.
        question: for question_answering.
        choices: options of a question.
        category: for balanced sampling and scores by category.
    """

    audio: str = "audio"
    text: str = "text"
    question: str = ""
    choices: str = ""
    category: str = ""


def write_rows(
    rows: Iterable[Row],
    out: Path,
    columns: Columns,
    task: str = CAPTION,
    form: str = "train",
    corpus: str = "",
    limit: int = 0,
) -> Report:
    """Make a data directory of rows that bring their audio.

    Args:
        rows: {column: value}; the audio as bytes, {"bytes": ...} or {"path": ...}.
        out: data directory; the audio goes to `out/audio`.
        columns: what is where.
        task: caption, question_answering or classification.
        form: train, valid or evaluation: one line a clip and `references`.
        corpus: name for set.json.
        limit: rows to read, 0: all.

    Returns:
        Report, also written to report.json.

    Raises:
        CorpusError: a column is not there, or no row is usable.
    """
    out = Path(out)
    report = Report(corpus or out.name)
    labels: dict[str, None] = {}
    with SetWriter(out) as files:
        for row in rows:
            if limit and report.rows >= limit:
                break
            report.rows += 1
            where = f"row {report.rows}"
            texts = _texts(row, columns, where)
            audio = _audio(row, columns, where)
            if audio is None or not texts:
                report.drop("no text" if audio else "no audio", where)
                continue
            key = hashlib.blake2b(audio, digest_size=10).hexdigest()
            clip = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', report.name)}_{key}"
            path = out / "audio" / key[:2] / f"{key}{_suffix(row, columns)}"
            if clip not in files.clips:
                try:
                    _store(path, audio)
                except AudioError as error:
                    report.drop("unreadable audio", f"{where}: {error}")
                    continue
            sample = _Sample(clip, path, texts, task, form)
            report.kept += _write(sample, row, columns, files, report, where)
            labels.update(dict.fromkeys(texts) if task == CLASS else {})
        if not files.samples:
            lines = [f"{out}: no row is usable.", *report.lines()]
            raise CorpusError("\n  ".join(lines))
        tasks = [CAPTION, "retrieval"] if task == CAPTION else [task]
        files.describe(
            sorted(labels),
            corpus=report.name,
            split=FORMS[form],
            tasks=tasks if form == "evaluation" else [],
        )
        report.notes["clips"] = len(files.clips)
        files.write("report.json", [json.dumps({"schema": 1, **vars(report)})])
    return report


@dataclass(frozen=True)
class _Sample:
    clip: str
    path: Path
    texts: list[str]
    task: str
    form: str


def _write(
    sample: _Sample,
    row: Row,
    columns: Columns,
    files: SetWriter,
    report: Report,
    where: str,
) -> int:
    """Adds the samples of a row; returns how many."""
    question = clean(str(row.get(columns.question) or "")) if columns.question else ""
    options: list[str] = []
    if columns.choices:
        options = options_of({"choices": row.get(columns.choices)})
    if sample.task == QUESTION and not question:
        report.drop("no question", where)
        return 0
    texts = sample.texts
    if options:
        texts = [t for text in texts if (t := right_option(text, options))]
        if not texts:
            report.drop("answer is none of the choices", where)
            return 0
    is_test = sample.form == "evaluation"
    if options and not is_test:  # decoding shows them itself
        question, options = choice_question(question, options), []
    if is_test and sample.task == CAPTION:
        for text in texts:
            files.reference(sample.clip, text)
    one_line = sample.task == CLASS or (is_test and sample.task == CAPTION)
    if one_line and sample.clip in files.clips:
        return 0  # its other captions are references
    category = clean(str(row.get(columns.category) or "")) if columns.category else ""
    for text in texts[:1] if one_line else texts:
        name = sample.clip if one_line else f"{sample.clip}-{files.samples:07d}"
        files.add(
            name,
            sample.clip,
            str(sample.path.absolute()),
            text,
            sample.task,
            category.replace(" ", "_") or report.name,
            instruction=question,
            choices=options,
        )
    return 1 if one_line else len(texts)


def _texts(row: Row, columns: Columns, where: str) -> list[str]:
    if columns.text not in row:
        raise _no_column(where, columns.text, row, "--text_column")
    value = row[columns.text]
    values = value if isinstance(value, list) else [value]
    return [clean(v) for v in values if isinstance(v, str) and clean(v)]


def _audio(row: Row, columns: Columns, where: str) -> bytes | None:
    if columns.audio not in row:
        raise _no_column(where, columns.audio, row, "--audio_column")
    value = row[columns.audio]
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
        if content is None and path and Path(path).is_file():
            content = Path(path).read_bytes()
        value = content
    return value if isinstance(value, bytes) and value else None


def _no_column(where: str, name: str, there: Iterable[str], option: str) -> CorpusError:
    names = ", ".join(there)
    return CorpusError(
        f"{where}: no column {name!r}; there are {names}. Name it with {option}"
    )


def _suffix(row: Row, columns: Columns) -> str:
    value = row[columns.audio]
    path = value.get("path") if isinstance(value, dict) else ""
    suffix = PurePosixPath(str(path or "")).suffix.lower()
    return suffix if suffix in AUDIO_SUFFIXES else ".wav"


def _store(path: Path, audio: bytes) -> None:
    """Keep a clip's file if it can be read."""
    if not path.is_file():
        with atomic(path) as stream:
            stream.write(audio)
    try:
        probe(path)
    except AudioError:
        path.unlink()
        raise


def hub_rows(
    name: str, split: str, audio: str, config: str = "", streaming: bool = True
) -> Iterator[Row]:
    """Rows of a data set of the Hub, or of one on disk (`save_to_disk`).

    Args:
        name: on the Hub, or a folder.
        split: which.
        audio: column of the audio, which is not decoded here.
        config: of the data set, where it has several.
        streaming: read it as it comes, instead of fetching all of it first.

    Yields:
        Rows; numbers of a ClassLabel as its names.

    Raises:
        CorpusError: `datasets` is not installed, or has no such data set, split or
            column.
    """
    try:
        import datasets
    except ImportError:
        raise CorpusError(
            "Hugging Face data sets need datasets: pip install datasets (or pip install"
            " 'espnet2_slit[datasets]')"
        ) from None
    try:
        if Path(name).is_dir() and (Path(name) / "state.json").is_file():
            found = datasets.load_from_disk(name)
        elif (Path(name) / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(name)[split]
        else:
            found = datasets.load_dataset(
                name, config or None, split=split, streaming=streaming
            )
    except Exception as error:  # of any library below it: what it says is the reason
        raise CorpusError(f"{name}, split {split}: {error}") from error
    features = found.features or {}
    if audio not in features:
        raise _no_column(name, audio, features, "--audio_column")
    if isinstance(features[audio], datasets.Audio):
        found = found.cast_column(audio, datasets.Audio(decode=False))
    names = {c: f.names for c, f in features.items() if hasattr(f, "names")}
    for row in found:
        for column, words in names.items():
            if isinstance(row.get(column), int) and row[column] >= 0:
                row[column] = words[row[column]]
        yield row
