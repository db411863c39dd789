"""Changes data directories: fix, combine, subset, split."""

from __future__ import annotations

import random
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from espnet2_slit.common.files import read_lines, write_atomically
from espnet2_slit.common.names import TASKS
from espnet2_slit.data.clips import parse_segment, sample_clips
from espnet2_slit.data.kaldi_dir import (
    CLIP_FILES,
    DEFAULTS,
    EXAMPLES,
    PLAIN_FILES,
    SAMPLE_LISTS,
    SEPARATOR,
    SOME_SAMPLES_FILES,
    DataDirError,
    asks_questions,
    check_id,
    every_line,
    is_data_file,
    listing,
    read_pairs,
    read_set,
    sample_files,
    sample_ids,
    some_ids,
)
from espnet2_slit.data.report import Report
from espnet2_slit.data.writer import (
    SortedWriter,
    new_directory,
    write_categories,
    write_set,
    write_speakers,
)


def _unique_pairs(path: Path, report: Report) -> dict[str, str]:
    """id -> value of one file: first of repeated ids, broken lines counted out."""
    found: dict[str, str] = {}
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                text = line.decode("utf-8").strip(" \t\r\n\ufeff")
            except UnicodeDecodeError:
                report.drop(f"{path.name}: not UTF-8", f"line {number}")
                continue
            if not text:
                continue
            key, *value = SEPARATOR.split(text, maxsplit=1)
            if check_id(key):
                report.drop(f"{path.name}: unprintable id", f"line {number}")
            elif not value:
                report.drop(f"{path.name}: no value", key)
            elif key not in found:
                found[key] = value[0].replace("\r", " ")
            elif found[key] == value[0]:
                report.note(f"repeated lines in {path.name}")
            else:
                report.drop(f"{path.name}: other value for an id seen before", key)
    return found


def fix(directory: Path) -> Report:
    """Sort, drop repeated and broken lines, keep the ids that every file has.

    The files as they were are kept in `.backup`. Running it again changes nothing.

    Args:
        directory: the data directory, changed in place.

    Returns:
        Report of what was dropped and why; also written to report.json.

    Raises:
        DataDirError: there is no audio list, or no sample is left.
    """
    directory = Path(directory)
    names = sample_files(directory)
    report = Report(str(directory))
    source = next((n for n in ("segments", "wav.scp", "feats.scp") if n in names), None)
    if source is None:
        raise DataDirError(
            f"{directory}: expected wav.scp (or feats.scp); found {listing(directory)}"
        )
    base = _unique_pairs(directory / source, report)
    report.rows = len(base)
    ids = set(base)
    if source == "segments":
        recordings = set(_unique_pairs(directory / "wav.scp", report))
        for key, value in base.items():
            try:
                is_good = parse_segment(value).recording in recordings
            except ValueError:
                is_good = False
            if not is_good:
                report.drop("segments: broken or of no recording", key)
                ids.discard(key)
    del base
    for name in names:
        if name == source:
            continue
        found = set(_unique_pairs(directory / name, report))
        for key in sorted(ids - found):
            report.drop(f"no line in {name}", key)
        report_extra = len(found - ids)
        if report_extra:
            report.note(f"lines of {name} without audio, left out", report_extra)
        ids &= found
    if not ids:
        raise DataDirError(
            f"{directory}: no sample is left. "
            + " ".join(report.lines())
            + " Do the ids of wav.scp and text agree?"
        )
    _back_up(directory, names)
    with new_directory(directory) as fresh:
        copy_samples(directory, fresh, ids)
        for path in directory.iterdir():  # and what copy_samples leaves to its caller
            if is_data_file(path.name) and not (fresh / path.name).exists():
                shutil.copy2(path, fresh / path.name)
        report.kept = len(ids)
        report.write(fresh / "report.json")
    return report


def _back_up(directory: Path, names: Iterable[str]) -> None:
    keep = directory / ".backup"
    keep.mkdir(exist_ok=True)
    for name in {*names, "wav.scp", "references", "spk2utt"}:
        if (directory / name).is_file():
            shutil.copy2(directory / name, keep / name)


