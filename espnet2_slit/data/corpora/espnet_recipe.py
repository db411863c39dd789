"""Data directories of other ESPnet recipes, completed to ours.

`clotho_v2/asr1` keeps test references in `text_spk1` .. `text_spk5` and has no `text`;
`esc50/cls1` writes labels as words of a vocabulary:

    data/evaluation/text_spk1    evaluation_clotho_0 A machine whines and ...
    data/val1/text               1-100032-A-0 audio_class:0

A directory with wav.scp, text and utt2spk works as it is; this reader is for references
and labels. Audio may be a file, a pipe or an ark entry: it is copied unread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from espnet2_slit.data import kaldi_dir
from espnet2_slit.data.corpora.base import CAPTION, CLASS, QUESTION, role
from espnet2_slit.data.corpora.tables import CorpusError, clean, spell
from espnet2_slit.data.writer import SetWriter

QUESTION_FILES = ("instruction", "question.txt", "question")
LABEL_PREFIX = "audio_class:"


def read_recipe_set(
    source: Path,
    out: Path,
    task: str = CAPTION,
    evaluation: bool = False,
    label_names: Mapping[str, str] | None = None,
    zero_shot: bool = False,
) -> int:
    """Makes a data directory of ours from one of an ESPnet recipe.

    Args:
        source: the recipe's data directory.
        out: data directory to write.
        task: what `text` holds: caption, question_answering or classification.
        evaluation: one line a clip and `references`; else one line a reference.
        label_names: word in `text` (without "audio_class:") -> name of the class.
        zero_shot: claim written to set.json.

    Returns:
        Samples written.

    Raises:
        CorpusError: there is neither `text` nor `text_spk1`, a label has no name, or a
            question is missing.
    """
    source = Path(source)
    texts = [_texts(p) for p in _text_files(source)]
    recordings = kaldi_dir.read_map(source / "wav.scp")
    segments = {}
    if (source / "segments").is_file():
        segments = kaldi_dir.read_map(source / "segments")
    questions = _questions(source) if task == QUESTION else {}
    clips = kaldi_dir.clip_of(source)
    words: set[str] = set()
    left_out = 0
    with SetWriter(out) as files:
        for utterance in segments or recordings:
            given = [t[utterance] for t in texts if t.get(utterance)]
            if not given:
                left_out += 1
                continue
            if task == CLASS:
                given = [_label(text, label_names, source) for text in given]
                words.update(given)
            segment = None
            path = recordings.get(utterance, "")
            if segments:
                recording, start, end = segments[utterance].split()
                segment, path = (recording, float(start), float(end)), recordings[
                    recording
                ]
            clip = clips.get(utterance, utterance)
            once = evaluation or len(given) == 1
            for number, text in enumerate(given[:1] if once else given):
                files.add(
                    utterance if once else f"{utterance}-{number:02d}",
                    clip,
                    path,
                    text,
                    task,
                    source.name,
                    instruction=questions.get(utterance, ""),
                    segment=segment,
                )
            if evaluation and task == CAPTION:
                for text in given:
                    files.reference(clip, text)
        if not files.samples:
            raise CorpusError(f"{source}: wav.scp and text share no id.")
        tasks = [CAPTION, "retrieval"] if task == CAPTION else [task]
        files.describe(
            tuple(sorted(words)),
            answers=(),
            corpus=source.name,
            split=role(source.name, evaluation),
            variant="",
            tasks=tasks if evaluation else [],
            zero_shot=zero_shot,
            notes=f"{left_out} utterances without text left out" if left_out else "",
        )
    return files.samples


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
    for name in QUESTION_FILES:
        if (source / name).is_file():
            return _texts(source / name)
    raise CorpusError(
        f"{source}: question_answering needs the questions in one of "
        f"{', '.join(QUESTION_FILES)}."
    )


def _label(text: str, names: Mapping[str, str] | None, source: Path) -> str:
    word = text.removeprefix(LABEL_PREFIX)
    if names is None:
        return spell(word)
    if word not in names:
        raise CorpusError(
            f"{source}: the label {word!r} has no name among the {len(names)} given."
        )
    return spell(names[word])
