"""Data directories as ESPnet3's datasets: `data_src: espnet2_slit.data.espnet3`.

Owns nothing but the shape; audio and frames are read by ESPnet's own reader, and what a
stage makes of them is the preprocessor's. Needs ESPnet 202609 or newer (espnet[train]).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet2_slit.common import compat
from espnet2_slit.data.indexed_lines import by_index
from espnet2_slit.data.kaldi_dir import read_map
from espnet2_slit.data.prepare import prepare_sets

compat.prepare_espnet_import()

from espnet2.train.dataset import ESPnetDataset  # noqa: E402

try:
    from espnet3.components.data import dataset_builder  # noqa: E402
    from espnet3.components.data.base_dataset import BaseDataset  # noqa: E402
    from espnet3.contract import Field  # noqa: E402
except ImportError as error:
    raise compat.no_espnet3(error) from error

# file -> (name, type), as --train_data_path_and_name_and_type has them
AUDIO = {"feats.scp": ("feats", "kaldi_ark"), "wav.scp": ("speech", "sound")}
STRINGS = {"text": "text", "instruction": "instruction", "utt2audio": "clip"}


class Dataset(BaseDataset):
    """The samples of one set: encoded (feats.scp) or, without a cache, audio (wav.scp).

    Args:
        path: data directory; relative entries of its scp are found from where the
            training runs, as in ESPnet2.

    Raises:
        FileNotFoundError: neither feats.scp nor wav.scp, or no text.
    """

    fields = (Field("text", "text"),)

    def __init__(self, path: str | os.PathLike):
        folder = Path(path)
        audio = [name for name in AUDIO if (folder / name).is_file()]
        if not audio or not (folder / "text").is_file():
            raise FileNotFoundError(
                f"{folder}: expected feats.scp (or wav.scp) and text, found"
                f" {', '.join(sorted(p.name for p in folder.glob('*'))) or 'nothing'}."
                " Run the recipe's data stage, or give another path."
            )
        name = audio[0]
        self.audio = ESPnetDataset([by_index(str(folder / name), *AUDIO[name])])
        self.strings = {
            name: read_map(folder / file)
            for file, name in STRINGS.items()
            if (folder / file).is_file()
        }
        self.ids = list(self.strings["text"])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | str) -> dict:
        """Arrays and strings of a sample, by place or id, before the preprocessor."""
        sample = index if isinstance(index, str) else self.ids[index]
        strings = {name: table[sample] for name, table in self.strings.items()}
        return {**self.audio[sample][1], **strings}


class DatasetBuilder(dataset_builder.DatasetBuilder):
    """Data directories, made by a command where they are not there, then checked.

    Its arguments stand in a training's `create_dataset`: `sets`, names of the data
    directories; `data`, the folder that they lie in; `raw`, where checked ones go;
    `command`, words of a program that makes them.
    """

    def is_source_prepared(self, sets: Sequence[str], data: str, **others: Any) -> bool:
        """Whether the data directories are there."""
        return all((Path(data) / name / "wav.scp").is_file() for name in sets)

    def prepare_source(self, command: Sequence[str] = (), **others: Any) -> None:
        """Run the command that makes them.

        Raises:
            ValueError: none is given.
            subprocess.CalledProcessError: it failed.
        """
        if not command:
            raise ValueError(
                "create_dataset: expected the data directories of `sets` below `data`, "
                "or a `command` that makes them; found neither."
            )
        subprocess.run([str(word) for word in command], check=True)

    def is_built(self, sets: Sequence[str], raw: str, **others: Any) -> bool:
        """Whether they have been checked."""
        return all((Path(raw) / name / "report.json").is_file() for name in sets)

    def build(self, sets: Sequence[str], data: str, raw: str, **others: Any) -> None:
        """Check each clip once and write the directories to train from."""
        prepare_sets([(Path(data) / name, Path(raw) / name) for name in sets])
