"""The clips of a data directory: wav.scp, segments and utt2audio, read in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from espnet2_slit.data.audio import AudioError, probe
from espnet2_slit.data.kaldi_dir import DataDirError, clip_of, read_map


@dataclass(frozen=True)
class Clip:
    """One recording, or a stretch of one, shared by all samples that speak of it.

    Attributes:
        id: clip id, from utt2audio.
        path: audio file.
        start_s: first second, from segments.
        end_s: last second; None means the end.
    """

    id: str
    path: str
    start_s: float = 0.0
    end_s: float | None = None

    @property
    def source(self):
        """What decides the frames, whatever the clip is called."""
        return (os.path.abspath(self.path), self.start_s, self.end_s)

    def duration_s(self):
        """Seconds, from the file's header.

        Raises:
            AudioError: the file cannot be used.
        """
        whole = probe(self.path).duration_s
        end = whole if self.end_s is None else min(whole, self.end_s)
        if end <= self.start_s:
            raise AudioError(
                f"{self.path}: clip {self.id} starts at {self.start_s} s, the file"
                f" lasts {whole:.3f} s. Correct the segments file."
            )
        return end - self.start_s


def read_clips(data_dir):
    """The clips of a data directory.

    Args:
        data_dir: directory with wav.scp, optionally utt2audio and segments.

    Returns:
        (samples, clips): {sample id: clip id} sorted by sample id, and
        {clip id: Clip} sorted by id.

    Raises:
        DataDirError: missing files, ids that do not match, a clip id that stands
            for two recordings, an empty set.
    """
    data_dir = Path(data_dir)
    wav_scp = data_dir / "wav.scp"
    if not wav_scp.is_file():
        raise DataDirError(
            f"{data_dir}: no wav.scp, expected a data directory."
            " Run the recipe's stage 1, or name the directory that holds wav.scp."
        )
    recordings = read_map(wav_scp)
    if (data_dir / "segments").is_file():
        stretches = {}
        for sample, line in read_map(data_dir / "segments").items():
            fields = line.split()
            if len(fields) != 3 or fields[0] not in recordings:
                raise DataDirError(
                    f"{data_dir}/segments: {sample}: expected '<recording in wav.scp>"
                    f" <start s> <end s>', found {line!r}."
                )
            end_s = float(fields[2])
            stretches[sample] = (
                recordings[fields[0]],
                float(fields[1]),
                None if end_s < 0 else end_s,
            )
    else:
        stretches = {sample: (path, 0.0, None) for sample, path in recordings.items()}
    if not stretches:
        raise DataDirError(f"{data_dir}: wav.scp has no line: the set is empty.")
    samples = {sample: sample for sample in sorted(stretches, key=str.encode)}
    named = clip_of(data_dir)
    if named or (data_dir / "utt2audio").is_file():
        absent = sorted(set(samples) ^ set(named))
        if absent:
            raise DataDirError(
                f"{data_dir}: utt2audio and wav.scp differ in {len(absent)} ids, first"
                f" {absent[0]!r}. Repair the directory (slit_data fix)."
            )
        samples = {sample: named[sample] for sample in samples}
    clips = {}
    for sample, clip_id in samples.items():
        clip = Clip(clip_id, *stretches[sample])
        if clips.setdefault(clip_id, clip) != clip:
            raise DataDirError(
                f"{data_dir}: utt2audio gives the clip id {clip_id!r} to two"
                f" recordings, {clips[clip_id].path} and {clip.path}."
                " Give each recording its own id."
            )
    return samples, {key: clips[key] for key in sorted(clips, key=str.encode)}


def segment_fault(value: str) -> str | None:
    """What is wrong with `recording start end`, None if nothing."""
    parts = value.split()
    try:
        start, end = float(parts[1]), float(parts[2])
    except (IndexError, ValueError):
        return f"has {value!r}, expected `recording start end` with seconds"
    if len(parts) != 3 or not start >= 0 or not (end > start or end == -1):
        return f"has {value!r}, expected 0 <= start < end (or end -1: all the rest)"
    return None
