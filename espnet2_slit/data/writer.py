"""Writing data directories: made beside, put in place whole, nothing of before stays.

Every command that makes a directory does it through `new_directory`; `SetWriter` fills
one sample by sample. Lines may come in any order: they are sorted in bounded memory.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from espnet2_slit.common.files import atomic, write_atomically, write_json
from espnet2_slit.data.kaldi_dir import (
    DataDirError,
    is_data_file,
    read_pairs,
    read_set,
    sample_ids,
)

LINES_IN_MEMORY = 250_000  # a longer file is sorted in runs on disk


class SortedWriter:
    """Collects lines in any order and writes them sorted bytewise, in bounded memory.

    Use as a context manager: the file appears, whole, when the block ends well.

    Args:
        path: file to make.
        unique: drop repeated lines.
    """

    def __init__(self, path: Path, unique: bool = False):
        self.path = Path(path)
        self.unique = unique
        self.count = 0
        self._lines: list[bytes] = []
        self._runs: list = []

    def add(self, line: str) -> None:
        """Take one line, without its end."""
        self._lines.append(line.encode("utf-8") + b"\n")
        self.count += 1
        if len(self._lines) >= LINES_IN_MEMORY:
            self._spill()

    def _spill(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        run = tempfile.TemporaryFile(dir=self.path.parent)
        run.writelines(sorted(self._lines))
        run.seek(0)
        self._runs.append(run)
        self._lines = []

    def __enter__(self) -> SortedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            if kind is None:
                merged = heapq.merge(sorted(self._lines), *self._runs)
                write_atomically(self.path, self._decoded(merged))
        finally:
            for run in self._runs:
                run.close()

    def _decoded(self, lines: Iterable[bytes]) -> Iterator[str]:
        before = None
        for line in lines:
            if not (self.unique and line == before):
                yield line[:-1].decode("utf-8")
            before = line


def write_set(directory: Path, **values: Any) -> None:
    """Write set.json, completing what `values` leaves out."""
    content = {**read_set(directory), "sample_rate": 16000, **values}
    content["name"] = values.get("name", Path(directory).name)
    write_json(Path(directory) / "set.json", content)


# ------------------------------------------------------------------ whole directories

# Written last, removed first: a directory without them is made again, not trusted.
_MARKS = ("set.json", "report.json", "feats.json")


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A fresh folder to write in, which takes the place of `target` at the end.

    When the block fails, `target` stays as it was.

    Args:
        target: data directory to make or replace; where it is a link, what it names.

    Yields:
        An empty folder beside `target`.
    """
    target = Path(os.path.realpath(target))
    fresh = target.with_name(f".{target.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)  # of a run that was killed
    is_first = not target.parent.exists()
    fresh.mkdir(parents=True)
    try:
        yield fresh
        put_in_place(fresh, target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        if is_first:
            with contextlib.suppress(OSError):  # others write there, too
                target.parent.rmdir()
        raise


def put_in_place(fresh: Path, target: Path) -> None:
    """Move a finished directory to its place; files of an earlier one go.

    What is no file of a data directory (audio, notes, features) stays in `target`.

    Args:
        fresh: folder of files; gone afterwards.
        target: the data directory.
    """
    if not target.exists():
        os.rename(fresh, target)
        return
    for name in _MARKS:
        (target / name).unlink(missing_ok=True)
    for path in target.iterdir():
        if is_data_file(path.name) and not (fresh / path.name).exists():
            path.unlink()
    for path in sorted(fresh.iterdir(), key=lambda path: path.name in _MARKS):
        os.replace(path, target / path.name)
    fresh.rmdir()


def remove_sets(folder: Path, made: Collection[str], **facts: Any) -> list[str]:
    """Remove the sets of an earlier run which this one did not make.

    Args:
        folder: of data directories.
        made: names to keep.
        facts: what set.json must say of a set that may go, e.g. made_by="manifest".

    Returns:
        Names of the sets that are gone.
    """
    gone = []
    for path in sorted(folder.glob("*/set.json")):
        found, directory = read_set(path.parent), path.parent
        is_ours = all(found.get(key) == value for key, value in facts.items())
        if is_ours and directory.name not in made and directory.name[0] != ".":
            for file in directory.iterdir():
                if is_data_file(file.name):
                    file.unlink()
            with contextlib.suppress(OSError):  # it holds more than data files
                directory.rmdir()
            gone.append(directory.name)
    return gone


class SetWriter:
    """One data directory, sample by sample.

    Use as a context manager: the directory is there, whole, when the block ends well;
    when it fails, an earlier one stays as it was.

    Args:
        folder: the directory.
        always: write utt2audio and utt2source also where they say nothing new.

    Attributes:
        samples: how many were added.
        tasks: of the samples.
        clips: ids of the clips.
        left_out: file -> samples that had a line in it, of files that are not written
            because other samples had none.
    """

    _NAMES = (
        *("wav.scp", "text", "utt2spk", "utt2audio", "utt2task", "utt2category"),
        *("utt2source", "instruction", "utt2fold", "choices", "clip2name"),
        "text_variants",
        *("references", ".recordings", ".segments"),
    )

    def __init__(self, folder: Path, always: bool = False):
        self.folder = Path(folder)
        self.always = always
        self.samples = 0
        self.tasks: set[str] = set()
        self.clips: set[str] = set()
        self.left_out: dict[str, int] = {}
        self._recordings: set[str] = set()
        self._cut = self._shared = self._sources = self._varied = False
        self._facts: dict[str, Any] | None = None
        self._lists: dict[str, list[str]] = {}

    def __enter__(self) -> SetWriter:
        with contextlib.ExitStack() as stack:
            self._fresh = stack.enter_context(new_directory(self.folder))
            stack.push(self._arrange)  # once the files are closed
            self._files = {
                name: stack.enter_context(SortedWriter(self._fresh / name))
                for name in self._NAMES
            }
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._stack.__exit__(*failure)

    def add(
        self,
        utterance: str,
        clip: str,
        path: str,
        text: str,
        task: str,
        category: str,
        source: str = "",
        instruction: str = "",
        segment: tuple[str, float, float] | None = None,
        name: str = "",
        fold: str = "",
        choices: Sequence[str] = (),
        variants: Sequence[str] = (),
    ) -> None:
        """Add one sample.

        Args:
            utterance: sample id.
            clip: clip id.
            path: the audio.
            text: caption, answer or label.
            task: caption, question_answering or classification.
            category: for balanced sampling.
            source: of the recording; the clip id stands in for an unknown one.
            instruction: or question.
            segment: (recording id, start, end) in seconds, end -1: to the end of the
                file; None: all of it.
            name: the publisher's name of the clip.
            fold: published fold, where scores are means over folds.
            choices: answers to choose from.
            variants: paraphrases of the text, of which training draws.
        """
        files = self._files
        self._cut |= segment is not None
        recording, start, end = segment or (clip, 0, -1)
        if recording not in self._recordings:
            self._recordings.add(recording)
            files[".recordings"].add(f"{recording} {path}")
        place = f"{recording} {seconds(start)} {seconds(end)}"
        files[".segments"].add(f"{utterance} {place}")
        files["wav.scp"].add(f"{utterance} {path}")
        files["text"].add(f"{utterance} {text}")
        files["utt2spk"].add(f"{utterance} {utterance}")
        files["utt2audio"].add(f"{utterance} {clip}")
        files["utt2task"].add(f"{utterance} {task}")
        files["utt2category"].add(f"{utterance} {category}")
        files["utt2source"].add(f"{utterance} {source or clip}")
        if fold:
            files["utt2fold"].add(f"{utterance} {fold}")
        if instruction:
            files["instruction"].add(f"{utterance} {instruction}")
        if choices:
            files["choices"].add(f"{utterance} {_json(choices)}")
        files["text_variants"].add(f"{utterance} {_json(variants)}")
        self._varied |= bool(variants)
        if clip not in self.clips:
            self.clips.add(clip)
            if name:
                files["clip2name"].add(f"{clip} {name}")
        self._shared |= utterance != clip
        self._sources |= bool(source)
        self.tasks.add(task)
        self.samples += 1

    def reference(self, clip: str, text: str) -> None:
        """Add one reference caption, or one label of several."""
        self._files["references"].add(f"{clip} {text}")

    def describe(
        self, labels: Iterable[str] = (), answers: Iterable[str] = (), **facts: Any
    ) -> None:
        """Say what belongs into set.json, and the candidate labels and answers."""
        self._lists = {"labels": list(labels), "answers": list(answers)}
        self._facts = facts

    def write(self, name: str, lines: Iterable[str]) -> None:
        """Write one more file of the directory, such as a report."""
        write_atomically(self._fresh / name, lines)

    def _arrange(self, kind: type[BaseException] | None, *_: Any) -> None:
        """The files that were written -> those of a data directory."""
        if kind is not None:
            return
        folder = self._fresh
        if self._cut:  # wav.scp names recordings, segments the samples
            (folder / ".recordings").replace(folder / "wav.scp")
            (folder / ".segments").replace(folder / "segments")
        else:
            (folder / ".recordings").unlink()
            (folder / ".segments").unlink()
        _refuse_twins(folder / "text", self.folder)
        if not (self._shared or self.always):
            (folder / "utt2audio").unlink()
        if not (self._sources or self.always):
            (folder / "utt2source").unlink()
        if not self._varied:
            (folder / "text_variants").unlink()
        for name in ("instruction", "utt2fold"):
            count = self._files[name].count
            if count < self.samples:
                (folder / name).unlink()
                if count:
                    self.left_out[name] = count
        for name in ("choices", "clip2name", "references"):
            if not self._files[name].count:
                (folder / name).unlink()
        # every sample is its own speaker, so that the two orders agree
        shutil.copyfile(folder / "utt2spk", folder / "spk2utt")
        write_categories(folder)
        for name, lines in self._lists.items():
            if lines:
                write_atomically(folder / name, lines)
        if self._facts is not None:
            write_set(folder, **{"name": self.folder.name, **self._facts})


def _json(texts: Sequence[str]) -> str:
    return json.dumps(list(texts), ensure_ascii=False)


def _refuse_twins(path: Path, folder: Path) -> None:
    before = None
    for key, _ in read_pairs(path):
        if key == before:
            raise DataDirError(
                f"{folder}: two sources have the sample {key!r}. Give each once."
            )
        before = key


def seconds(value: float) -> str:
    """A time as it stands in segments: microseconds are kept, zeros are not."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


# ------------------------------------------------------- files that follow from others


def write_speakers(directory: Path) -> None:
    """Write spk2utt from utt2spk."""
    speakers: dict[str, list[str]] = {}
    for sample, speaker in read_pairs(Path(directory) / "utt2spk"):
        speakers.setdefault(speaker, []).append(sample)
    with SortedWriter(Path(directory) / "spk2utt") as out:
        for speaker, samples in speakers.items():
            out.add(f"{speaker} {' '.join(samples)}")


def write_categories(directory: Path) -> int:
    """Write category2utt, from which ESPnet's category samplers draw.

    Args:
        directory: data directory with utt2category; without it all samples are of one
            category, "all", so that such a sampler can be used all the same.

    Returns:
        How many categories there are.
    """
    directory = Path(directory)
    pairs: Iterable[tuple[str, str]]
    if (directory / "utt2category").is_file():
        pairs = read_pairs(directory / "utt2category")
    else:
        pairs = ((key, "all") for key in sample_ids(directory))
    flat = directory / ".category2utt"  # sorted on disk: categories may be large
    with SortedWriter(flat) as out:
        for sample, category in pairs:
            out.add(f"{category} {sample}")
    count = 0
    try:
        with atomic(directory / "category2utt") as stream:
            for category, members in itertools.groupby(
                read_pairs(flat), lambda p: p[0]
            ):
                stream.write(category.encode())
                stream.writelines(f" {sample}".encode() for _, sample in members)
                stream.write(b"\n")
                count += 1
    finally:
        flat.unlink()
    return count
