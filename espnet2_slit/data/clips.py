"""The clips of a data directory: wav.scp, segments and utt2audio, read in one place.

Owns three rules. A clip is a recording or a segment of one, shared by all samples that
speak of it: `utt2audio` says which, and where it is missing, equal audio (the same file
or command, from and to the same second; in a dump of asr.sh, which gives every id a
FLAC file of its own, the same samples) is one clip. A relative path is tried from the
working directory, then from the folders above the data directory, nearest first, as
other recipes write theirs. An end of -1 means the end of the recording.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from espnet2_slit.data.audio import AudioError, probe
from espnet2_slit.data.kaldi_dir import DataDirError, clip_of, listing, read_map
from espnet2_slit.data.report import Report

FOLDERS_ABOVE = 4  # dump/raw/org/<set> lies this deep in its recipe


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording, or a segment of one, shared by all samples that speak of it.

    Attributes:
        id: clip id, from utt2audio.
        path: audio file, `command |` or `file.ark:123`, as wav.scp has it.
        start_s: first second, from segments.
        end_s: last second; None means the end.
    """

    id: str
    path: str
    start_s: float = 0.0
    end_s: float | None = None

    @property
    def is_whole(self) -> bool:
        """True for a whole recording, False for a segment of one."""
        return self.start_s == 0 and self.end_s is None

    @property
    def source(self) -> tuple[str, float, float | None]:
        """What decides the audio, whatever the clip is called."""
        path = self.path if self.path.endswith("|") else os.path.abspath(self.path)
        return path, self.start_s, self.end_s

    def duration_s(self) -> float:
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


class Segment(NamedTuple):
    """One line of `segments`."""

    recording: str
    start_s: float
    end_s: float | None


def parse_segment(value: str) -> Segment:
    """Read `recording start end`.

    Raises:
        ValueError: what is wrong with it, as the end of a sentence.
    """
    parts = value.split()
    try:
        start, end = float(parts[1]), float(parts[2])
    except (IndexError, ValueError):
        raise ValueError(
            f"has {value!r}, expected `recording start end` with seconds"
        ) from None
    if len(parts) != 3 or not start >= 0 or not (end > start or end == -1):
        raise ValueError(
            f"has {value!r}, expected 0 <= start < end (or end -1: all the rest)"
        )
    return Segment(parts[0], start, None if end == -1 else end)


def read_clips(
    data_dir: Path, report: Report | None = None
) -> tuple[dict[str, str], dict[str, Clip]]:
    """The clips of a data directory.

    Args:
        data_dir: directory with wav.scp, optionally utt2audio and segments.
        report: counts broken segments, which are then left out, and notes what the
            rules above decided; without it the first are an error, the second logged.

    Returns:
        (samples, clips): {sample id: clip id} sorted by sample id, and
        {clip id: Clip} sorted by id.

    Raises:
        DataDirError: missing files, ids that do not match, a clip id that stands for
            two recordings, an empty set.
    """
    data_dir = Path(data_dir)
    places = _read_places(data_dir, report)
    samples = {sample: sample for sample in sorted(places, key=str.encode)}
    if (data_dir / "utt2audio").is_file():
        named = clip_of(data_dir)
        absent = sorted(set(samples) ^ set(named)) if report is None else []
        absent = absent or sorted(set(samples) - set(named))
        if absent:
            raise DataDirError(
                f"{data_dir}: utt2audio and wav.scp differ in {len(absent)} ids, first"
                f" {absent[0]!r}. Repair the directory (slit_data fix)."
            )
        samples = {sample: named[sample] for sample in samples}
    else:
        samples = _by_audio(data_dir, samples, places, report)
        places = {sample: places[clip_id] for sample, clip_id in samples.items()}
    clips: dict[str, Clip] = {}
    for sample, clip_id in samples.items():
        clip = Clip(clip_id, *places[sample])
        known = clips.setdefault(clip_id, clip)
        if known != clip and known.source != clip.source:
            raise DataDirError(
                f"{data_dir}: utt2audio gives the clip id {clip_id!r} to two"
                f" recordings, {known.path} and {clip.path}."
                " Give each recording its own id."
            )
    return samples, {key: clips[key] for key in sorted(clips, key=str.encode)}


