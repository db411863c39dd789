"""Queries for each window of a clip: length and time survive in the prefix.

Owns cutting frames into windows, which the Q-Former reads as if each were a clip, and
laying the windows of a clip after each other again. The network is in `qformer`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet2_slit.model.qformer import QFormer


@dataclass
class QueriedWindows:
    """What the queries found, window by window.

    Attributes:
        hidden: (M, Q, D_q), the windows of the first clip first; a clip is one window
            where the Q-Former's `query_window` is 0.
        counts: (B,) windows of each clip; None: each clip is one window.
    """

    hidden: Tensor
    counts: Tensor | None = None

    def join(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Lay the windows of each clip after each other.

        Args:
            rows: (M, Q, C), made of `hidden`.

        Returns:
            (B, N, C), zeros behind a clip's last window; and the vectors of each clip
            (B,), None where all have N.
        """
        if self.counts is None:
            return rows, None
        counts = self.counts.tolist()
        clips = [window.flatten(0, 1) for window in rows.split(counts)]
        joined = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        if min(counts) == max(counts):
            return joined, None
        return joined, self.counts * rows.size(1)


def split_windows(
    frames: Tensor, lengths: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut clips into windows that follow each other.

    Args:
        frames: (B, T, D_a).
        lengths: (B,) frames of each clip, at least 1.
        size: frames of a window; a clip's last one may have fewer.

    Returns:
        windows (M, W, D_a), the first clip's first, W = min(size, T); frames of each
        (M,); and windows of each clip (B,).
    """
    if frames.size(1) <= size:
        return frames, lengths, torch.ones_like(lengths)
    most = -(-frames.size(1) // size)
    padded = F.pad(frames, (0, 0, 0, most * size - frames.size(1)))
    starts = torch.arange(most, device=lengths.device) * size
    real = (lengths[:, None] - starts).clamp(0, size)  # (B, most)
    used = real > 0
    windows = padded.unflatten(1, (most, size))[used.to(frames.device)]
    return windows, real[used], used.sum(1)


def query_windows(
    qformer: QFormer,
    frames: Tensor,
    frame_lengths: Tensor,
    instruction: Tensor | None = None,
    instruction_lengths: Tensor | None = None,
) -> QueriedWindows:
    """Let a clip's queries read each of its windows, with the clip's instruction.

    Args:
        qformer: its `query_window` says how many frames a window has.
        frames: (B, T, D_a).
        frame_lengths: (B,).
        instruction: (B, L) ids that the queries read beside the audio.
        instruction_lengths: (B,).

    Returns:
        The outputs of the queries.

    Source: X-InstructBLIP (arXiv 2311.18799). Differs from salesforce/LAVIS@506965b
        blip2_vicuna_xinstruct.py:616-626, where clips of a batch are read with each
        other's instructions, and padding is read as sound.
    """
    counts = None
    if qformer.query_window:
        frames, frame_lengths, counts = split_windows(
            frames, frame_lengths, qformer.query_window
        )
        if instruction is not None and instruction_lengths is not None:
            instruction = instruction.repeat_interleave(counts, 0)
            instruction_lengths = instruction_lengths.repeat_interleave(counts, 0)
    memory = qformer.read_frames(frames, frame_lengths, single_pass=True)
    hidden = qformer.forward_queries(memory, instruction, instruction_lengths).hidden
    return QueriedWindows(hidden, counts)
