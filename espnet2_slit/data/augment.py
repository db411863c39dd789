"""Other forms of a training clip: rolled in time, or mixed with another clip.

Owns what is drawn and what becomes of audio, caption and clip id. Draws depend on the
epoch's seed and the sample's id alone, so that audio and text of a sample, which may be
asked for apart, belong together, and a resumed epoch goes on as it began.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from espnet2_slit.data.audio import read_audio
from espnet2_slit.data.kaldi_dir import DataDirError, read_map, read_set

LEVELS_DB = 5.0  # of the other clip against this one, at most
SILENT = 1e-4  # RMS; what is below is not made louder


class Augmentation:
    """What is done to the clips of a training set, where their waveforms are read.

    Args:
        roll: share of samples whose audio begins elsewhere, its end before its
            beginning. Not for texts that tell of order.
        mix: share of caption samples that are mixed with another one's audio; their
            caption is joined to theirs.
        folder: training data directory, prepared (`slit data prepare`): where the
            other clips of a mixture are. Needed for `mix`.

    Raises:
        ValueError: a share outside [0, 1], or a directory that cannot serve.
    """

    def __init__(self, roll: float = 0.0, mix: float = 0.0, folder: str = ""):
        for name, share in (("roll", roll), ("mix", mix)):
            if not 0 <= share <= 1:
                raise ValueError(
                    f"augment.{name}: expected a share from 0 to 1, found {share}"
                )
        self.roll, self.mix = float(roll), float(mix)
        self.paths: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.keys: Sequence[str] = ()  # samples that may be mixed
        self._mixable: frozenset[str] = frozenset()
        self.sample_rate = 16000
        if mix:
            self._read_partners(folder)

    def _read_partners(self, folder: str) -> None:
        place = Path(folder)
        if not folder or not (place / "wav.scp").is_file():
            raise ValueError(
                f"augment.mix: expected the training set's data directory, found"
                f" {folder!r}. Give --train_dir, or preprocessor_conf.augment.folder."
            )
        if (place / "segments").is_file():
            raise DataDirError(
                f"{place}: has segments; a mixture needs one file a clip. Prepare it"
                " (slit data prepare cuts them)."
            )
        self.sample_rate = read_set(place)["sample_rate"]
        self.paths, self.texts = read_map(place / "wav.scp"), read_map(place / "text")
        keys = self.texts.keys() & self.paths.keys()
        if (place / "utt2task").is_file():
            tasks = read_map(place / "utt2task")
            keys = {key for key in keys if tasks.get(key) == "caption"}
        elif (place / "instruction").is_file():
            keys = set()
        if len(keys) < 2:
            raise ValueError(
                f"{place}: augment.mix: expected two or more samples of the task"
                f" caption, found {len(keys)}. Answers and labels cannot be joined."
            )
        self.keys, self._mixable = sorted(keys), frozenset(keys)

    def partner(self, epoch: int, uid: str) -> str | None:
        """The sample that this one is mixed with in this epoch; None: with none."""
        if uid not in self._mixable or not self._drawn(epoch, "mix", uid, self.mix):
            return None
        at = int(_fraction(epoch, "partner", uid) * len(self.keys))
        other = self.keys[at]
        if other == uid:
            other = self.keys[(at + 1) % len(self.keys)]
        return other

    def audio(self, epoch: int, uid: str, speech: np.ndarray) -> np.ndarray:
        """The audio of a sample in this epoch.

        Args:
            epoch: its seed.
            uid: sample id.
            speech: (S,) float.

        Returns:
            (S',) float32 in [-1, 1]; as long as the longer one of a mixture, so that
            all that the captions tell of is in it.

        Raises:
            AudioError: the other clip cannot be read.
        """
        if self._drawn(epoch, "roll", uid, self.roll):
            speech = np.roll(speech, int(_fraction(epoch, "by", uid) * len(speech)))
        other = self.partner(epoch, uid)
        if other is None:
            return speech
        second = read_audio(self.paths[other], self.sample_rate)
        level = (2 * _fraction(epoch, "level", uid) - 1) * LEVELS_DB
        gain = 10 ** (level / 20) * _rms(speech) / _rms(second)
        mixed = np.zeros(max(len(speech), len(second)), np.float32)
        for clip, scale in ((speech, 1.0), (second, gain)):
            free = len(mixed) - len(clip)
            start = int(_fraction(epoch, "place", uid) * (free + 1))
            mixed[start : start + len(clip)] += scale * clip
        return mixed / max(1.0, float(np.abs(mixed).max()))

    def text(self, epoch: int, uid: str, text: str) -> str:
        """The caption of a sample in this epoch."""
        other = self.partner(epoch, uid)
        return text if other is None else joined(text, self.texts[other])

    def clip(self, epoch: int, uid: str, clip: str) -> str:
        """The name of what is heard: a mixture is a clip of its own."""
        other = self.partner(epoch, uid)
        return clip if other is None else f"{clip}\0{other}"

    @staticmethod
    def _drawn(epoch: int, what: str, uid: str, share: float) -> bool:
        return share > 0 and _fraction(epoch, what, uid) < share


def joined(first: str, second: str) -> str:
    """Two captions as one sentence."""
    end = first[len(first.rstrip(".!? ")) :].strip()
    second = second.strip().rstrip(".!? ")
    if re.match(r"[A-Z][a-z]+\b|A\b", second):  # not "TV", not "I"
        second = second[:1].lower() + second[1:]
    return f"{first.rstrip('.!? ')} and {second}{end}"


def _rms(audio: np.ndarray) -> float:
    return max(float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))), SILENT)


def _fraction(*words: object) -> float:
    """A number in [0, 1) that depends on the words alone."""
    digest = hashlib.blake2b(repr(words).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
