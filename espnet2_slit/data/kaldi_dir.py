"""Kaldi-style data directories: their layout, and how they are read.

A directory has one line per sample, `id value`, sorted bytewise, in UTF-8. Files with
other keys are `wav.scp` (recordings, where there are `segments`), `spk2utt` (speakers)
and `references` (clips, one line per reference). Writing is `writer`'s business, checks
are that of `validate`, changes that of `edit`. Large directories are handled one file
at a time: what stays in memory is the ids.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from espnet2_slit.common.files import read_json
from espnet2_slit.common.names import TASKS

SCHEMA = 1
# Keyed by sample; a directory has those it needs. `segments` decide what wav.scp means.
SAMPLE_FILES = (
    "text",
    "utt2spk",
    "segments",
    "text_variants",  # a JSON list of paraphrases of `text`, maybe empty
    "instruction",
    "utt2audio",
    "utt2task",
    "utt2category",
    "utt2source",
    "utt2fold",
    "utt2num_samples",
    "utt2dur",
    "feats.scp",
    "feats_shape",
    "speech_shape",
)
# Not keyed by anything.
PLAIN_FILES = ("labels", "answers", "set.json")
# Keyed by sample, for those that have one.
SOME_SAMPLES_FILES = ("choices", "utt2kind")
# Keyed by sample, several lines each.
SAMPLE_LISTS = ("moments",)
# Keyed by clip: its captions to score against, and what its publisher calls it.
CLIP_FILES = ("references", "relevant", "clip2name")
# Where other recipes keep what `text` answers, or what it judges.
QUESTION_FILES = ("question.txt", "hypothesis.txt", "question")
# Follow from the others, or say how the directory was made.
MADE_FILES = (
    *("wav.scp", "spk2utt", "category2utt", "feats.json", "report.json"),
    *("corpus_report.txt", "corpus_report.json"),
)
# What a sample without a line in an optional file is taken to have there.
DEFAULTS: dict[str, Callable[[str], str]] = {
    "utt2spk": lambda sample: sample,
    "utt2audio": lambda sample: sample,
    "utt2task": lambda sample: "caption",
    "text_variants": lambda sample: "[]",
}
EXAMPLES = 3  # ids named in a message
SEPARATOR = re.compile(r"[ \t]+")


class DataDirError(ValueError):
    """A data directory is not as it must be; the message says what to do."""


def read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """(id, value) of every line; the value is "" where a line has only an id.

    Args:
        path: file of `id value` lines.

    Yields:
        Pairs in the file's order; empty lines are passed over.

    Raises:
        DataDirError: the file is missing or not UTF-8; names file and line.
    """
    path = Path(path)
    number = 0
    try:
        # a byte order mark, which Windows' editors write, is no part of the first id
        with open(path, encoding="utf-8-sig", newline="\n") as stream:
            for line in stream:
                number += 1
                parts = SEPARATOR.split(line.strip(" \t\r\n"), maxsplit=1)
                if parts[0]:
                    yield parts[0], parts[1] if len(parts) == 2 else ""
    except FileNotFoundError:
        raise DataDirError(
            f"{path}: no such file. Expected a data directory with wav.scp and text;"
            " found " + listing(path.parent)
        ) from None
    except UnicodeDecodeError as error:
        raise DataDirError(
            f"{path}: a line after line {number} is not UTF-8 ({error.reason}). Convert"
            f" the file: iconv -f ISO-8859-1 -t UTF-8 {path.name}"
        ) from error


def read_map(path: Path) -> dict[str, str]:
    """All pairs of a file with unique ids.

    Args:
        path: file of `id value` lines.

    Returns:
        id -> value, in the file's order.

    Raises:
        DataDirError: an id comes twice.
    """
    found: dict[str, str] = {}
    for key, value in read_pairs(path):
        if key in found:
            raise DataDirError(
                f"{path}: the id {key!r} comes twice. Run `python -m"
                f" espnet2_slit.bin.slit_data fix {Path(path).parent}`"
            )
        found[key] = value
    return found


def every_line(path: Path) -> list[str]:
    """All lines as they are, without their ends."""
    text = path.read_bytes().decode("utf-8")
    return text.removesuffix("\n").split("\n") if text else []


def listing(folder: Path) -> str:
    """What a folder holds, for a message."""
    if not folder.is_dir():
        return f"no folder {folder}"
    names = sorted(path.name for path in folder.iterdir())
    return f"{folder} with {', '.join(names[:8]) or 'nothing in it'}"


def read_set(directory: Path) -> dict:
    """The directory's set.json, or what is assumed where there is none."""
    path = Path(directory) / "set.json"
    assumed = {
        "schema": SCHEMA,
        "name": Path(directory).name,
        "corpus": "",
        "split": "",
        "variant": "",
        "tasks": [],
        "zero_shot": False,
        "notes": "",
    }
    if not path.is_file():
        return assumed
    found = read_json(path, SCHEMA, "Write it again.", DataDirError)
    unknown = [task for task in found.get("tasks", []) if task not in TASKS]
    if unknown:
        raise DataDirError(
            f"{path}: tasks may be {', '.join(TASKS)}; found {', '.join(unknown)}."
        )
    return {**assumed, **found}


