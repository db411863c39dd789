"""Writing one data directory, whatever its samples come from."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from espnet2_slit.common.files import write_atomically
from espnet2_slit.data import writer


class SetFiles:
    """The files of one data directory while they are written; set.json comes last.

    Use as a context manager: when the block fails, nothing is left of the set.

    Args:
        folder: the directory; what an earlier run left in it is removed.
    """

    NAMES = "wav.scp text utt2spk instruction utt2audio utt2task utt2category"
    NAMES += " utt2source utt2fold clip2name references .recordings .segments"
    OTHERS = "segments spk2utt labels answers set.json category2utt"

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.samples = 0
        self.tasks: set[str] = set()
        self.clips: set[str] = set()
        self._recordings: set[str] = set()
        self._cut = self._shared = self._sources = False

    def __enter__(self) -> "SetFiles":
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in (self.NAMES + " " + self.OTHERS).split():
            (self.folder / old).unlink(missing_ok=True)
        self._stack = contextlib.ExitStack()
        self._files = {
            name: self._stack.enter_context(writer.SortedWriter(self.folder / name))
            for name in self.NAMES.split()
        }
        return self

    def __exit__(self, *failure) -> None:
        self._stack.__exit__(*failure)
        if failure[0] is None:
            self._arrange()

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
    ) -> None:
        """Adds one sample.

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
        """
        files = self._files
        self._cut |= segment is not None
        recording, start, end = segment or (clip, 0, -1)
        if recording not in self._recordings:
            self._recordings.add(recording)
            files[".recordings"].add(f"{recording} {path}")
        place = f"{recording} {_seconds(start)} {_seconds(end)}"
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
        if clip not in self.clips:
            self.clips.add(clip)
            if name:
                files["clip2name"].add(f"{clip} {name}")
        self._shared |= utterance != clip
        self._sources |= bool(source)
        self.tasks.add(task)
        self.samples += 1

    def reference(self, clip: str, text: str) -> None:
        """Adds one reference caption, or one label of several."""
        self._files["references"].add(f"{clip} {text}")

    def _arrange(self) -> None:
        folder = self.folder
        if self._cut:  # wav.scp names recordings, segments the samples
            (folder / ".recordings").replace(folder / "wav.scp")
            (folder / ".segments").replace(folder / "segments")
        else:
            (folder / ".recordings").unlink()
            (folder / ".segments").unlink()
        if not self._shared:
            (folder / "utt2audio").unlink()
        if not self._sources:
            (folder / "utt2source").unlink()
        for name in ("instruction", "utt2fold", "clip2name", "references"):
            if not self._files[name].count:
                (folder / name).unlink()
        # every sample is its own speaker, so that the two orders agree
        shutil.copyfile(folder / "utt2spk", folder / "spk2utt")

    def describe(
        self, labels: Iterable[str] = (), answers: Iterable[str] = (), **facts
    ) -> None:
        """Writes candidate labels, answers and, last of all, set.json."""
        for name, words in (("labels", labels), ("answers", answers)):
            if words:
                write_atomically(self.folder / name, words)
        writer.write_set(self.folder, **facts)


def _seconds(value: float) -> str:
    """Milliseconds are kept, zeros are not: 30.0 -> "30"."""
    return f"{value:.3f}".rstrip("0").rstrip(".")