def _read_places(
    data_dir: Path, report: Report | None
) -> dict[str, tuple[str, float, float | None]]:
    """sample id -> (path, start, end) from wav.scp and segments."""
    wav_scp = data_dir / "wav.scp"
    if not wav_scp.is_file():
        raise DataDirError(
            f"{data_dir}: no wav.scp, expected a data directory; found"
            f" {listing(data_dir)}. Make it first, or name the directory that holds"
            " wav.scp."
        )
    recordings = _from_recipe(data_dir, read_map(wav_scp), report)
    places: dict[str, tuple[str, float, float | None]]
    if (data_dir / "segments").is_file():
        places = {}
        for sample, line in read_map(data_dir / "segments").items():
            try:
                segment = parse_segment(line)
                if segment.recording not in recordings:
                    raise ValueError(f"names {segment.recording!r}, not in wav.scp")
            except ValueError as error:
                if report is None:
                    raise DataDirError(
                        f"{data_dir}/segments: {sample} {error}. Repair the directory"
                        " (slit_data fix)."
                    ) from None
                report.drop(
                    "segment broken or of no recording", f"{sample} {line}: {error}"
                )
                continue
            path = recordings[segment.recording]
            places[sample] = (path, segment.start_s, segment.end_s)
    else:
        places = {sample: (path, 0.0, None) for sample, path in recordings.items()}
    if not places:
        raise DataDirError(f"{data_dir}: wav.scp has no line: the set is empty.")
    return places


def _by_audio(
    data_dir: Path,
    samples: dict[str, str],
    places: dict[str, tuple[str, float, float | None]],
    report: Report | None,
) -> dict[str, str]:
    """Clips where nothing names them: equal audio is the clip of its first sample."""
    dumped = (data_dir / "feats_type").is_file()  # written by asr.sh beside wav.scp

    def audio(sample: str) -> object:
        clip = Clip(sample, *places[sample])
        digest = _flac_digest(clip.path) if dumped and clip.is_whole else None
        return digest or clip.source

    first: dict[object, str] = {}
    clips = {sample: first.setdefault(audio(sample), sample) for sample in samples}
    if len(first) < len(clips):
        said = f"{len(clips):,} samples of {len(first):,} clips"
        if report is not None:
            report.notes["equal audio is one clip"] = said
        else:
            logging.info("%s: equal audio is one clip: %s", data_dir, said)
    return clips


def _flac_digest(path: str) -> bytes | None:
    """Rate, length and MD5 of a FLAC file's samples as its header has them, or None."""
    if not path.endswith(".flac"):
        return None
    try:
        with open(path, "rb") as stream:
            header = stream.read(42)
    except OSError:
        return None  # whoever reads it says why it cannot be read
    # "fLaC", a block's header, STREAMINFO from its tenth byte on (RFC 9639, 8.2); an
    # MD5 of zeros is one that was not computed.
    known = header[:4] == b"fLaC" and any(header[26:])
    return header[18:] if known else None


def _from_recipe(
    data_dir: Path, recordings: dict[str, str], report: Report | None
) -> dict[str, str]:
    """Relative paths as they are found from here, or from the directory's recipe."""
    above = Path(os.path.abspath(data_dir)).parents[:FOLDERS_ABOVE]
    moved: dict[str, Path] = {}
    for key, path in recordings.items():
        file, _, place = path.rpartition(":")
        file = file if file and place.isdigit() else path
        if path.endswith("|") or os.path.isabs(file) or os.path.exists(file):
            continue
        base = next((base for base in above if (base / file).exists()), None)
        if base is not None:
            moved[key] = base
    if moved:
        bases = ", ".join(
            str(os.path.relpath(b)) for b in dict.fromkeys(moved.values())
        )
        said = f"{len(moved):,} from {bases}"
        if report is not None:
            report.notes["relative paths of another recipe"] = said
        else:
            logging.info("%s: relative paths: %s", data_dir, said)
    return {
        key: os.path.relpath(moved[key] / path) if key in moved else path
        for key, path in recordings.items()
    }


def sample_clips(data_dir: Path) -> dict[str, str]:
    """sample id -> clip id of every sample, {} where the audio is not listed."""
    named = clip_of(data_dir)
    if named or not (Path(data_dir) / "wav.scp").is_file():
        return named
    return read_clips(data_dir)[0]