def one_line(text: str) -> str:
    """A text as it can stand in a line: blanks are one, signs without a form are gone.

    Joiners stay: they are letters of Persian, of Indic scripts and of joined emoji.
    """
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()  # almost every row, and ten times faster
    return " ".join("".join(map(_sign, text)).split())


def _sign(character: str) -> str:
    if character.isprintable() or character in "\u200c\u200d":
        return character
    # Cf are marks of direction, byte order, soft hyphens: between letters of a word.
    is_mark = unicodedata.category(character) == "Cf"
    return "" if is_mark else " "


def asks_questions(directory: Path) -> bool:
    """Whether `references` are answers, keyed by sample, not captions of clips."""
    return read_set(directory)["tasks"] == ["question_answering"]


def split_of(directory: Path) -> str:
    """train, valid or test: as set.json says, else how the name begins."""
    return read_set(directory)["split"] or Path(directory).name.partition("_")[0]


def question_file(directory: Path) -> str | None:
    """Name of the file in which another recipe keeps questions, None without one."""
    found = (name for name in QUESTION_FILES if (Path(directory) / name).is_file())
    return next(found, None)


def is_data_file(name: str) -> bool:
    """Whether a file of this name belongs to a data directory."""
    lists = (*SAMPLE_LISTS, *CLIP_FILES, *PLAIN_FILES)
    known = (*SAMPLE_FILES, *SOME_SAMPLES_FILES, *lists)
    return (
        name in (*known, *MADE_FILES) or re.fullmatch(r"text_spk\d+", name) is not None
    )


def sample_files(directory: Path) -> list[str]:
    """Names of the files in a directory that have one line per sample.

    Known names, wav.scp where there are no segments, and text_spk1, text_spk2, ... of
    ESPnet's captioning recipes.
    """
    directory = Path(directory)
    names = [name for name in SAMPLE_FILES if (directory / name).is_file()]
    if "segments" not in names and (directory / "wav.scp").is_file():
        names.insert(0, "wav.scp")
    names += sorted(path.name for path in directory.glob("text_spk[0-9]*"))
    return names


def sample_ids(directory: Path) -> list[str]:
    """Ids of a directory's samples, in order."""
    directory = Path(directory)
    for name in ("segments", "wav.scp", "feats.scp"):
        if (directory / name).is_file():
            return [key for key, _ in read_pairs(directory / name)]
    raise DataDirError(
        f"{directory}: expected wav.scp (or feats.scp); found {listing(directory)}"
    )


def clip_of(directory: Path) -> dict[str, str]:
    """sample id -> clip id; empty where every sample is its own clip."""
    path = Path(directory) / "utt2audio"
    return read_map(path) if path.is_file() else {}


def some_ids(ids: Iterable[str]) -> str:
    """The first few of some ids, for a message."""
    ids = sorted(ids)
    more = f" and {len(ids) - EXAMPLES} more" if len(ids) > EXAMPLES else ""
    return ", ".join(map(repr, ids[:EXAMPLES])) + more


def check_id(key: str) -> str | None:
    """What is wrong with an id, None if nothing."""
    if not key.isprintable() or any(character.isspace() for character in key):
        return "holds characters that cannot be printed"
    return None
