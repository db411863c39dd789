"""Shards of webdataset: tar archives whose neighbouring files are one sample.

    shards/00000.tar:  dog_7.flac  dog_7.json  rain.mp3  rain.txt ...
    dog_7.json         {"text": ["a dog barks", "barking"], "tag": ["dog"]}

Owns grouping members into samples and finding their audio and texts. Audio is copied
out, whatever its kind, and checked like everybody's by data preparation. Shards are
read forward, once, so that those of any size do; nothing in them is trusted: names of
members become file names of ours, links and devices are left out.
"""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from espnet2_slit.common.files import atomic
from espnet2_slit.data import containers
from espnet2_slit.data.audio import AudioError, probe
from espnet2_slit.data.corpora.base import CAPTION, safe_id
from espnet2_slit.data.corpora.tables import CorpusError
from espnet2_slit.data.kaldi_dir import one_line
from espnet2_slit.data.report import Report
from espnet2_slit.data.writer import SetWriter

TEXT_KEYS = (
    "text",
    "caption",
    "captions",
)  # of a sample's JSON, the first that is there
SPLITS = ("train", "valid", "test")
BIGGEST_TEXT = 1 << 20  # bytes of a text or JSON member


@dataclass
class Sample:
    """Members of a shard that have one name before their first dot.

    Attributes:
        key: that name, with its folders.
        audio: (suffix, bytes), or None.
        texts: captions.
    """

    key: str
    audio: tuple[str, bytes] | None = None
    texts: list[str] = field(default_factory=list)


def expand(patterns: Sequence[str]) -> list[str]:
    """Paths of shards: {000..127} and {a,b} are counted out, * and ? looked up.

    Raises:
        CorpusError: an address or a command, or nothing is there.
    """
    found: list[str] = []
    for pattern in patterns:
        if re.match(r"(pipe|[a-z0-9+]+)://?|pipe:", pattern):
            raise CorpusError(
                f"{pattern}: expected paths of tar files; addresses and commands"
                " are not opened. Fetch the shards first."
            )
        for path in _braces(pattern):
            paths = sorted(glob.glob(path)) if re.search(r"[*?\[]", path) else [path]
            if not paths or not all(map(os.path.isfile, paths)):
                raise CorpusError(f"{path}: no such shard (of {pattern})")
            found += paths
    return found


def _braces(pattern: str) -> list[str]:
    choices = []
    for piece in re.split(r"(\{[^{}]*\})", pattern):
        span = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", piece)
        if span:
            first, last = span.groups()
            numbers = range(int(first), int(last) + 1)
            choices.append([f"{n:0{len(first)}d}" for n in numbers])
        elif piece.startswith("{"):
            choices.append(piece[1:-1].split(","))
        else:
            choices.append([piece])
    return ["".join(words) for words in product(*choices)]


def read_shard(
    path: str, report: Report, text_keys: Sequence[str] = TEXT_KEYS
) -> Iterator[Sample]:
    """Samples of a shard, in its order.

    Args:
        path: of a tar archive, compressed or not.
        report: counts members that cannot be used, and shards that break off.
        text_keys: keys of a sample's JSON, by preference.
    """
    now: Sample | None = None
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if not member.isfile():
                    if not member.isdir():
                        report.drop("link or device in a shard", member.name)
                    continue
                folder, name = os.path.split(member.name)
                stem, _, suffix = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if now is None or key != now.key:
                    if now is not None:
                        yield now
                    now = Sample(key)
                _take(now, archive, member, suffix.lower(), report, text_keys)
    except (tarfile.TarError, EOFError, OSError) as error:
        report.drop("shard breaks off", f"{path} ({error})")
    if now is not None:
        yield now


def _take(sample, archive, member, suffix, report, text_keys) -> None:
    last = f".{suffix.rpartition('.')[2]}"
    if last in (".txt", ".json"):
        if member.size > BIGGEST_TEXT:
            report.drop("text above a megabyte", member.name)
            return
        content = archive.extractfile(member).read()
        try:
            text = content.decode("utf-8")
            sample.texts += (
                _texts(json.loads(text), text_keys) if last == ".json" else [text]
            )
        except ValueError as error:
            report.drop("text is broken", f"{member.name} ({error})")
    elif last in containers.AUDIO_SUFFIXES and sample.audio is None:
        content = archive.extractfile(member).read()
        if len(content) < member.size:
            raise tarfile.ReadError(f"ends within {member.name}")
        sample.audio = (last, content)
    else:
        report.note(f"members passed over: {last}")


def _texts(content: Any, keys: Sequence[str]) -> list[str]:
    if not isinstance(content, dict):
        return []
    for key in keys:
        value = content.get(key)
        values = value if isinstance(value, list) else [value]
        texts = [text for text in values if isinstance(text, str) and text.strip()]
        if texts:
            return texts
    return []


def make_set(
    shards: Sequence[str],
    out: Path,
    audio_dir: Path,
    split: str = "train",
    text_keys: Sequence[str] = TEXT_KEYS,
    corpus: str = "",
) -> Report:
    """A data directory of shards; equal texts of a clip count once.

    Args:
        shards: paths or patterns, see `expand`.
        out: the directory.
        audio_dir: where the audio is copied to.
        split: "test" writes one line a clip and the other captions as references.
        text_keys: see `read_shard`.
        corpus: name for set.json; default: the directory's.

    Returns:
        Report, also in `out`/report.json.

    Raises:
        CorpusError: no shard there, or no sample that can be used.
    """
    if split not in SPLITS:
        raise CorpusError(f"split: expected {', '.join(SPLITS)}, found {split}")
    out, audio_dir = Path(out), Path(audio_dir).resolve()
    report, seen = Report(", ".join(shards)), set()
    with SetWriter(out) as files:
        for shard in expand(shards):
            name = Path(shard).name.partition(".")[0]
            for sample in read_shard(shard, report, text_keys):
                report.rows += 1
                clip = safe_id(corpus or out.name, f"{name}/{sample.key}")
                texts = list(dict.fromkeys(filter(None, map(one_line, sample.texts))))
                fault = _fault(sample, texts, clip in seen)
                if fault:
                    report.drop(fault, f"{shard}: {sample.key}")
                    continue
                seen.add(clip)
                path = _copy(sample, audio_dir / name, clip, report)
                if path is None:
                    continue
                for k, text in enumerate(texts[:1] if split == "test" else texts):
                    key = clip if split == "test" else f"{clip}-{k}"
                    files.add(key, clip, path, text, CAPTION, "caption")
                for text in texts if split == "test" else ():
                    files.reference(clip, text)
                report.kept += 1
        if not report.kept:
            raise CorpusError("\n  ".join(["no usable sample", *report.lines()]))
        files.describe(
            corpus=corpus or out.name,
            split=split,
            tasks=["caption", "retrieval"] if split == "test" else [],
        )
    report.write(out / "report.json")
    return report


def _fault(sample: Sample, texts: list[str], is_known: bool) -> str:
    if sample.audio is None:
        return "no audio in the sample"
    if not texts:
        return "no text in the sample"
    return "key twice" if is_known else ""


def _copy(sample: Sample, folder: Path, clip: str, report: Report) -> str | None:
    """The path of a sample's audio, written; None, counted, if it is none."""
    assert sample.audio is not None
    suffix, content = sample.audio
    path = folder / f"{clip}{suffix}"
    if not path.is_file() or path.stat().st_size != len(content):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as stream:
            stream.write(content)
    try:
        probe(path)
    except AudioError as error:
        report.drop("unreadable audio", str(error))
        path.unlink()
        return None
    return str(path)
