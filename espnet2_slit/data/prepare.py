"""Checks and converts the audio of a data directory: every clip once, then lists.

Owns what an encoder may rely on: one file per clip, mono, one rate, finite samples,
not empty. Clips that cannot be had are dropped, counted and named; nothing is passed
over in silence. What was checked is remembered beside the audio, so that a run that was
cut short, and the next set with the same clips, goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_slit.common import compat
from espnet2_slit.common.files import atomic
from espnet2_slit.data.audio import AudioError, Reading, probe, read, to_mono
from espnet2_slit.data.clips import Clip, read_clips
from espnet2_slit.data.edit import copy_samples
from espnet2_slit.data.kaldi_dir import (
    DataDirError,
    question_file,
    read_pairs,
    sample_ids,
)
from espnet2_slit.data.report import Report
from espnet2_slit.data.writer import SortedWriter, new_directory

VERSION = 2  # raise it when the output for the same input changes
CHECKED = "checked.jsonl"
# What a message of `audio` is counted as; anything else is "unreadable audio".
REASONS = {
    "no such audio file": "missing audio",
    "(0 bytes)": "empty file",
    "truncated": "truncated audio",
    "NaN": "NaN or infinite samples",
    "it is damaged": "corrupt samples",
    "no format gives": "corrupt samples",
    "breaks off": "truncated audio",
    "has sample rate": "impossible sample rate",
    "exit status": "command failed",
    "not installed": "needs ffmpeg or PyAV",
    " s of audio": "0 s of audio",
    "has no audio from": "segment outside the file",
    "shorter than": "too short",
    "longer than": "too long",
}


@dataclass(frozen=True)
class Options:
    """How clips are checked and written.

    Args:
        sample_rate: Hz that the encoder takes.
        min_duration_s: shorter clips are dropped.
        max_duration_s: longer clips are dropped; 0: none are.
        check: "full" decodes every file, "header" only opens it, but for floats, which
            may lie above full scale (faster on a file server; damage behind a header
            that is right is then met in training).
        audio_format: of converted clips, "flac" or "wav".
    """

    sample_rate: int = 16000
    min_duration_s: float = 0.05
    max_duration_s: float = 0.0
    check: str = "full"
    audio_format: str = "flac"

    def __post_init__(self) -> None:
        if self.check not in ("full", "header"):
            raise ValueError(f"check: expected full or header, found {self.check!r}")
        if self.audio_format not in ("flac", "wav"):
            raise ValueError(
                f"audio_format: expected flac or wav, found {self.audio_format!r}"
            )
        if self.sample_rate < 1:
            raise ValueError(
                f"sample_rate: expected a rate in Hz, found {self.sample_rate}"
            )
        if self.max_duration_s and self.max_duration_s < self.min_duration_s:
            raise ValueError(
                f"max_duration_s: expected 0 (no limit) or at least min_duration_s"
                f" {self.min_duration_s}, found {self.max_duration_s}"
            )


def clip_key(clip: Clip, options: Options) -> str:
    """Name of a clip's audio, and of the file it is written to."""
    end_s = -1.0 if clip.end_s is None else clip.end_s
    words = (clip.path, clip.start_s, end_s, options, VERSION)
    return hashlib.blake2b(repr(words).encode("utf-8"), digest_size=12).hexdigest()


def is_kaldi(source: str) -> bool:
    """Whether a wav.scp value is a command or a place in an ark, not a file."""
    return source.endswith("|") or (
        not os.path.exists(source) and source.rpartition(":")[2].isdigit()
    )


def _read_kaldi(clip: Clip, options: Options) -> Reading:
    """Audio of a `command |` or `file.ark:123`, as of a file with the same content."""
    source, rate = clip.path, options.sample_rate
    content = _output(source) if source.endswith("|") else _wav_in_ark(source)
    if content is not None:
        return read(source, rate, clip.start_s, clip.end_s, content)
    try:
        first, second = compat.kaldi_io().load_mat(source)
        hertz, audio = (first, second) if np.ndim(first) == 0 else (second, first)
    except Exception as error:  # whatever the reader of arks raises
        raise AudioError(
            f"{source}: cannot be read ({type(error).__name__}: {error})."
            " Check the ark and the number of its byte."
        ) from error
    audio = to_mono(audio, hertz, rate, name=source)
    end = None if clip.end_s is None else round(clip.end_s * rate)
    return Reading(audio[round(clip.start_s * rate) : end])


