"""Data directories as ESPnet3's datasets: `data_src: espnet2_slit.data.espnet3`.

Owns nothing but the shape; audio and frames are read by ESPnet's own reader, and what a
stage makes of them is the preprocessor's. Needs ESPnet 202609 or newer (espnet[train]).
"""

from __future__ import annotations

import os
from pathlib import Path

from espnet2_slit.common import compat
from espnet2_slit.data.kaldi_dir import read_map

compat.prepare_espnet_import()

from espnet2.train.dataset import ESPnetDataset  # noqa: E402

try:
    from espnet3.components.data.base_dataset import BaseDataset  # noqa: E402
    from espnet3.contract import Field  # noqa: E402
except ImportError as error:
    raise ImportError(
        f"espnet {compat.espnet_version()} has no ESPnet3 that can be used here"
        f" ({error}). On Python 3.12 or 3.13: pip install 'espnet[train]>=202611'"
    ) from error

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
        self.audio = ESPnetDataset([(str(folder / name), *AUDIO[name])])
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
