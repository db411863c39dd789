"""Data directories of other ESPnet recipes, completed to ours.

`clotho_v2/asr1` keeps test references in `text_spk1` .. `text_spk5` and has no `text`;
`esc50/asr1` writes labels as words of a vocabulary, `as20k/cls1` several of them a
clip; `clotho_v2/cls1` asks in `question.txt` or states in `hypothesis.txt`:

    data/evaluation/text_spk1       evaluation_clotho_0 A machine whines and ...
    data/val1/text                  1-100032-A-0 audio_class:0
    data/eval/text                  eval_0 Dog Rain
    data/evaluation_aqa/text        q_0 yes
    data/evaluation_aqa/question.txt    q_0 Is it raining?

A directory with wav.scp, text and utt2spk works as it is; this reader is for
references, labels and questions. Audio may be a file, a pipe or an ark entry: it is
copied unread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from espnet2_slit.common import templates
from espnet2_slit.data import kaldi_dir
from espnet2_slit.data.clips import Clip, read_clips
from espnet2_slit.data.corpora import instruction
from espnet2_slit.data.corpora.base import CAPTION, CLASS, QUESTION
from espnet2_slit.data.corpora.tables import CorpusError, clean, spell
from espnet2_slit.data.kaldi_dir import QUESTION_FILES
from espnet2_slit.data.writer import SetWriter, remove_sets, write_set

STATEMENTS = "hypothesis.txt"  # does the audio entail each of them?
LABEL_PREFIX = "audio_class:"
MADE_BY = "espnet_sets"  # in set.json, of sets that another call may remove
FORMS = {"train": "train", "valid": "valid", "evaluation": "test"}


@dataclass(frozen=True)
class Reading:
    """How a directory of another recipe is to be read.

    Args:
        task: what `text` holds: caption, question_answering or classification.
        form: train or valid: one line a reference; evaluation: one line a clip (or
            question) and `references`.
        label_names: word in `text` (without "audio_class:") -> name of the class.
        multi_label: True: the words of a line are labels of one clip; False: a line is
            one label; None: a line of several words is refused.
        zero_shot: claim written to set.json.
    """

    task: str = CAPTION
    form: str = "train"
    label_names: Mapping[str, str] | None = None
    multi_label: bool | None = None
    zero_shot: bool = False


@dataclass
class _Row:
    """What is written as one line: a clip and all that is said of it."""

    utterance: str
    sample: str  # the source's (first) id
    clip: str
    texts: list[str] = field(default_factory=list)


def read_recipe_set(
    source: Path,
    out: Path,
    task: str = CAPTION,
    evaluation: bool = False,
    label_names: Mapping[str, str] | None = None,
    zero_shot: bool = False,
    reading: Reading | None = None,
) -> int:
    """Makes a data directory of ours from one of an ESPnet recipe.

    Args:
        source: the recipe's data directory.
        out: data directory to write.
        task: see `Reading`, as the others; used where `reading` is not given.
        evaluation: the form evaluation.
        label_names: see `Reading`.
        zero_shot: see `Reading`.
        reading: all of it.

    Returns:
        Samples written.

    Raises:
        CorpusError: there is no such directory, neither `text` nor `text_spk1`, a label
            has no name, a question is missing, or one would be left out.
    """
    source = Path(source)
    form = "evaluation" if evaluation else "train"
    reading = reading or Reading(task, form, label_names, None, zero_shot)
    _check(source, reading)
    texts = [_texts(p) for p in _text_files(source)]
    samples, clips = read_clips(source)
    said = {sample: [t[sample] for t in texts if t.get(sample)] for sample in samples}
    questions = _questions(source) if reading.task == QUESTION else {}
    choices: list[str] = []
    if reading.task == QUESTION and kaldi_dir.question_file(source) == STATEMENTS:
        choices = _as_choices(said, questions, source, reading)
    labels: dict[str, None] = {}
    if reading.task == CLASS:
        for sample, given in said.items():
            split = [_labels(text, reading, source) for text in given]
            said[sample] = [
                instruction.MULTI_LABEL_SEPARATOR.join(words) for words in split
            ]
            labels.update(dict.fromkeys(word for words in split for word in words))
    categories = {}
    if (source / "utt2category").is_file():
        categories = kaldi_dir.read_map(source / "utt2category")
    segments = {}
    if (source / "segments").is_file():
        segments = kaldi_dir.read_map(source / "segments")
    with SetWriter(out) as files:
        rows = list(_rows(samples, said, questions, reading))
        if reading.form == "evaluation":
            _write_references(rows, reading.task, files)
        for row in rows:
            files.add(
                row.utterance,
                row.clip,
                clips[row.clip].path,
                Counter(row.texts).most_common(1)[0][0],
                reading.task,
                categories.get(row.sample, source.name),
                instruction=questions.get(row.sample, ""),
                segment=_segment(clips[row.clip], segments.get(row.sample)),
                choices=choices if reading.form == "evaluation" else (),
            )
        if not files.samples:
            raise CorpusError(f"{source}: wav.scp and text share no id.")
        left_out = sum(not given for given in said.values())
        tasks = [CAPTION, "retrieval"] if reading.task == CAPTION else [reading.task]
        files.describe(
            sorted(labels),
            corpus=source.name,
            split=FORMS[reading.form],
            variant="",
            tasks=tasks if reading.form == "evaluation" else [],
            zero_shot=reading.zero_shot,
            notes=f"{left_out} utterances without text left out" if left_out else "",
        )
    return files.samples


def _check(source: Path, reading: Reading) -> None:
    if not source.is_dir():
        there = sorted(path.parent.name for path in source.parent.glob("*/wav.scp"))
        raise CorpusError(
            f"{source}: there is no such data directory. {source.parent} has "
            f"{', '.join(there) or 'none'}."
        )
    asked = kaldi_dir.question_file(source)
    if asked and reading.task != QUESTION:
        raise CorpusError(
            f"{source}: {asked} asks what `text` answers, and a {reading.task} set "
            "would leave it out. Give --task question_answering."
        )


def _rows(
    samples: Mapping[str, str],
    said: Mapping[str, Sequence[str]],
    questions: Mapping[str, str],
    reading: Reading,
) -> Iterator[_Row]:
    """One row a reference, or in an evaluation set one a clip and question."""
    if reading.form != "evaluation":
        for sample, clip in samples.items():
            many = len(said[sample]) > 1
            for number, text in enumerate(said[sample]):
                name = f"{sample}-{number:02d}" if many else sample
                yield _Row(name, sample, clip, [text])
        return
    rows: dict[tuple[str, str], _Row] = {}
    for sample, clip in samples.items():
        if said[sample]:
            key = (clip, questions.get(sample, ""))
            rows.setdefault(key, _Row(sample, sample, clip)).texts.extend(said[sample])
    yield from rows.values()


def _write_references(rows: Sequence[_Row], task: str, files: SetWriter) -> None:
    """What rows are scored against: captions, several labels, several answers."""
    if task == CAPTION:
        for row in rows:
            for text in row.texts:
                files.reference(row.clip, text)
        return
    several = {CLASS: instruction.MULTI_LABEL_SEPARATOR}.get(task, "\n")
    texts = [[w for text in row.texts for w in text.split(several)] for row in rows]
    if any(len(set(words)) > 1 for words in texts):
        for row, words in zip(rows, texts, strict=True):
            for word in dict.fromkeys(words):
                # questions are scored one by one, labels by clip
                files.reference(row.clip if task == CLASS else row.utterance, word)


def _segment(clip: Clip, line: str | None) -> tuple[str, float, float] | None:
    if line is None:
        return None
    end_s = -1.0 if clip.end_s is None else clip.end_s
    return line.split()[0], clip.start_s, end_s


def _text_files(source: Path) -> list[Path]:
    speakers = sorted(
        (p for p in source.glob("text_spk*") if p.name[8:].isdigit()),
        key=lambda p: int(p.name[8:]),
    )
    if speakers:
        return speakers
    if (source / "text").is_file():
        return [source / "text"]
    raise CorpusError(
        f"{source}: expected text or text_spk1, text_spk2, ...; "
        f"found {', '.join(sorted(p.name for p in source.iterdir()))}."
    )


def _texts(path: Path) -> dict[str, str]:
    return {key: clean(text) for key, text in kaldi_dir.read_pairs(path)}


def _questions(source: Path) -> dict[str, str]:
    name = kaldi_dir.question_file(source)
    if name is None and (source / "instruction").is_file():
        name = "instruction"
    if name is None:
        raise CorpusError(
            f"{source}: question_answering needs the questions in one of instruction, "
            f"{', '.join(QUESTION_FILES)}."
        )
    found = _texts(source / name)
    if name == STATEMENTS:
        return {key: templates.entailment_question(t) for key, t in found.items()}
    return found


def _as_choices(
    said: dict[str, list[str]],
    questions: dict[str, str],
    source: Path,
    reading: Reading,
) -> list[str]:
    """Statements that follow from the audio or not: labels become answers to choose.

    Args:
        said: sample -> labels, changed to answers.
        questions: sample -> question; in training the options are added, decoding shows
            them itself, in any order.
        source: the recipe's data directory, for the message.
        reading: its form.

    Returns:
        The answers.
    """
    answers = templates.ENTAILMENT_ANSWERS
    other = {text for given in said.values() for text in given} - set(answers)
    if other:
        raise CorpusError(
            f"{source / STATEMENTS}: expected the labels {', '.join(answers)} in text, "
            f"found {sorted(other)[0]!r}."
        )
    options = list(answers.values())
    for sample, given in said.items():
        said[sample] = [answers[text] for text in given]
        if reading.form != "evaluation" and sample in questions:
            questions[sample] = templates.choice_question(questions[sample], options)
    return options


def _labels(text: str, reading: Reading, source: Path) -> list[str]:
    words = text.split()
    if len(words) < 2 or reading.multi_label is False:
        words = [text]
    elif reading.multi_label is None:
        raise CorpusError(
            f"{source}: the label {text!r} has {len(words)} words. Give --multi_label "
            "true where each word is a label of its own (as in as20k/cls1), false "
            "where the line is one label."
        )
    return list(dict.fromkeys(_label(w, reading.label_names, source) for w in words))


def _label(text: str, names: Mapping[str, str] | None, source: Path) -> str:
    word = text.removeprefix(LABEL_PREFIX)
    if names is None:
        return spell(word)
    if word not in names:
        raise CorpusError(
            f"{source}: the label {word!r} has no name among the {len(names)} given."
        )
    return spell(names[word])


@dataclass(frozen=True)
class Source:
    """Sets of one recipe that are trained, validated and tested on.

    Args:
        folder: the recipe's `data` or `dump/raw`.
        train: name of its training directory.
        valid: name of its validation directory.
        tests: names of its test directories; any may be called validation, dev, ...
        reading: task, label names; its form follows from the use.
    """

    folder: Path
    train: str
    valid: str
    tests: Sequence[str]
    reading: Reading = field(default_factory=Reading)


def make_recipe_sets(
    sources: Sequence[Source], out: Path, wording: instruction.Wording
) -> dict[str, int]:
    """Makes all sets to train, validate and test on from those of other recipes.

    Args:
        sources: one a task, such as the captions of clotho_v2/asr1 and the questions of
            clotho_v2/cls1.
        out: parent of train_caption, valid_caption, train_instruction,
            valid_instruction and test_<set>; what they are made of goes to `out/parts`,
            and those that an earlier call has made and this one has not are removed.
        wording: how instructions are worded.

    Returns:
        Samples by set.

    Raises:
        CorpusError: see `read_recipe_set`; two test sets of one name.
    """
    made: dict[str, int] = {}
    # the names first: nothing is made of a set that is not there
    for source in sources:
        for name in (source.train, source.valid, *source.tests):
            _check(source.folder / name, source.reading)
    for source in sources:
        reading = replace(source.reading, form="evaluation")
        for name in source.tests:
            target = f"test_{name}"
            if target in made:
                target += f"_{reading.task}"
            made[target] = read_recipe_set(
                source.folder / name, out / target, reading=reading
            )
    for split in ("train", "valid"):
        parts, captions = [], []
        for source in sources:
            task = source.reading.task
            parts.append(out / "parts" / f"{split}_{task}")
            read_recipe_set(
                source.folder / (source.train if split == "train" else source.valid),
                parts[-1],
                reading=replace(source.reading, form=split),
            )
            if task == CAPTION:
                captions.append(parts[-1])
        for part, source in zip(list(parts), sources, strict=True):
            if source.reading.task == CLASS and not captions:
                captions.append(out / "parts" / f"{split}_label_captions")
                instruction.caption_labels(part, captions[-1])
                parts.append(captions[-1])
        if captions:
            name = f"{split}_caption"
            made[name] = instruction.join(captions, out / name)
        name = f"{split}_instruction"
        made[name] = sum(instruction.mix(parts, out / name, wording).values())
    for name in made:
        write_set(out / name, made_by=MADE_BY)
    for name in remove_sets(out, made, made_by=MADE_BY):
        logging.warning("%s: removed, made for other options before", out / name)
    return made
