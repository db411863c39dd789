"""An evaluation set as decoding reads it: samples, clips, texts, and their audio.

The audio is waveforms or cached frames. The files of a set are those of `data`.
"""

from __future__ import annotations

import os
from pathlib import Path

from espnet2_slit.common.files import read_lines
from espnet2_slit.data.clips import read_clips
from espnet2_slit.data.feature_cache import check_features
from espnet2_slit.data.kaldi_dir import (
    DataDirError,
    read_map,
    read_pairs,
    read_set,
)
from espnet2_slit.inference.clips import AudioClips, CachedClips, Clips
from espnet2_slit.inference.controls import OtherAudio
from espnet2_slit.inference.engine import Engine


class EvaluationSet:
    """An evaluation set with its audio, cached or not.

    Args:
        data_dir: data directory; with feats.scp and feats.json the frames are cached.
        slit: system that will read it.
        audio: "auto" takes cached features where they are, "features" insists on
            them, "waveform" ignores them.
        control: other audio in place of the clips' own, one of `CONTROLS`; silence and
            noise ignore cached features, too.
        seed: of the control.

    Raises:
        DataDirError: an empty set, or files that do not fit together.
        FeatureCacheError: features of another encoder.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike,
        slit: Engine,
        audio: str = "auto",
        control: str = "",
        seed: int = 0,
    ):
        self.dir = Path(data_dir)
        self.facts = read_set(self.dir)
        cached = (self.dir / "feats.json").is_file()
        if audio == "features" and not cached:
            raise DataDirError(
                f"{self.dir}: no feats.json, expected cached features. Encode the"
                " set (slit_encode), or decode waveforms (--audio waveform)."
            )
        waveforms = audio == "waveform" or control in ("silence", "noise")
        self.cached = cached and not waveforms
        self.control = control
        self.samples, clips = read_clips(self.dir)  # {sample: clip}, {clip: Clip}
        if self.cached:
            check_features(self.dir, slit.encoder_identity)
            kept = set(sample_ids_of(self.dir / "feats.scp"))
            self.samples = {s: c for s, c in self.samples.items() if s in kept}
        first: dict[str, str] = {}
        for sample, clip in self.samples.items():
            first.setdefault(clip, sample)
        self.clip_ids = sorted(first, key=str.encode)
        self.clip_index = {clip: i for i, clip in enumerate(self.clip_ids)}
        if self.cached:
            keys = [first[clip] for clip in self.clip_ids]
            fps = slit.encoder_identity["frames_per_second"]
            self.clips: Clips = CachedClips(self.dir / "feats.scp", keys, fps)
        else:
            some = [clips[clip] for clip in self.clip_ids]
            in_windows = self.tasks() == ["moments"]
            longest_s = float("inf") if in_windows else slit.longest_s
            self.clips = AudioClips.of_clips(some, slit.sample_rate, longest_s)
        if control:
            self.clips = OtherAudio(self.clips, control, seed)

    def tasks(self) -> list[str]:
        """Tasks that set.json names; without it, those that the files allow."""
        if self.facts.get("tasks"):
            return list(self.facts["tasks"])
        if (self.dir / "moments").is_file():
            return ["moments"]
        if (self.dir / "labels").is_file():
            return ["classification"]
        if (self.dir / "instruction").is_file():
            return ["question_answering"]
        return ["caption", "retrieval"]

    def map(self, name: str) -> dict[str, str]:
        """{sample: value} of a file; {} if the set has no such file."""
        path = self.dir / name
        return read_map(path) if path.is_file() else {}

    def lines(self, name: str) -> list[str] | None:
        """Lines of a file without keys; None if there is none."""
        path = self.dir / name
        return read_lines(path) if path.is_file() else None

    def texts(self) -> list[tuple[str, str]]:
        """(clip id, text) pairs that retrieval searches with and among."""
        if (self.dir / "references").is_file():
            pairs = list(read_pairs(self.dir / "references"))
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


def sample_ids_of(path: str | os.PathLike) -> list[str]:
    """Ids of a Kaldi-style file."""
    return [key for key, _ in read_pairs(Path(path))]