def _output(command: str) -> bytes:
    """What a command of wav.scp writes, run by the shell as Kaldi does.

    Raises:
        AudioError: any program of the pipeline fails; half its audio may have come.
    """
    shell = shutil.which("bash")
    words = [shell, "-o", "pipefail", "-c"] if shell else ["sh", "-c"]
    line = command.rstrip().removesuffix("|")
    done = subprocess.run([*words, line], capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise AudioError(
            f"{command}: the command failed with exit status {done.returncode}"
            f" ({said[-1] if said else 'it says nothing'}). Run it by hand."
        )
    return done.stdout


def _wav_in_ark(source: str) -> bytes | None:
    """The WAV file at a place in an ark, of any encoding; None: something else is."""
    path, _, offset = source.rpartition(":")
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        stream.seek(int(offset))
        head = stream.read(8)
        if head[:4] == b"RIFF":
            size = int.from_bytes(head[4:], "little")
            # Writers to a pipe leave a placeholder near 2^31 or 2^32 here.
            return head + stream.read(size if size < 0x7FFFF000 else -1)
    return None


def check_clip(clip: Clip, folder: str, options: Options) -> dict:
    """Check one clip and write it where it has to be converted.

    Args:
        clip: what to read.
        folder: where converted clips go.
        options: rate and limits.

    Returns:
        {"path", "samples", "note"} or {"error"}; with "stamp", size and time of the
        source file, by which the result is known to be still valid.
    """
    stamp = _stamp(clip.path)
    try:
        return {**_checked(clip, folder, options), "stamp": stamp}
    except AudioError as error:
        return {"error": str(error), "stamp": stamp}


def _stamp(source: str) -> list[int]:
    try:
        status = os.stat(source)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _checked(clip: Clip, folder: str, options: Options) -> dict:
    if is_kaldi(clip.path):
        found, notes = _read_kaldi(clip, options), ["read through a command or ark"]
    else:
        info = probe(clip.path)
        end_s = min(clip.end_s or info.duration_s, info.duration_s)
        _check_duration(clip.path, end_s - clip.start_s, options)
        fits = clip.is_whole and info.plain and info.channels == 1
        fits = fits and info.sample_rate == options.sample_rate
        if fits and options.check == "header" and not info.floats:
            samples = round(info.duration_s * info.sample_rate)
            return {"path": clip.path, "samples": samples, "note": []}
        found = read(clip.path, options.sample_rate, clip.start_s, clip.end_s)
        if fits and not found.notes:
            return {"path": clip.path, "samples": len(found.samples), "note": []}
        notes = ["resampled"] if info.sample_rate != options.sample_rate else []
        notes += ["down-mixed"] if info.channels > 1 else []
    notes += [] if clip.is_whole else ["cut by segments"]
    notes += [note.partition(" (")[0] for note in found.notes]
    audio = found.samples
    _check_duration(clip.path, len(audio) / options.sample_rate, options)
    name = clip_key(clip, options)
    path = Path(folder) / name[:2] / f"{name}.{options.audio_format}"
    _write_audio(path, audio, options)
    return {"path": str(path), "samples": len(audio), "note": notes}


def _check_duration(source: str, duration_s: float, options: Options) -> None:
    if duration_s < options.min_duration_s:
        raise AudioError(
            f"{source}: {duration_s:.3f} s, shorter than {options.min_duration_s} s"
        )
    if options.max_duration_s and duration_s > options.max_duration_s:
        raise AudioError(
            f"{source}: {duration_s:.3f} s, longer than {options.max_duration_s} s"
        )


def _write_audio(path: Path, audio: np.ndarray, options: Options) -> None:
    import soundfile

    # Through memory: of a full disk libsndfile says "System error", the stream why.
    whole = io.BytesIO()
    soundfile.write(
        whole,
        audio.clip(-1.0, 1.0 - 2.0**-15),
        options.sample_rate,
        format=options.audio_format.upper(),
        subtype="PCM_16",
    )
    with atomic(path) as stream:
        stream.write(whole.getvalue())


def _check_chunk(work: tuple[list[Clip], str, Options]) -> list[dict]:
    clips, folder, options = work
    return [check_clip(clip, folder, options) for clip in clips]


class Checked:
    """Results of earlier runs, one line per clip, appended as they come.

    Args:
        folder: where converted clips and the record lie.
    """

    def __init__(self, folder: Path):
        self.path = Path(folder) / CHECKED
        self._found: dict[str, dict] = {}
        if self.path.is_file():
            with open(self.path, encoding="utf-8", errors="replace") as stream:
                for line in stream:
                    # The last line of a run that was killed may be half a line.
                    with contextlib.suppress(json.JSONDecodeError):
                        entry = json.loads(line)
                        self._found[entry.pop("key")] = entry

    def get(self, clip: Clip, options: Options) -> dict | None:
        """The earlier result, if source and written file are still the same.

        Failures are looked at again: the file may have been mended.
        """
        entry = self._found.get(clip_key(clip, options))
        if entry is None or "error" in entry or entry["stamp"] != _stamp(clip.path):
            return None
        if entry["path"] != clip.path and not os.path.isfile(entry["path"]):
            return None
        return entry

    def add(self, entries: Iterable[tuple[str, dict]]) -> None:
        """Append (key of a clip, what was found)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"key": key, **entry}, ensure_ascii=False) + "\n"
            for key, entry in entries
        ]
        with open(self.path, "ab") as stream:
            if stream.tell():  # a half line stays a line of its own
                with open(self.path, "rb") as before:
                    before.seek(-1, os.SEEK_END)
                    if before.read(1) != b"\n":
                        stream.write(b"\n")
            stream.write("".join(lines).encode("utf-8"))


def prepare(
    source: Path,
    target: Path,
    options: Options | None = None,
    audio_dir: Path | None = None,
    jobs: int = 1,
    progress: Callable[[str], None] = logging.info,
) -> Report:
    """Check every clip of a data directory and write the directory to train from.

    The new wav.scp names original files where these already fit, converted ones else;
    segments are cut, so it needs none. `utt2num_samples` gives the lengths, `utt2audio`
    the clips, also where only equal audio says them.

    Args:
        source: data directory.
        target: data directory to make, e.g. dump/raw/<set>.
        options: rate, limits, how thorough.
        audio_dir: where converted clips go; default: `audio` beside `target`, so that
            sets share them.
        jobs: processes.
        progress: is given a line every few seconds.

    Returns:
        Report, also written to report.json; "up to date" in its notes if an earlier run
        made all of it from the same input.

    Raises:
        DataDirError: no clip is usable; the message counts the reasons.
    """
    return prepare_sets([(source, target)], options, audio_dir, jobs, progress)[0]


def prepare_sets(
    sets: Sequence[tuple[Path, Path]],
    options: Options | None = None,
    audio_dir: Path | None = None,
    jobs: int = 1,
    progress: Callable[[str], None] = logging.info,
) -> list[Report]:
    """Prepare several data directories; a clip that many of them have is read once.

    Args:
        sets: (source, target) of each, see `prepare`.
        options: as for `prepare`.
        audio_dir: as for `prepare`.
        jobs: processes, started once for all sets.
        progress: as for `prepare`.

    Returns:
        A report for each set, in order.

    Raises:
        DataDirError: as for `prepare`, of the first such set; those before it are done.
    """
    options = options or Options()
    works = [_plan(Path(source), Path(target), options) for source, target in sets]
    by_folder: dict[Path, list[_Work]] = {}
    for work in works:
        if not work.is_done:
            folder = Path(audio_dir or work.target.parent / "audio")
            by_folder.setdefault(folder, []).append(work)
    for folder, open_works in by_folder.items():
        clips = {
            clip_key(clip, options): clip
            for work in open_works
            for clip in work.clips.values()
        }
        results = _check_all(clips, folder, options, jobs, progress)
        for work in open_works:
            _write_lists(work, results, options)
    return [work.report for work in works]


@dataclass
class _Work:
    """One data directory on its way."""

    source: Path
    target: Path
    identity: dict[str, Any]
    report: Report
    samples: dict[str, str] = field(default_factory=dict)
    clips: dict[str, Clip] = field(default_factory=dict)
    is_done: bool = False


def _plan(source: Path, target: Path, options: Options) -> _Work:
    if not source.is_dir():
        raise DataDirError(
            f"{source}: no such folder, expected a data directory with wav.scp. Make it"
            " first (the recipe's data stage, or slit_data from_manifest)."
        )
    asked = question_file(source)
    if asked and not (source / "instruction").is_file():
        raise DataDirError(
            f"{source}: {asked} asks what `text` answers, and would be left out. `slit"
            f" corpus espnet {source} --task question_answering --out DIR` completes"
            " it; --form evaluation does so for a test set."
        )
    identity = _identity(source, options)
    earlier = _earlier(target, identity)
    if earlier is not None:
        return _Work(source, target, identity, earlier, is_done=True)
    report = Report(str(source))
    samples, clips = read_clips(source, report)
    report.rows = len(sample_ids(source))
    return _Work(source, target, identity, report, samples, clips)


def _check_all(
    clips: dict[str, Clip],
    folder: Path,
    options: Options,
    jobs: int,
    progress: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """clip key -> what was found, of earlier runs where that is still valid."""
    checked = Checked(folder)
    results: dict[str, dict[str, Any]] = {}
    for key, clip in clips.items():
        known = checked.get(clip, options)
        if known is not None:
            results[key] = known
    open_clips = [clip for key, clip in clips.items() if key not in results]
    if results and open_clips:
        progress(f"{len(results):,} of {len(clips):,} clips are known")
    done, begin, shown = 0, time.monotonic(), time.monotonic()
    for chunk, found in _run(open_clips, str(folder), options, jobs):
        keys = [clip_key(clip, options) for clip in chunk]
        results.update(zip(keys, found, strict=True))
        checked.add(zip(keys, found, strict=True))
        done += len(chunk)
        if time.monotonic() - shown > 5:
            shown = time.monotonic()
            left = (shown - begin) / done * (len(open_clips) - done)
            progress(
                f"{done:,} of {len(open_clips):,} clips checked,"
                f" about {left:.0f} s left"
            )
    return results


def _identity(source: Path, options: Options) -> dict:
    """What the result depends on, cheaply: names, sizes and times of the lists."""
    files = {
        path.name: [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(source.iterdir())
        if path.is_file()
        and not path.name.startswith(".")
        and path.name != "report.json"
    }
    return {"files": files, "options": repr(options), "version": VERSION}


def _earlier(target: Path, identity: dict) -> Report | None:
    try:
        found = json.loads((target / "report.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    names = ("wav.scp", "utt2num_samples", "utt2spk", "spk2utt")
    if found.pop("identity", None) != identity:
        return None
    if not all((target / name).is_file() for name in names):
        return None
    report = Report(**{f.name: found[f.name] for f in fields(Report)})
    report.notes["up to date"] = "nothing to do"
    return report


def _run(
    clips: list[Clip], folder: str, options: Options, jobs: int
) -> Iterator[tuple[list[Clip], list[dict]]]:
    """(clips, results) chunk by chunk; a bounded number of chunks is under way."""
    size = 32
    chunks = [clips[at : at + size] for at in range(0, len(clips), size)]
    if jobs <= 1 or len(chunks) <= 1:
        for chunk in chunks:
            yield chunk, _check_chunk((chunk, folder, options))
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        work = ((chunk, folder, options) for chunk in chunks)
        for chunk, found in zip(chunks, pool.map(_check_chunk, work), strict=True):
            yield chunk, found


def _write_lists(
    work: _Work, results: dict[str, dict[str, Any]], options: Options
) -> None:
    """Write the target directory.

    Raises:
        DataDirError: no sample is left.
    """
    source, report = work.source, work.report
    of_clip = {
        name: results[clip_key(clip, options)] for name, clip in work.clips.items()
    }
    kept = _usable(work, of_clip)
    for path in (source / "text", source / "utt2spk"):
        if path.is_file():
            present = {key for key, value in read_pairs(path) if value}
            for key in sorted(kept - present):
                report.drop(f"no line in {path.name}", key)
            kept &= present
    if not kept:
        raise DataDirError(
            f"{source}: none of {report.rows} clips is usable.\n  "
            + "\n  ".join(report.lines())
        )
    samples = {key: clip for key, clip in work.samples.items() if key in kept}
    (work.target / "report.json").unlink(missing_ok=True)  # it is not of this input
    with new_directory(work.target) as fresh:
        copy_samples(source, fresh, kept, samples)
        (fresh / "segments").unlink(missing_ok=True)
        with (
            SortedWriter(fresh / "wav.scp") as scp,
            SortedWriter(fresh / "utt2num_samples") as lengths,
        ):
            for key, clip in samples.items():
                scp.add(f"{key} {of_clip[clip]['path']}")
                lengths.add(f"{key} {of_clip[clip]['samples']}")
        lasting = sum(of_clip[clip]["samples"] for clip in set(samples.values()))
        report.notes["hours"] = round(lasting / options.sample_rate / 3600, 3)
        report.kept = len(kept)
        report.write(
            fresh / "report.json",
            identity=work.identity,
            sample_rate=options.sample_rate,
        )


def _usable(work: _Work, of_clip: dict[str, dict[str, Any]]) -> set[str]:
    """Samples whose audio can be used; counts the others, and what was converted."""
    for result in of_clip.values():
        for note in result.get("note", ()):
            work.report.note(note)
    kept = set()
    for key, clip in work.samples.items():
        message = of_clip[clip].get("error")
        if message is None:
            kept.add(key)
            continue
        reasons = [name for words, name in REASONS.items() if words in message]
        reason = reasons[0] if reasons else "unreadable audio"
        work.report.drop(reason, f"{key}: {message}")
    return kept
