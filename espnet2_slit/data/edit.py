"""Changes data directories: fix, combine, subset, split."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable
from pathlib import Path

from espnet2_slit.common.files import read_lines, write_atomically
from espnet2_slit.data.clips import segment_fault
from espnet2_slit.data.kaldi_dir import (
    DEFAULTS,
    EXAMPLES,
    PLAIN_FILES,
    SEPARATOR,
    TASKS,
    DataDirError,
    check_id,
    clip_of,
    every_line,
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
            wrong = segment_fault(value)
            if wrong or value.split()[0] not in recordings:
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
    rewrite(directory, directory, ids, backup=True)
    report.kept = len(ids)
    report.write(directory / "report.json")
    return report


def rewrite(source: Path, target: Path, ids: set[str], backup: bool = False) -> None:
    """Write the samples `ids` of one directory to another (or to itself).

    Args:
        source: data directory to read.
        target: data directory to write; may be `source`.
        ids: samples to keep.
        backup: keep the files of `target` in `.backup`.
    """
    source, target = Path(source), Path(target)
    names = sample_files(source)
    if backup:
        keep = target / ".backup"
        keep.mkdir(exist_ok=True)
        for name in {*names, "wav.scp", "references", "spk2utt"}:
            if (target / name).is_file():
                shutil.copy2(target / name, keep / name)
    unheard = Report("")
    clips = {}
    recordings = set()
    for name in names:
        pairs = _unique_pairs(source / name, unheard)
        with SortedWriter(target / name) as out:
            for key, value in pairs.items():
                if key in ids:
                    out.add(f"{key} {value}")
                    if name == "utt2audio":
                        clips[key] = value
                    elif name == "segments":
                        recordings.add(value.split()[0])
    if "segments" in names:
        with SortedWriter(target / "wav.scp") as out:
            for key, value in _unique_pairs(source / "wav.scp", unheard).items():
                if key in recordings:
                    out.add(f"{key} {value}")
    if "utt2spk" not in names:
        with SortedWriter(target / "utt2spk") as out:
            for key in ids:
                out.add(f"{key} {key}")
    write_speakers(target)
    write_categories(target)
    if (source / "references").is_file():
        wanted = set(clips.values()) or ids
        with SortedWriter(target / "references", unique=True) as out:
            for key, value in read_pairs(source / "references"):
                if key in wanted and value:
                    out.add(f"{key} {value}")
    for name in PLAIN_FILES:
        if source != target and (source / name).is_file():
            write_atomically(target / name, every_line(source / name))


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
    per_source = {source: sample_files(source) for source in sources}
    cut = any("segments" in names for names in per_source.values())
    every = sorted({name for names in per_source.values() for name in names})
    if cut and "wav.scp" in every:
        every.remove("wav.scp")
    for name in every:
        lacking = [source for source in sources if name not in per_source[source]]
        if lacking and name not in DEFAULTS and name != "segments":
            report.notes[f"{name} left out"] = f"{', '.join(map(str, lacking))} lack it"
            continue
        with SortedWriter(target / name) as out:
            for source in sources:
                if source not in lacking:
                    pairs = read_pairs(source / name)
                elif name == "segments":
                    pairs = ((key, f"{key} 0 -1") for key in sample_ids(source))
                else:
                    make = DEFAULTS[name]
                    pairs = ((key, make(key)) for key in sample_ids(source))
                for key, value in pairs:
                    out.add(f"{key} {value}")
    if cut:
        recordings: dict[str, str] = {}
        for source in sources:
            for key, value in read_pairs(source / "wav.scp"):
                if recordings.setdefault(key, value) != value:
                    raise DataDirError(
                        f"the recording {key!r} is {recordings[key]!r} in one directory"
                        f" and {value!r} in {source}. Rename it in one of them."
                    )
        with SortedWriter(target / "wav.scp") as out:
            for key, value in recordings.items():
                out.add(f"{key} {value}")
    if not (target / "utt2spk").is_file():
        with SortedWriter(target / "utt2spk") as out:
            for key in owner:
                out.add(f"{key} {key}")
    write_speakers(target)
    write_categories(target)
    if all((source / "references").is_file() for source in sources):
        with SortedWriter(target / "references", unique=True) as out:
            for source in sources:
                for key, value in read_pairs(source / "references"):
                    out.add(f"{key} {value}")
    for name in ("labels", "answers"):
        if all((source / name).is_file() for source in sources):
            lines: dict[str, None] = {}
            for source in sources:
                lines.update(dict.fromkeys(read_lines(source / name)))
            write_atomically(target / name, lines)
    descriptions = [read_set(source) for source in sources]
    write_set(
        target,
        corpus="+".join(
            dict.fromkeys(d["corpus"] for d in descriptions if d["corpus"])
        ),
        split=descriptions[0]["split"],
        tasks=[t for t in TASKS if all(t in d["tasks"] for d in descriptions)],
        zero_shot=all(d["zero_shot"] for d in descriptions),
    )
    report.write(target / "report.json")
    return report


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
    clip = clip_of(source)
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
    rewrite(source, target, set(kept))
    report.kept = len(kept)
    if (Path(target) / "set.json").is_file():
        write_set(target)
    return report


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
    clip = clip_of(source)
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
        rewrite(source, made[-1], chosen)
    return made
