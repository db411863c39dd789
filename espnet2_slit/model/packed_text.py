"""Text without its padding: (S, L) sequences as the rows of their real tokens.

As unpad and pad around flash attention: linear layers see the real tokens alone,
attention sees whole sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from espnet2_slit.common.padded import is_on_host

ROW_MULTIPLE = 32  # of packed rows in bfloat16, see pads_rows_to_multiple


def pads_rows_to_multiple() -> bool:
    """oneDNN, which multiplies bfloat16, compiles anew for every number of rows.

    Without this a step of the mini representation stage took 1.25 to 1.37 times as long
    on a CPU with bfloat16 instructions, and equally long on one without.
    """
    return torch.is_autocast_enabled("cpu")


class PackedText:
    """Where the real tokens of a padded (S, L) batch are.

    On a CPU text is packed. On an accelerator it stays padded, because packing needs
    the lengths on the host, a wait in the middle of the step.

    In bfloat16 some padding is packed as well, behind the tokens, until the rows are a
    multiple of ROW_MULTIPLE.

    Args:
        lengths: (S,) tokens of each text.
        width: L of the padded ids.
        pack: pack the rows; None: where the lengths are on the CPU.
        together: K successive texts stand behind each other in one sequence.

    Raises:
        ValueError: a length is beyond the padded ids.
    """

    def __init__(
        self,
        lengths: Tensor,
        width: int,
        pack: bool | None = None,
        together: int = 1,
    ):
        self.sequences, self.together = lengths.size(0), together
        self.device = lengths.device
        self.index: Tensor | None = None  # (n,) rows of the padded block that we keep
        self.tokens: int | None = None  # how many of them are real; None: all
        self.key_mask: Tensor | None = None  # (S, L) True = real
        if pack is None:
            pack = is_on_host(lengths)
        if not pack:
            self.longest = width
            self.key_mask = torch.arange(width, device=self.device) < lengths[:, None]
            return
        host = lengths.cpu()
        self.longest = int(host.max()) if self.sequences else 0
        if self.longest > width:
            raise ValueError(
                f"text_lengths: longest is {self.longest}, but the ids have only "
                f"{width} columns. Pass the lengths that belong to these ids."
            )
        if int(host.min()) < self.longest:
            keep = torch.arange(self.longest) < host[:, None]
            index = keep.flatten().nonzero().squeeze(1)
            self.tokens = len(index)
            if pads_rows_to_multiple():
                padding = (~keep).flatten().nonzero().squeeze(1)
                index = torch.cat((index, padding[: -len(index) % ROW_MULTIPLE]))
            self.index = index.to(self.device)
            self.key_mask = keep.to(self.device)

    def ids_and_positions(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """(S, L) ids -> (n,) ids and their positions in their own text."""
        ids = text[:, : self.longest].flatten()
        positions = torch.arange(self.longest, device=self.device)
        positions = positions.expand(self.sequences, -1).flatten()
        if self.index is None:
            return ids, positions
        return ids[self.index], positions[self.index]

    def pad(self, rows: Tensor) -> Tensor:
        """(n, C) -> (S / K, K L, C), zeros where there is no token."""
        if self.index is not None:
            padded = rows.new_zeros(self.sequences * self.longest, rows.size(1))
            rows = padded.index_copy_(0, self.index, rows)
        return rows.reshape(-1, self.together * self.longest, rows.size(-1))

    def unpad(self, padded: Tensor) -> Tensor:
        """(S / K, K L, C) -> (n, C)."""
        rows = padded.flatten(0, 1)
        return rows if self.index is None else rows.index_select(0, self.index)

    # Queries and text together: one behind the other where text is packed, else as the
    # sequences that attention sees, which saves an accelerator what is copied below.

    def join(self, queries: Tensor, text: Tensor) -> Tensor:
        """(N, Q, C) and (n, C), N = S / K -> (N Q + n, C), or (N, Q + K L, C)."""
        if self.index is None:
            return torch.cat((queries, self.pad(text)), dim=1)
        return torch.cat((queries.flatten(0, 1), text))

    def part(self, rows: Tensor, num_queries: int) -> tuple[Tensor, Tensor]:
        """The inverse of `join`."""
        if self.index is None:
            sizes = num_queries, rows.size(1) - num_queries
            queries, text = rows.split(sizes, dim=1)
            return queries.contiguous(), text.flatten(0, 1)
        count = self.sequences // self.together * num_queries
        queries, text = rows.split((count, len(rows) - count))
        return queries.unflatten(0, (-1, num_queries)), text

    def spread(self, rows: Tensor, num_queries: int) -> Tensor:
        """Joined rows -> (N, Q + K L, C)."""
        if self.index is None:
            return rows
        queries, text = self.part(rows, num_queries)
        return torch.cat((queries, self.pad(text)), dim=1)

    def collect(self, padded: Tensor, num_queries: int) -> Tensor:
        """(N, Q + K L, C) -> joined rows."""
        if self.index is None:
            return padded
        sizes = num_queries, padded.size(1) - num_queries
        queries, text = padded.split(sizes, dim=1)
        return torch.cat((queries.flatten(0, 1), self.unpad(text)))

    def cls_rows(self, rows: Tensor) -> Tensor:
        """(n, C) -> (S, C), the first token of each text."""
        if self.index is None:
            return rows.view(self.sequences, self.longest, -1)[:, 0]
        counts = self.key_mask.sum(1)
        return rows.index_select(0, counts.cumsum(0) - counts)
