"""Where the queries of a system look in clips, for pictures.

Hooks hang on its modules meanwhile; `engine.computes` keeps others out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from espnet2_slit.inference.clips import Clips, pad
from espnet2_slit.inference.engine import Engine, computes
from espnet2_slit.model.attention import attention_weights


@computes
def attention(
    engine: Engine, clips: Clips, instruction: str | None = None
) -> list[np.ndarray]:
    """Where the queries look.

    Args:
        engine: a system.
        clips: N clips.
        instruction: None looks through the representation part (if there is one), else
            the generator reads this instruction.

    Returns:
        For each clip (layers, Q, T) float32: weights of the cross-attention layers
        over the frames, mean over the heads; each row sums to 1, with queries for each
        window to 1 in each.
    """
    part = engine.require("generator") if instruction else engine.first
    maps: list[Any] = [None] * len(clips)
    for batch, arrays in engine.batches(clips):
        frames = engine.frames(part, clips, arrays)
        reads = None
        if instruction:
            ids = part.prompt(instruction).get("qformer_instruction")
            if ids is not None:
                reads = pad([ids] * len(batch)).to(engine.device)
        weights = attention_weights(part.qformer, frames, reads)
        for clip, row, real in zip(batch, weights, frames.mask(), strict=True):
            maps[clip] = row[:, :, : int(real.sum())]
    return maps
