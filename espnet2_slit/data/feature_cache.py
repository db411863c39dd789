"""Frozen-feature cache: every clip is encoded once, and the cache says by what.

Owns the files of `dump/<tag>/<set>/`: how clips are cut into shards, how frames are
stored, what identifies them, and the check before they are used. It leaves reading
audio to `audio`, encoding to the audio encoder, and training to ESPnet's data type
`kaldi_ark`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from espnet2_slit.common.files import (
    atomic,
    read_json,
    sha256,
    write_atomically,
    write_json,
)
from espnet2_slit.common.identity import identity_differences
from espnet2_slit.data.audio import AudioError, check_length, read_audio
from espnet2_slit.data.clips import Clip, read_clips
from espnet2_slit.data.edit import copy_samples
from espnet2_slit.data.kaldi_dir import read_pairs
from espnet2_slit.data.kaldi_matrix import TOLERANCE, FeatureCacheError, write_matrix
from espnet2_slit.data.writer import new_directory

SCHEMA = 1
Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")
Place = tuple[str, int, int]  # ark, offset, frames
Source = tuple[str, float, float | None]  # what decides the frames, see Clip


# ---------------------------------------------------------------------- identity


def read_features_json(path: str | Path) -> dict[str, Any]:
    """Read feats.json.

    Raises:
        FeatureCacheError: missing (the cache is not whole), or of another schema.
    """
    path = Path(path)
    if path.suffix != ".json":
        path = path / "feats.json"
    remedy = (
        "These features are not whole or not made by this version: run"
        " `slit encode` or the recipe's data stage again (whole shards are kept)."
    )
    return read_json(path, SCHEMA, remedy, FeatureCacheError)


def check_features(
    path: str | Path, identity: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Check a cache before it is trained on.

    Args:
        path: feats.json, or the folder it lies in.
        identity: identity the configuration asks for; None checks wholeness only.

    Returns:
        The content of feats.json.

    Raises:
        FeatureCacheError: another encoder made it, or a shard is missing or truncated;
            the message gives expected, found and remedy.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "feats.json"
    content = read_features_json(path)
    if identity is not None:
        differences = identity_differences(identity, content["identity"])
        if differences:
            raise FeatureCacheError(
                f"{path}: these features are not of the configured audio encoder: "
                + "; ".join(differences)
                + ". Encode the set again, or configure the encoder that made"
                " them."
            )
    for shard in content["shards"]:
        ark = path.parent / shard["file"]
        size = ark.stat().st_size if ark.is_file() else None
        if size != shard["bytes"]:
            raise FeatureCacheError(
                f"{ark}: expected {shard['bytes']} bytes, found"
                f" {'no file' if size is None else size}."
                f" Delete {path} and run `slit encode` again; whole shards are kept."
            )
    return content


def verify_checksums(path: str | Path) -> None:
    """Compare every shard with its checksum; reads all of it.

    Raises:
        FeatureCacheError: a shard's bytes have changed.
    """
    path = Path(path)
    content = check_features(path)
    folder = path if path.is_dir() else path.parent
    for shard in content["shards"]:
        found = sha256(folder / shard["file"])
        if found != shard["sha256"]:
            raise FeatureCacheError(
                f"{folder / shard['file']}: expected sha256 {shard['sha256']}, found"
                f" {found}: the file has changed. Encode the set again."
            )


# ---------------------------------------------------------------------- encoding


@dataclass(frozen=True)
class Plan:
    """How a set is cut; follows from its ids alone, so all jobs of an array agree.

    Attributes:
        samples: {sample id: clip id}.
        clips: {clip id: Clip}.
        shards: clip ids per shard.
        reused: {clip id: (ark, offset, frames)} of clips another cache already has.
        reused_from: {feats.json: count}.
        durations_s: {clip id: seconds}, of clips whose data preparation counted them.
    """

    samples: dict[str, str]
    clips: dict[str, Clip]
    shards: list[list[str]]
    reused: dict[str, Place]
    reused_from: dict[str, int]
    durations_s: dict[str, float] = field(default_factory=dict)


def _reusable(
    folders: Iterable[str | Path], identity: dict[str, Any]
) -> tuple[dict[Source, Place], dict[Source, str]]:
    """{source: (ark, offset, frames)} of the clips in finished caches, and which."""
    found, names = {}, {}
    for folder in folders:
        content = check_features(folder, identity)
        places = dict(read_pairs(Path(folder) / "feats.scp"))
        shapes = dict(read_pairs(Path(folder) / "feats_shape"))
        samples, clips = read_clips(Path(folder))
        for sample, clip_id in samples.items():
            ark, _, offset = places[sample].rpartition(":")
            frames = int(shapes[sample].split(",")[0])
            source = clips[clip_id].source
            if source not in found:
                found[source] = (ark, int(offset), frames)
                names[source] = str(Path(folder) / "feats.json")
        logging.info("%s: %d clips are encoded", folder, content["num_clips"])
    return found, names


def plan(
    data_dir: str | Path,
    identity: dict[str, Any],
    reuse: Iterable[str | Path] = (),
    shard_clips: int = 1000,
) -> Plan:
    """Cut a set into shards.

    Args:
        data_dir: data directory.
        identity: of the encoder.
        reuse: finished caches of other sets; their clips are pointed at, not encoded.
        shard_clips: clips per shard, the unit that is resumed.

    Returns:
        Plan.

    Raises:
        FeatureCacheError: bad data directory, unusable cache in `reuse`.
    """
    samples, clips = read_clips(Path(data_dir))
    known, names = _reusable(reuse, identity)
    reused, reused_from = {}, {}
    for clip in clips.values():
        if clip.source in known:
            reused[clip.id] = known[clip.source]
            name = names[clip.source]
            reused_from[name] = reused_from.get(name, 0) + 1
    order = [key for key in clips if key not in reused]
    shards = [order[i : i + shard_clips] for i in range(0, len(order), shard_clips)]
    durations_s = _counted(Path(data_dir), samples)
    return Plan(samples, clips, shards, reused, reused_from, durations_s)


def _counted(data_dir: Path, samples: Mapping[str, str]) -> dict[str, float]:
    """{clip id: seconds} where data preparation has just read every clip."""
    try:
        rate = json.loads((data_dir / "report.json").read_text("utf-8"))["sample_rate"]
        lengths = dict(read_pairs(data_dir / "utt2num_samples"))
        return {clip: int(lengths[key]) / rate for key, clip in samples.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # not prepared by us: the headers tell


def measure(
    clips: Sequence[Clip],
    bad_audio: str = "stop",
    longest_s: float | None = None,
    workers: int = 4,
    known_s: Mapping[str, float] | None = None,
) -> tuple[dict[str, float], dict[str, str]]:
    """Read the headers of clips before any is encoded, of those that need it.

    Args:
        clips: list of Clip.
        bad_audio: "stop" raises when a file cannot be used; "drop" leaves it out.
        longest_s: seconds that the encoder reads at most; None for no limit.
        workers: threads.
        known_s: {clip id: seconds} of clips whose file only has to be there.

    Returns:
        (durations_s, dropped): {clip id: seconds} and {clip id: why}.

    Raises:
        AudioError: unusable files, all of them counted and the first ten named.
    """
    known_s = known_s or {}

    def duration(clip: Clip) -> float | AudioError:
        try:
            seconds = known_s.get(clip.id) if os.path.isfile(clip.path) else None
            seconds = seconds or clip.duration_s()
            check_length(f"{clip.path}: clip {clip.id}", seconds, longest_s)
        except AudioError as error:
            return error
        return seconds

    with ThreadPoolExecutor(workers) as pool:
        measured = dict(
            zip([clip.id for clip in clips], pool.map(duration, clips), strict=True)
        )
    dropped = {
        key: str(value)
        for key, value in measured.items()
        if isinstance(value, Exception)
    }
    if dropped:
        listed = "\n  ".join(f"{key}: {why}" for key, why in list(dropped.items())[:10])
        message = (
            f"{len(dropped)} of {len(clips)} clips cannot be used, first"
            f" {min(10, len(dropped))}:\n  {listed}"
        )
        if bad_audio != "drop":
            raise AudioError(
                f"{message}\nRepair them, or leave them out with --bad_audio drop."
            )
        logging.warning("%s\nTheir samples are left out.", message)
    usable = {k: v for k, v in measured.items() if not isinstance(v, Exception)}
    return usable, dropped


def _shard_paths(output_dir: str | Path, number: int) -> tuple[Path, Path]:
    name = f"feats.{number:05d}"
    return Path(output_dir) / f"{name}.ark", Path(output_dir) / f"{name}.json"


def _shard_fault(
    output_dir: str | Path,
    number: int,
    clip_ids: Iterable[str],
    identity: dict[str, Any],
) -> str | None:
    """Why a shard cannot be kept; None if it can."""
    ark, note = _shard_paths(output_dir, number)
    if not note.is_file():
        return "not made"
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
    except ValueError:
        return f"{note.name} is not JSON"
    size = ark.stat().st_size if ark.is_file() else None
    if size != content["bytes"]:
        found = "no file" if size is None else f"{size} bytes"
        return f"truncated: expected {content['bytes']} bytes, found {found}"
    if sorted([*content["clips"], *content["dropped"]]) != sorted(clip_ids):
        return "made of other clips"
    differences = identity_differences(identity, content["identity"])
    if differences:
        return "made by another encoder: " + "; ".join(differences)
    return None


def length_batches(
    durations_s: Mapping[Key, float],
    order: Iterable[Key],
    batch_seconds: float,
    batch_size: int | None = None,
) -> list[list[Key]]:
    """Batches of like length, longest first, none above `batch_seconds` when padded.

    Longest first: if memory does not suffice, the run fails in its first minute.

    Args:
        durations_s: {id: seconds}.
        order: ids to batch.
        batch_seconds: padded seconds in a batch; a longer clip is a batch of its own.
        batch_size: ids in a batch; None for no limit.

    Returns:
        List of lists of ids.
    """
    batch_size = batch_size or len(durations_s)
    batches, longest = [], 0.0
    for key in sorted(order, key=lambda key: -durations_s[key]):
        if (
            not batches
            or len(batches[-1]) == batch_size
            or (len(batches[-1]) + 1) * longest > batch_seconds
        ):
            batches.append([])
            longest = durations_s[key]
        batches[-1].append(key)
    return batches


def encode_batch(
    encoder: Any, audio: Sequence[np.ndarray], device: str = "cpu"
) -> list[np.ndarray]:
    """Encode clips of different lengths.

    Args:
        encoder: AudioEncoder.
        audio: list of (S,) float32 arrays at the encoder's rate.
        device: torch device.

    Returns:
        List of (T, D_a) float32 arrays, without padding.
    """
    import torch

    lengths = torch.tensor([len(clip) for clip in audio])  # (B,)
    speech = torch.zeros(len(audio), int(lengths.max()))  # (B,S)
    for row, clip in zip(speech, audio, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    with torch.inference_mode():
        frames, frame_lengths = encoder(speech.to(device), lengths.to(device))
    frames = frames.float().cpu().numpy()  # (B,T,D_a)
    return [
        row[:length] for row, length in zip(frames, frame_lengths.tolist(), strict=True)
    ]


def encode(
    work: Plan,
    encoder: Any,
    output_dir: str | Path,
    job: int = 1,
    num_jobs: int = 1,
    batch_seconds: float = 160.0,
    device: str = "cpu",
    bad_audio: str = "stop",
    tolerance: float = TOLERANCE,
) -> tuple[int, int]:
    """Encode this job's shards; whole shards of an earlier run are kept.

    Args:
        work: Plan.
        encoder: AudioEncoder on `device`.
        output_dir: folder of the cache.
        job: number of this job, from 1.
        num_jobs: jobs that share the shards.
        batch_seconds: padded seconds of audio that are encoded at once.
        device: torch device.
        bad_audio: as for `measure`.
        tolerance: as for `write_matrix`.

    Returns:
        (encoded, kept): counts of shards.

    Raises:
        AudioError: an unusable file, before anything is encoded; or one that breaks
            while it is decoded.
    """
    identity = encoder.identity()
    todo, kept = [], 0
    for number in range(job - 1, len(work.shards), num_jobs):
        fault = _shard_fault(output_dir, number, work.shards[number], identity)
        if fault is None:
            kept += 1
            continue
        todo.append(number)
        if fault != "not made":
            ark = _shard_paths(output_dir, number)[0]
            logging.warning("%s: %s: it is encoded again", ark, fault)
    if kept:
        logging.info("%d of %d shards are whole and kept", kept, kept + len(todo))
    clips = [work.clips[key] for number in todo for key in work.shards[number]]
    longest_s = None
    if encoder.max_duration_s is not None:
        longest_s = encoder.max_duration_s * encoder.max_windows
    durations_s, dropped = measure(
        clips, bad_audio, longest_s, known_s=work.durations_s
    )
    seconds = sum(durations_s.values())
    size = seconds * encoder.frames_per_second * encoder.width * 2
    logging.info(
        "job %d of %d: %d clips, %.1f h of audio, about %.3g GB will be written to %s",
        job, num_jobs, len(durations_s), seconds / 3600, size / 1e9, output_dir,
    )  # fmt: skip
    started, done_s = time.monotonic(), 0.0
    calls = _calls_at_once(device)
    for number in todo:
        usable = [key for key in work.shards[number] if key in durations_s]
        left_out = {key: dropped[key] for key in work.shards[number] if key in dropped}
        batches = length_batches(durations_s, usable, batch_seconds / calls)
        paths = _shard_paths(output_dir, number)
        groups = [[work.clips[key] for key in batch] for batch in batches]
        drop = bad_audio == "drop"
        _encode_shard(paths, groups, left_out, encoder, device, calls, tolerance, drop)
        done_s += sum(durations_s[key] for key in usable)
        elapsed = time.monotonic() - started
        logging.info(
            "job %d of %d: %s done, %d %% of the audio in %.0f s, %.0f times real time",
            job, num_jobs, paths[0].name, round(100 * done_s / max(seconds, 1e-9)),
            elapsed, done_s / max(elapsed, 1e-9),
        )  # fmt: skip
    return len(todo), kept


def _encode_shard(
    paths: tuple[Path, Path],
    batches: Sequence[Sequence[Clip]],
    left_out: dict[str, str],
    encoder: Any,
    device: str,
    calls: int,
    tolerance: float,
    drop: bool,
) -> None:
    """Write one ark and, after it, the note that makes it count."""
    ark, note = paths

    def fail(clip: Clip, error: ValueError) -> None:
        if not drop:
            raise error
        left_out[clip.id] = str(error)
        logging.warning("%s: left out: %s", clip.id, error)

    def load(batch: Sequence[Clip]) -> list[tuple[Clip, np.ndarray]]:
        loaded = []
        for clip in batch:
            stretch = (encoder.sample_rate, clip.start_s, clip.end_s)
            try:
                loaded.append((clip, read_audio(clip.path, *stretch)))
            except AudioError as error:  # damage that its header does not show
                fail(clip, error)
        return loaded

    turns = threading.Semaphore(calls)

    def encoded(batch: Sequence[Clip]) -> list[tuple[Clip, np.ndarray]]:
        loaded = load(batch)
        with turns:
            return _encode_loaded(encoder, loaded, device, fail)

    note.unlink(missing_ok=True)
    entries: dict[str, list[int]] = {}  # clip id -> [offset, frames]
    total = sum(map(len, batches))
    with _a_thread_each(calls), atomic(ark, durable=True) as stream:
        last_report = time.monotonic()
        # one batch more than are encoded is decoded
        for pairs in in_order(encoded, batches, calls + 1):
            for clip, frames in pairs:
                try:
                    offset = write_matrix(stream, clip.id, frames, tolerance)
                except FeatureCacheError as error:
                    fail(clip, error)
                else:
                    entries[clip.id] = [offset, len(frames)]
            if time.monotonic() - last_report > 20:
                last_report = time.monotonic()
                logging.info("%s: %d of %d clips", ark.name, len(entries), total)
    write_json(
        note,
        {
            "schema": SCHEMA,
            "identity": encoder.identity(),
            "bytes": ark.stat().st_size,
            "sha256": sha256(ark),
            "clips": dict(sorted(entries.items())),
            "dropped": dict(sorted(left_out.items())),
        },
    )


def _calls_at_once(device: str) -> int:
    """Batches that are encoded side by side: as many as torch has threads on a CPU.

    Small encoders gain little from two threads within a product: with a batch in each
    thread the mini recipe's takes 0.73 of the time (bench/encode.py).
    """
    import torch

    return torch.get_num_threads() if device == "cpu" else 1


@contextlib.contextmanager
def _a_thread_each(calls: int) -> Iterator[None]:
    """Within it, one thread for each of several calls of the encoder."""
    import torch

    threads = torch.get_num_threads()
    if calls > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """work(item) of each, in the order of items, `workers` of them ahead."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _encode_loaded(
    encoder: Any,
    loaded: Sequence[tuple[Clip, np.ndarray]],
    device: str,
    fail: Callable[[Clip, ValueError], None],
) -> list[tuple[Clip, np.ndarray]]:
    """[(clip, (T, D_a))]; clip by clip where the encoder refuses one of them."""
    import torch

    if not loaded:
        return []
    clips, audio = zip(*loaded, strict=True)
    try:
        return list(zip(clips, encode_batch(encoder, audio, device), strict=True))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        if len(loaded) == 1:
            fault = f"{clips[0].path}: the audio encoder cannot read it ({error})."
            fail(clips[0], AudioError(f"{fault} Remove it from the data."))
            return []
    return [
        pair for one in loaded for pair in _encode_loaded(encoder, [one], device, fail)
    ]


