"""Which files of a data directory a training reads, so that one option names them all.

Owns the names under which ESPnet's loader finds audio, text, instructions and clip ids,
and the file with lengths. What is in the files is checked where they were made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DataFile = tuple[str, str, str]  # path, data name, ESPnet's data type


@dataclass(frozen=True)
class TrainingFiles:
    """The files of one directory.

    Attributes:
        data: what ESPnet's --train_data_path_and_name_and_type names.
        lengths: what --train_shape_file names.
        features: feats.json where frames are cached; "": the audio encoder runs inside
            training.
    """

    data: list[DataFile]
    lengths: str
    features: str


def training_files(
    folder: str | Path, instructions: bool, plain_lengths: bool = False
) -> TrainingFiles:
    """Find the files of a prepared or an encoded set.

    Args:
        folder: dump/<encoder>/<set> with cached frames (it has feats.json), or
            dump/raw/<set>.
        instructions: read `instruction`, where the set has it.
        plain_lengths: take numbers of samples even where frames are cached: ESPnet's
            category samplers read no "frames,width".

    Returns:
        TrainingFiles. Samples without `utt2audio` are clips of their own.

    Raises:
        FileNotFoundError: a file is missing; the message says what makes it.
    """
    folder = Path(folder)
    cached = (folder / "feats.json").is_file()
    audio = ("feats.scp", "feats", "kaldi_ark") if cached else None
    audio = audio or ("wav.scp", "speech", "sound")
    lengths = "feats_shape" if cached and not plain_lengths else "utt2num_samples"
    wanted = [audio, ("text", "text", "text")]
    if instructions and (folder / "instruction").is_file():
        wanted.append(("instruction", "instruction", "text"))
    if (folder / "text_variants").is_file():
        wanted.append(("text_variants", "text_variants", "text"))
    if (folder / "utt2audio").is_file():
        wanted.append(("utt2audio", "clip", "text"))
    absent = [
        name
        for name in (*(name for name, _, _ in wanted), lengths)
        if not (folder / name).is_file()
    ]
    if absent:
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        raise FileNotFoundError(
            f"{folder}: expected {', '.join(absent)}, found "
            f"{', '.join(found) or 'no such folder'}. Check and encode the set first: "
            "`slit data prepare` and `slit encode`, or the recipe's data stage."
        )
    return TrainingFiles(
        [(str(folder / name), data, kind) for name, data, kind in wanted],
        str(folder / lengths),
        str(folder / "feats.json") if cached else "",
    )