def copy_samples(
    source: Path,
    folder: Path,
    ids: Collection[str],
    clip_of_sample: Mapping[str, str] | None = None,
) -> None:
    """Write the samples `ids` of a directory to a folder, and what belongs to them.

    Args:
        source: data directory to read.
        folder: an empty one, see `writer.new_directory`.
        ids: samples to keep.
        clip_of_sample: sample id -> clip id, written to utt2audio where `source` has
            none and several samples are of one clip.
    """
    source, folder = Path(source), Path(folder)
    names = sample_files(source)
    ignored = Report("")  # what `fix` reports, other commands pass over
    clips = {}
    recordings = set()
    for name in (*names, *SOME_SAMPLES_FILES):
        if not (source / name).is_file():
            continue
        pairs = _unique_pairs(source / name, ignored)
        with SortedWriter(folder / name) as out:
            for key, value in pairs.items():
                if key in ids:
                    out.add(f"{key} {value}")
                    if name == "utt2audio":
                        clips[key] = value
                    elif name == "segments":
                        recordings.add(value.split()[0])
    if "segments" in names:
        pairs = _unique_pairs(source / "wav.scp", ignored)
        with SortedWriter(folder / "wav.scp") as out:
            for key, value in pairs.items():
                if key in recordings:
                    out.add(f"{key} {value}")
    renamed: Mapping[str, str] = {}
    if clip_of_sample and "utt2audio" not in names:
        renamed = clip_of_sample
        clips = dict(clip_of_sample)
        if any(key != clip for key, clip in clips.items()):
            with SortedWriter(folder / "utt2audio") as out:
                for key, clip in clips.items():
                    out.add(f"{key} {clip}")
    wanted = set(clips.values()) or ids
    for name in (*SAMPLE_LISTS, *CLIP_FILES):
        by_sample = name in SAMPLE_LISTS or asks_questions(source)
        if (source / name).is_file():
            with SortedWriter(folder / name, unique=True) as out:
                for key, value in read_pairs(source / name):
                    clip = key if by_sample else renamed.get(key, key)
                    if clip in (ids if by_sample else wanted) and value:
                        out.add(f"{clip} {value}")
    for name in PLAIN_FILES:
        if (source / name).is_file():
            write_atomically(folder / name, every_line(source / name))
    _complete(folder, ids)


def _complete(folder: Path, ids: Iterable[str]) -> None:
    """The files that follow from the others."""
    if not (folder / "utt2spk").is_file():
        with SortedWriter(folder / "utt2spk") as out:
            for key in ids:
                out.add(f"{key} {key}")
    write_speakers(folder)
    write_categories(folder)


def combine(target: Path, sources: Iterable[Path]) -> Report:
    """Join data directories into one.

    A file that some of them lack is completed where a default is known (utt2spk,
    utt2audio, utt2task, segments), else left out with a note.

    Args:
        target: data directory to make.
        sources: data directories; their ids must not overlap.

    Returns:
        Report with the number of samples and the files left out.

    Raises:
        DataDirError: fewer than two directories, or an id is in several of them.
    """
    target, sources = Path(target), [Path(source) for source in sources]
    if len(sources) < 2:
        raise DataDirError(f"expected two or more directories, found {len(sources)}.")
    report = Report(str(target))
    owner: dict[str, Path] = {}
    for source in sources:
        for key in sample_ids(source):
            if key in owner:
                raise DataDirError(
                    f"the id {key!r} is in {owner[key]} and in {source}; expected"
                    " different ids. Give one of them a prefix, or combine only one."
                )
            owner[key] = source
    report.rows = report.kept = len(owner)
    with new_directory(target) as fresh:
        _join_samples(fresh, sources, report)
        _complete(fresh, owner)
        _join_lists(fresh, sources)
        descriptions = [read_set(source) for source in sources]
        write_set(
            fresh,
            name=target.name,
            corpus="+".join(
                dict.fromkeys(d["corpus"] for d in descriptions if d["corpus"])
            ),
            split=descriptions[0]["split"],
            tasks=[t for t in TASKS if all(t in d["tasks"] for d in descriptions)],
            zero_shot=all(d["zero_shot"] for d in descriptions),
        )
        report.write(fresh / "report.json")
    return report


def _join_samples(folder: Path, sources: Sequence[Path], report: Report) -> None:
    """The files with one line per sample, and wav.scp where there are segments."""
    per_source = {source: sample_files(source) for source in sources}
    every = {name for names in per_source.values() for name in names}
    is_cut = "segments" in every
    for name in sorted(every - ({"wav.scp"} if is_cut else set())):
        lacking = [source for source in sources if name not in per_source[source]]
        if lacking and name not in DEFAULTS and name != "segments":
            report.notes[f"{name} left out"] = f"{', '.join(map(str, lacking))} lack it"
            continue
        with SortedWriter(folder / name) as out:
            for source in sources:
                for key, value in _pairs_or_default(source, name, source in lacking):
                    out.add(f"{key} {value}")
    if is_cut:
        recordings: dict[str, str] = {}
        for source in sources:
            for key, value in read_pairs(source / "wav.scp"):
                if recordings.setdefault(key, value) != value:
                    raise DataDirError(
                        f"the recording {key!r} is {recordings[key]!r} in one directory"
                        f" and {value!r} in {source}. Rename it in one of them."
                    )
        with SortedWriter(folder / "wav.scp") as out:
            for key, value in recordings.items():
                out.add(f"{key} {value}")


