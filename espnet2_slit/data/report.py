"""What a command on data did: what it read, kept and dropped, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet2_slit.common.files import write_json
from espnet2_slit.data.kaldi_dir import EXAMPLES, SCHEMA


@dataclass
class Report:
    """What a command read, kept and dropped, and why.

    Attributes:
        name: directory or file it is about.
        rows: samples read.
        kept: samples written.
        dropped: reason -> count.
        examples: reason -> a few ids or messages.
        notes: counts of what was changed but kept, e.g. "resampled".
    """

    name: str
    rows: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def drop(self, reason: str, example: str, count: int = 1) -> None:
        """Count a loss and remember the first few."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES:
            shown.append(example)

    def note(self, what: str, count: int | float = 1) -> None:
        """Count something worth telling that costs no sample."""
        self.notes[what] = self.notes.get(what, 0) + count

    def lines(self) -> Iterator[str]:
        """The report for people."""
        yield f"{self.name}: {self.rows:,} rows read, {self.kept:,} kept"
        for reason, count in sorted(self.dropped.items()):
            shown = "; ".join(self.examples.get(reason, []))
            yield f"  dropped {count:,}: {reason} (e.g. {shown})"
        for what, count in sorted(self.notes.items()):
            number = f"{count:,}" if isinstance(count, (int, float)) else count
            yield f"  {what}: {number}"

    def write(self, path: Path, **more: Any) -> None:
        """Write it, and `more` values beside it, as JSON."""
        content = {"schema": SCHEMA, **vars(self), **more}
        write_json(path, content)
