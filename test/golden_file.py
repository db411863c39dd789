"""Files of values that other projects' own code computed, and which file to read.

A test reads the file that an environment variable names, else the copy in
`test/golden`, and takes all sizes from the arrays: other files of the same kind can be
run through it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "golden"


class Golden:
    """Arrays of one file by name: numbers as tensors, texts as `str`, JSON parsed.

    Args:
        variable: of the environment, that may name another file.
        default: file in `test/golden`.
    """

    def __init__(self, variable: str, default: str):
        self.file = Path(os.environ.get(variable, "") or FOLDER / default)
        with np.load(self.file, allow_pickle=False) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}

    def __getitem__(self, name: str):
        array = self.arrays[name]
        if array.dtype.kind == "U":
            texts = array.tolist()
            return json.loads(texts) if name.endswith(".json") else texts
        return torch.from_numpy(array)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def below(self, prefix: str) -> dict:
        """Everything under "prefix/", without it."""
        prefix += "/"
        return {
            name.removeprefix(prefix): self[name]
            for name in self.arrays
            if name.startswith(prefix)
        }