def _pairs_or_default(
    source: Path, name: str, is_lacking: bool
) -> Iterable[tuple[str, str]]:
    if not is_lacking:
        return read_pairs(source / name)
    if name == "segments":
        return ((key, f"{key} 0 -1") for key in sample_ids(source))
    return ((key, DEFAULTS[name](key)) for key in sample_ids(source))


def _join_lists(folder: Path, sources: Sequence[Path]) -> None:
    """References, choices, candidate labels and answers."""
    for name in (*CLIP_FILES, *SOME_SAMPLES_FILES, *SAMPLE_LISTS):
        holders = [source for source in sources if (source / name).is_file()]
        if holders and (len(holders) == len(sources) or name != "references"):
            with SortedWriter(folder / name, unique=True) as out:
                for source in holders:
                    for key, value in read_pairs(source / name):
                        out.add(f"{key} {value}")
    for name in ("labels", "answers"):
        if all((source / name).is_file() for source in sources):
            lines: dict[str, None] = {}
            for source in sources:
                lines.update(dict.fromkeys(read_lines(source / name)))
            write_atomically(folder / name, lines)


def subset(
    source: Path,
    target: Path,
    count: int | None = None,
    ids: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    seed: int | None = None,
) -> Report:
    """Take a part of a data directory; samples of one clip stay together.

    Args:
        source: data directory.
        target: data directory to make.
        count: number of clips to take: the first, or with `seed` random ones.
        ids: samples or clips to take.
        exclude: samples or clips to leave out.
        seed: for a random choice of `count` clips.

    Returns:
        Report.

    Raises:
        DataDirError: nothing is left, an id is unknown, or count exceeds the clips.
    """
    samples = sample_ids(source)
    clip = sample_clips(source)
    report = Report(str(target), rows=len(samples))
    clips = dict.fromkeys(clip.get(sample, sample) for sample in samples)
    known = set(samples) | set(clips)
    chosen = set(known)
    if ids is not None:
        chosen = set(ids)
        if chosen - known:
            raise DataDirError(
                f"{source} has no sample or clip {some_ids(chosen - known)}; it has"
                f" {len(samples)} samples, {some_ids(samples[:EXAMPLES])} among them."
            )
    left_out = set(exclude or ())
    kept = [
        sample
        for sample in samples
        if (sample in chosen or clip.get(sample, sample) in chosen)
        and sample not in left_out
        and clip.get(sample, sample) not in left_out
    ]
    if count is not None:
        wanted = list(dict.fromkeys(clip.get(sample, sample) for sample in kept))
        if not 0 < count <= len(wanted):
            raise DataDirError(f"{source}: asked for {count} of {len(wanted)} clips.")
        if seed is not None:
            random.Random(seed).shuffle(wanted)
        first = set(wanted[:count])
        kept = [sample for sample in kept if clip.get(sample, sample) in first]
    if not kept:
        raise DataDirError(f"{source}: no sample is left of {len(samples)}.")
    report.kept = len(kept)
    _write_part(source, target, set(kept))
    return report


def _write_part(source: Path, target: Path, ids: Collection[str]) -> None:
    with new_directory(target) as fresh:
        copy_samples(source, fresh, ids)
        if (fresh / "set.json").is_file():
            write_set(fresh, name=Path(target).name)


def split(source: Path, target: Path, parts: int) -> list[Path]:
    """Cut a directory into near-equal parts `target/1`, `target/2`, ...

    Samples of one clip stay together, in the directory's order.

    Args:
        source: data directory.
        target: folder of the parts.
        parts: how many.

    Returns:
        The parts.

    Raises:
        DataDirError: there are fewer clips than parts.
    """
    clip = sample_clips(source)
    groups: dict[str, list[str]] = {}
    for sample in sample_ids(source):
        groups.setdefault(clip.get(sample, sample), []).append(sample)
    if not 1 <= parts <= len(groups):
        raise DataDirError(
            f"{source}: cannot cut {len(groups)} clips into {parts} parts; ask for"
            f" 1 to {len(groups)}."
        )
    members = list(groups.values())
    made = []
    for part in range(parts):
        first = len(members) * part // parts
        last = len(members) * (part + 1) // parts
        chosen = {sample for group in members[first:last] for sample in group}
        made.append(Path(target) / str(part + 1))
        _write_part(source, made[-1], chosen)
    return made
