"""Connectors without queries: frames stacked k at a time, for the language model.

What a Q-Former is compared with. Stacked frames follow the sound in time and their
number grows with it; nothing is learned before the language model's loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espnet2_slit.common.padded import Padded, lengthen

FRAME_NORM_EPS = 1e-5
CONNECTORS = ("qformer", "linear", "mlp")


def build_frame_stack(
    kind: str, encoder_width: int, stack: int = 8, hidden: int = 2048
) -> FrameStack:
    """A connector of stacked frames by its name in configurations.

    Args:
        kind: "linear" or "mlp".
        encoder_width: D_a.
        stack: frames in one vector.
        hidden: width of the hidden layer; for mlp.

    Returns:
        The connector, at random weights.

    Raises:
        ValueError: an unknown kind, or impossible sizes.
    """
    if kind not in CONNECTORS[1:]:
        raise ValueError(
            f"connector: expected one of {', '.join(CONNECTORS)}, found {kind!r}"
        )
    return FrameStack(encoder_width, stack, hidden if kind == "mlp" else None)


class FrameStack(nn.Module):
    """Stacks k neighbouring frames; perhaps a hidden layer before the projection.

    With the model's projection to the language model this is one layer (`linear`) or
    two (`mlp`), as in SLAM-LLM (arXiv 2402.08846) and LLaVA (2310.03744).

    Args:
        encoder_width: D_a of the frames.
        stack: k, frames in one vector; the last one of a clip is filled with zeros.
        hidden: width of the hidden layer; None: none.

    Attributes:
        width: of the vectors that it gives.

    Raises:
        ValueError: stack or hidden is below 1.
    """

    def __init__(self, encoder_width: int, stack: int, hidden: int | None = None):
        super().__init__()
        if stack < 1 or (hidden is not None and hidden < 1):
            raise ValueError(
                "connector_conf: expected stack and hidden of at least 1, found "
                f"{stack} and {hidden}"
            )
        self.encoder_width, self.stack = encoder_width, stack
        self.frame_norm = nn.LayerNorm(encoder_width, eps=FRAME_NORM_EPS)
        self.hidden = (
            None if hidden is None else nn.Linear(encoder_width * stack, hidden)
        )
        self.width = encoder_width * stack if hidden is None else hidden

    def forward(self, frames: Padded) -> Padded:
        """(B, T, D_a) -> (B, ceil(T / k), width).

        Raises:
            ValueError: frames of another width.
        """
        values, lengths = frames
        if values.size(-1) != self.encoder_width:
            raise ValueError(
                f"frames are {values.size(-1)} wide, but this connector was built for "
                f"{self.encoder_width}. Use the encoder or cache that belongs to it."
            )
        count = -(-values.size(1) // self.stack)
        normalised = self.frame_norm(values)
        if lengths is not None:
            normalised = torch.where(frames.mask()[..., None], normalised, 0.0)
            lengths = (lengths + self.stack - 1) // self.stack
        normalised = lengthen(normalised, count * self.stack)
        stacked: Tensor = normalised.unflatten(1, (count, self.stack)).flatten(2)
        if self.hidden is not None:
            stacked = nn.functional.gelu(self.hidden(stacked))
        return Padded(stacked, lengths)