def merge(
    work: Plan,
    data_dir: str | Path,
    output_dir: str | Path,
    encoder_facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Join the shards of all jobs: feats.scp, feats_shape, copies, feats.json last.

    Args:
        work: the Plan that the jobs followed.
        data_dir: where the set's other files are copied from.
        output_dir: folder of the cache.
        encoder_facts: {"identity": ..., "width": ..., ...} as `encoder_facts` gives.

    Returns:
        The content of feats.json.

    Raises:
        FeatureCacheError: shards that are missing or truncated, each named.
    """
    output_dir = Path(output_dir)
    identity = encoder_facts["identity"]
    faults = []
    for number, clip_ids in enumerate(work.shards):
        fault = _shard_fault(output_dir, number, clip_ids, identity)
        if fault is not None:
            faults.append(f"{_shard_paths(output_dir, number)[0]}: {fault}")
    if faults:
        raise FeatureCacheError(
            f"{len(faults)} of {len(work.shards)} shards are not whole: "
            + "; ".join(faults[:10])
            + ". Run the encoding jobs again; whole shards are kept."
        )
    places, shards, dropped = dict(work.reused), [], {}
    for number in range(len(work.shards)):
        ark, note = _shard_paths(output_dir, number)
        content = json.loads(note.read_text(encoding="utf-8"))
        for clip_id, (offset, frames) in content["clips"].items():
            places[clip_id] = (str(ark), offset, frames)
        dropped.update(content["dropped"])
        shards.append(
            {
                "file": ark.name,
                "bytes": content["bytes"],
                "sha256": content["sha256"],
                "clips": len(content["clips"]),
            }
        )
    if not places:
        raise FeatureCacheError(f"{data_dir}: no usable clip is left.")
    samples = {key: clip for key, clip in work.samples.items() if clip in places}
    width = encoder_facts["width"]
    frames = [place[2] for place in places.values()]
    content = {
        "schema": SCHEMA,
        **encoder_facts,
        "storage": "kaldi CM2 (16 bit a value), FM (float32) where CM2 is too coarse",
        "num_clips": len(places),
        "num_samples": len(samples),
        "num_frames": sum(frames),
        "min_frames": min(frames),
        "max_frames": max(frames),
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": shards,
        "reused": work.reused_from,
        "dropped": dropped,
        "made_from": _made_from(data_dir, work.reused_from),
    }
    (output_dir / "feats.json").unlink(missing_ok=True)  # it is not of these shards
    with new_directory(output_dir) as fresh:
        copy_samples(Path(data_dir), fresh, set(samples), samples)
        write_atomically(
            fresh / "feats.scp",
            (f"{k} {places[c][0]}:{places[c][1]}" for k, c in samples.items()),
        )
        # Lets ESPnet's length samplers work without a statistics run over the audio.
        write_atomically(
            fresh / "feats_shape",
            (f"{key} {places[clip][2]},{width}" for key, clip in samples.items()),
        )
        write_json(fresh / "feats.json", content)
    _remove_stale_shards(output_dir, len(work.shards))
    return content


def _made_from(data_dir: str | Path, reused: Iterable[str]) -> str:
    """Digest of a set's files, and of the caches whose frames it points at."""
    digest = hashlib.sha256()
    lists = [p for p in Path(data_dir).iterdir() if p.is_file() and p.name[0] != "."]
    for path in sorted([*lists, *map(Path, reused)]):
        if path.name != "report.json" and path.is_file():
            digest.update(f"{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()


def is_current(
    data_dir: str | Path, output_dir: str | Path, identity: dict[str, Any]
) -> bool:
    """Whether a cache is whole, of this encoder, and of the set as it is now.

    Args:
        data_dir: the set.
        output_dir: its cache.
        identity: of the encoder.

    Returns:
        False as well for a cache that cannot be read: encoding says why.
    """
    try:
        content = check_features(output_dir, identity)
    except FeatureCacheError:
        return False
    now = _made_from(data_dir, content["reused"])
    return content.get("made_from") == now


def _remove_stale_shards(output_dir: str | Path, count: int) -> None:
    """Shards of an earlier, larger cut of this set would only take room."""
    for path in Path(output_dir).glob("feats.[0-9]*.*"):
        number = path.name.split(".")[1]
        if number.isdigit() and int(number) >= count:
            path.unlink()


def encoder_facts(encoder: Any) -> dict[str, Any]:
    """What training needs to know of an encoder it does not build.

    Args:
        encoder: AudioEncoder.

    Returns:
        Dict of plain values, as it stands in feats.json.
    """
    return {
        "identity": encoder.identity(),
        "sample_rate": encoder.sample_rate,
        "width": encoder.width,
        "frames_per_second": encoder.frames_per_second,
        "max_duration_s": encoder.max_duration_s,
        "frames_per_window": encoder.frames_per_window,
        "max_windows": encoder.max_windows,
    }
