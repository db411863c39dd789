"""A folder of audio as an index on disk that texts search: embeddings, names, identity.

Owns which files are embedded, and with which model. Scores come from `ranking`, windows
from `windows`.

    INDEX/index.json       schema, root folder, identity of the model
    INDEX/part.00000.npz   files (n,), sizes (n,), modified (n,), rows (n,), whole (n,),
                           starts (R,), ends (R,), embeddings (R, Q, E)

The rows of a file follow each other: the whole clip, where the system reads it at once
(`whole`), then its windows, where it is longer than one. An hour of audio is read in
parts and has 1,440 windows.

Every row is compared with the text by one matrix product over parts read in turn, so
memory stays that of a part (about 1,000 rows). With 32 queries of 256 float16 values a
row takes 16 KiB: from about a million rows on, where a search reads some 16 GB, an
approximate nearest-neighbour library would pay.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_slit.common.files import atomic, read_json, write_json
from espnet2_slit.common.identity import fingerprint, identity_differences
from espnet2_slit.data.audio import is_audio
from espnet2_slit.data.clips import Clip
from espnet2_slit.inference.clips import AudioClips, Subset
from espnet2_slit.inference.one_by_one import each, fault_of
from espnet2_slit.inference.ranking import rerank_rows, similarity
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.retrieval import (
    embed_clips,
    match_pairs,
    rerank_scale_of,
)
from espnet2_slit.inference.slit import SLIT, Hit
from espnet2_slit.inference.windows import Windows, best_moments, embed_windows

SCHEMA = 2
DEFAULT_NAME = ".slit_index"  # in the folder of audio
PART_ROWS = 1000
WINDOW_S = 5.0  # of the windows that are kept; they overlap by half
FILE_ARRAYS = ("files", "sizes", "modified", "whole", "rows")
ROW_ARRAYS = ("starts", "ends", "embeddings")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexReport:
    """What an update did.

    Attributes:
        kept: files that were embedded already.
        added: files embedded now.
        removed: files that are gone or have changed.
        skipped: {file: fault} of what cannot be read as audio.
    """

    kept: int
    added: int
    removed: int
    skipped: dict[str, str]


def model_identity(slit: SLIT) -> dict[str, Any]:
    """What embeddings depend on: the encoder and the representation part's weights.

    Raises:
        InferenceError: the system has no representation part.
    """
    if slit.representation is None:
        raise InferenceError(
            "an index needs a representation part, this system has none. Link a"
            " representation experiment to it (slit_pack --link)."
        )
    encoder = {k: v for k, v in slit.encoder_identity.items() if k != "path"}
    weights = fingerprint(slit.representation.model_file)
    return {**encoder, "representation_weights": weights}


def find_audio(folder: str | os.PathLike) -> Iterator[str]:
    """Audio files below a folder, relative to it, in order; by content, not by name.

    A file that bears an audio name but is none comes, too, so that whoever reads it can
    say what is wrong. How many others were passed over is logged. Links to folders are
    not followed, hidden names are left out.
    """
    passed: Counter[str] = Counter()
    for root, folders, files in os.walk(os.fspath(folder)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            path = os.path.join(root, name)
            if is_audio(path):
                yield os.path.relpath(path, folder)
            else:
                passed[os.path.splitext(name)[1].lower() or "no suffix"] += 1
    if passed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in passed.most_common(8))
        logger.warning(
            "%s: %d files are no audio by name or content (%s)",
            folder, sum(passed.values()), kinds,
        )  # fmt: skip


class SearchIndex:
    """An index of a folder of audio.

    Args:
        path: of the index, a folder.

    Attributes:
        root: folder of audio; None until the first update.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.fault = ""  # of what is there: another version's, or damaged
        self.facts = self._read_facts()
        self.root: Any = Path(self.facts["root"]) if self.facts else None

    def _read_facts(self) -> dict[str, Any]:
        file = self.path / "index.json"
        if not file.is_file():
            return {}
        remedy = "Make it again: slit index FOLDER."
        try:
            return read_json(file, SCHEMA, remedy, InferenceError)
        except InferenceError as error:
            self.fault = str(error)
            return {}

    @property
    def parts(self) -> list[Path]:
        """Files with embeddings, in order."""
        return sorted(self.path.glob("part.*.npz"))

    def __len__(self) -> int:
        return sum(len(self._load(part, "files")) for part in self.parts)

    @staticmethod
    def _load(part: Path, name: str) -> np.ndarray:
        with np.load(part, allow_pickle=False) as content:
            return content[name]

    def check(self, slit: SLIT) -> None:
        """Raises InferenceError where the index is another model's, or not there."""
        if not self.facts:
            raise InferenceError(
                self.fault
                or f"{self.path}: no index there. Make one: slit index FOLDER --index"
                f" {self.path}"
            )
        differences = identity_differences(self.facts["model"], model_identity(slit))
        if differences:
            raise InferenceError(
                f"{self.path}: was made with another model: {'; '.join(differences)}."
                " Use that model, or make the index again: slit index --rebuild."
            )

    # --------------------------------------------------------------------- making

    def update(
        self,
        slit: SLIT,
        folder: str | os.PathLike,
        rebuild: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> IndexReport:
        """Embed what is new in a folder, forget what is gone; a killed run goes on.

        Args:
            slit: with a representation part.
            folder: searched with its subfolders.
            rebuild: forget everything first, also another model's embeddings.
            progress: called with (files done, files to do).

        Returns:
            IndexReport.

        Raises:
            InferenceError: no such folder, or an index of another model.
        """
        folder = Path(folder).expanduser().absolute()
        if not folder.is_dir():
            raise InferenceError(f"{folder}: expected a folder of audio, found none.")
        identity = model_identity(slit)
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if self.fault:
                logger.warning("the index is made again: %s", self.fault)
                self.fault = ""
            if rebuild or not self.facts:
                for part in self.parts:
                    part.unlink()
            else:
                self.check(slit)
            self.facts = {"schema": SCHEMA, "root": str(folder), "model": identity}
            write_json(self.path / "index.json", self.facts)
            self.root = folder
            there = {}
            for name in find_audio(folder):
                try:
                    status = (folder / name).stat()
                except OSError:  # a link to nothing; reading it says so
                    there[name] = (0, 0)
                else:
                    there[name] = (status.st_size, status.st_mtime_ns)
            known, removed = self._forget(there)
            new = [name for name in there if name not in known]
            added, skipped = self._embed(slit, new, there, progress)
        return IndexReport(len(known), added, removed, skipped)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.path / ".lock", "w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InferenceError(
                    f"{self.path}: another process updates this index; wait for it."
                ) from error
            yield

    def _forget(self, there: dict[str, tuple]) -> tuple[set[str], int]:
        """Drop rows whose file is gone or changed: (names kept, number dropped)."""
        known: set[str] = set()
        removed = 0
        for part in self.parts:
            with np.load(part, allow_pickle=False) as content:
                facts = (content["files"], content["sizes"], content["modified"])
                keep = np.array(
                    [
                        there.get(str(name)) == (int(size), int(modified))
                        and str(name) not in known
                        for name, size, modified in zip(*facts, strict=True)
                    ],
                    dtype=bool,
                )
                kept = {}
                if keep.any() and not keep.all():
                    rows = np.repeat(keep, content["rows"])
                    kept = {name: content[name][keep] for name in FILE_ARRAYS}
                    kept |= {name: content[name][rows] for name in ROW_ARRAYS}
            removed += int((~keep).sum())
            known.update(map(str, facts[0][keep]))
            if kept:
                self._write(part, kept)
            elif not keep.any():
                part.unlink()
        return known, removed

    def _embed(
        self,
        slit: SLIT,
        names: list[str],
        there: dict[str, tuple],
        progress: Callable[[int, int], None] | None,
    ) -> tuple[int, dict[str, str]]:
        """Embed files and write them: (number added, {file: fault} of the others)."""
        skipped: dict[str, str] = {}
        added, waiting = 0, []
        for k in range(0, len(names), slit.batch_size):
            some = names[k : k + slit.batch_size]
            for name, found in each(some, lambda files: self._rows(slit, files)):
                if isinstance(found, Exception):
                    skipped[name] = fault_of(name, found)
                    logger.warning("left out %s: %s", name, skipped[name])
                else:
                    waiting.append((name, *there[name], *found))
                    added += 1
            if progress is not None:
                progress(k + len(some), len(names))
            if sum(len(row[-1]) for row in waiting) >= PART_ROWS:
                self._write_part(waiting)
                waiting = []
        if waiting:
            self._write_part(waiting)
        return added, skipped

    def _rows(self, slit: SLIT, names: Sequence[str]) -> list[tuple]:
        """For each file (whole, starts, ends, embeddings) of its rows."""
        paths = [str(self.root / name) for name in names]
        opened = slit.clips(paths, any_length=True)
        short = [i for i, s in enumerate(opened.durations_s) if s <= slit.longest_s]
        found: dict[int, list[Windows]] = {i: [] for i in range(len(opened))}
        if short:
            with slit.encoded(Subset(opened, short)) as frames:
                for i, row in zip(short, embed_clips(slit, frames), strict=True):
                    ends = np.array([opened.durations_s[i]])
                    found[i] = [Windows(np.zeros(1), ends, row[None])]
                for k, i in enumerate(short):
                    if opened.durations_s[i] > WINDOW_S:
                        found[i] += embed_windows(slit, frames, k, [WINDOW_S])
        for i in set(found) - set(short):
            found[i] = embed_windows(slit, opened, i, [WINDOW_S])
        return [
            (
                i in short,
                np.concatenate([w.starts_s for w in found[i]]),
                np.concatenate([w.ends_s for w in found[i]]),
                np.concatenate([w.embeddings for w in found[i]]).astype(np.float16),
            )
            for i in range(len(opened))
        ]

    def _write_part(self, waiting: Sequence[tuple]) -> None:
        last = int(self.parts[-1].name.split(".")[1]) if self.parts else -1
        files, sizes, modified, whole, *rows = zip(*waiting, strict=True)
        content = {
            "files": np.array(files),
            "sizes": np.array(sizes, np.int64),
            "modified": np.array(modified, np.int64),
            "whole": np.array(whole, bool),
            "rows": np.array([len(starts) for starts in rows[0]], np.int64),
        }
        for name, arrays in zip(ROW_ARRAYS, rows, strict=True):
            content[name] = np.concatenate(arrays)
        self._write(self.path / f"part.{last + 1:05d}.npz", content)

    @staticmethod
    def _write(path: Path, arrays: dict[str, Any]) -> None:
        with atomic(path) as stream:
            np.savez(stream, **arrays)

    # ------------------------------------------------------------------ searching

    def search(
        self,
        slit: SLIT,
        text: str,
        top_k: int = 10,
        rerank: int = 0,
        moments: bool = False,
    ) -> list[Hit]:
        """Clips, or moments in them, that a text describes.

        Args:
            slit: the model that the index was made with.
            text: what is looked for.
            top_k: results wanted.
            rerank: best candidates that the matching head looks at again, which
                decodes their audio; 0 for none.
            moments: windows of clips instead of whole clips, several of one clip where
                they do not show much the same.

        Returns:
            List of Hit, best first; `index` counts the files of the index. A clip that
            is too long to be read at once is as good as its best window, and that is
            where its hit starts and ends.

        Raises:
            InferenceError: no index, or another model's.
        """
        self.check(slit)
        query = slit.embed_text(text)[None]  # (1,E)
        wanted = max(top_k, rerank)
        best: list[Hit] = []
        offset = 0
        for part in self.parts:
            with np.load(part, allow_pickle=False) as content:
                arrays = {name: content[name] for name in (*FILE_ARRAYS, *ROW_ARRAYS)}
            best += self._hits(arrays, query, wanted, moments, offset)
            best = sorted(best, key=lambda hit: (-hit.score, hit.index))[:wanted]
            offset += len(arrays["files"])
        if rerank and best:
            best = self._reranked(slit, text, best, rerank)
        return best[:top_k]

    def _hits(
        self,
        part: dict[str, np.ndarray],
        query: np.ndarray,
        wanted: int,
        moments: bool,
        offset: int,
    ) -> list[Hit]:
        """The best hits of a part; those of a file are moments, or one of them."""
        scores = similarity(part["embeddings"].astype(np.float32), query)[0]  # (R,)
        ends = np.cumsum(part["rows"])
        begins = ends - part["rows"]
        for begin, end, whole in zip(begins, ends, part["whole"], strict=True):
            # Of a clip with a row for the whole either this row counts, or the others.
            if whole and end - begin > 1:
                if moments:
                    scores[begin] = -np.inf
                else:
                    scores[begin + 1 : end] = -np.inf
        of_file = np.maximum.reduceat(scores, begins)
        hits = []
        for i in np.argsort(-of_file, kind="stable")[:wanted].tolist():
            rows = slice(begins[i], ends[i])
            start, end, score = part["starts"][rows], part["ends"][rows], scores[rows]
            path = str(self.root / str(part["files"][i]))
            for k in best_moments(start, end, score, wanted if moments else 1):
                if np.isfinite(score[k]):
                    place = (float(start[k]), float(end[k]))
                    hits.append(Hit(offset + i, float(score[k]), path, *place))
        return hits

    @staticmethod
    def _reranked(slit: SLIT, text: str, best: list[Hit], rerank: int) -> list[Hit]:
        """Hits with the matching logit added to the scores of the first ones."""
        top = best[:rerank]
        clips = AudioClips.of_clips(
            [Clip(str(h.index), str(h.item), h.start_s or 0.0, h.end_s) for h in top],
            slit.sample_rate,
        )
        logits = match_pairs(slit, clips, [text], [np.zeros(1, np.int64)] * len(top))
        scores = np.array([[hit.score for hit in best]])
        match = np.full_like(scores, np.nan)
        match[0, : len(top)] = np.concatenate(logits)
        looked_at = np.arange(len(top))[None]
        scores = rerank_rows(scores, match, looked_at, rerank_scale_of(slit))[0]
        found = [replace(h, score=float(s)) for s, h in zip(scores, best, strict=True)]
        return sorted(found, key=lambda hit: (-hit.score, hit.index))
