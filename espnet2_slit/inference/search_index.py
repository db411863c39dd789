"""A folder of audio as an index on disk that texts search: embeddings, names, identity.

Owns which files are embedded, and with which model. Scores come from `inference`.

    INDEX/index.json       schema, root folder, identity of the model
    INDEX/part.00000.npz   files (n,), sizes (n,), modified (n,), embeddings (n, Q, E)

Every clip is compared with the text by one matrix product over parts read in turn, so
memory stays that of a part (1,000 clips). With 32 queries of 256 float16 values a clip
takes 16 KiB: from about a million clips on, where a search reads some 16 GB, an
approximate nearest-neighbour library would pay.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_slit.common.files import atomic, read_json, write_json
from espnet2_slit.common.identity import fingerprint, identity_differences
from espnet2_slit.data.audio import AudioError, is_audio, probe
from espnet2_slit.inference.ranking import rerank_rows, similarity
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.retrieval import match_pairs, rerank_scale_of
from espnet2_slit.inference.slit import SLIT, Hit

SCHEMA = 1
DEFAULT_NAME = ".slit_index"  # in the folder of audio
PART_CLIPS = 1000

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
    skipped: dict


def model_identity(slit: SLIT) -> dict:
    """What embeddings depend on: the encoder and the stage-1 weights.

    Raises:
        InferenceError: the system has no representation part.
    """
    if slit.representation is None:
        raise InferenceError(
            "an index needs a representation part, this system has none. Link a stage-1"
            " experiment to it (slit_pack --link)."
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
        self.facts = self._read_facts()
        self.root: Any = Path(self.facts["root"]) if self.facts else None

    def _read_facts(self) -> dict:
        file = self.path / "index.json"
        if not file.is_file():
            return {}
        remedy = "Delete the index and make it again."
        return read_json(file, SCHEMA, remedy, InferenceError)

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
                f"{self.path}: no index there. Make one: slit index FOLDER --index"
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
            if rebuild:
                for part in self.parts:
                    part.unlink()
            elif self.facts:
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
    def _lock(self):
        with open(self.path / ".lock", "w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InferenceError(
                    f"{self.path}: another process updates this index; wait for it."
                ) from error
            yield

    def _forget(self, there: dict) -> tuple[set, int]:
        """Drop rows whose file is gone or changed: (names kept, number dropped)."""
        known, removed = set(), 0
        for part in self.parts:
            with np.load(part, allow_pickle=False) as content:
                rows = {key: content[key] for key in ("files", "sizes", "modified")}
                keep = np.array(
                    [
                        there.get(str(name)) == (int(size), int(modified))
                        and str(name) not in known
                        for name, size, modified in zip(*rows.values(), strict=True)
                    ],
                    dtype=bool,
                )
                if not keep.all():
                    rows["embeddings"] = content["embeddings"]
            removed += int((~keep).sum())
            known.update(map(str, rows["files"][keep]))
            if not keep.any():
                part.unlink()
            elif not keep.all():
                self._write(part, {key: array[keep] for key, array in rows.items()})
        return known, removed

    def _embed(self, slit, names, there, progress) -> tuple[int, dict]:
        last = int(self.parts[-1].name.split(".")[1]) if self.parts else -1
        skipped, added = {}, 0
        for start in range(0, len(names), PART_CLIPS):
            chunk, usable = names[start : start + PART_CLIPS], []
            for name in chunk:
                try:
                    probe(self.root / name)
                    usable.append(name)
                except AudioError as error:
                    skipped[name] = str(error)
            kept, rows = [], []
            # Small steps, so that progress is seen.
            for k in range(0, len(usable), slit.batch_size):
                some = usable[k : k + slit.batch_size]
                for name, row in self._embed_some(slit, some, skipped):
                    kept.append(name)
                    rows.append(row)
                if progress is not None:
                    progress(start + k + len(some), len(names))
            if progress is not None:
                progress(start + len(chunk), len(names))
            if not kept:
                continue
            last += 1
            content = {
                "files": np.array(kept),
                "sizes": np.array([there[name][0] for name in kept], np.int64),
                "modified": np.array([there[name][1] for name in kept], np.int64),
                "embeddings": np.stack(rows).astype(np.float16),
            }
            self._write(self.path / f"part.{last:05d}.npz", content)
            added += len(kept)
        for name, fault in skipped.items():
            logger.warning("left out %s: %s", name, fault)
        return added, skipped

    def _embed_some(self, slit, names, skipped):
        try:
            rows = slit.embed_audio([str(self.root / name) for name in names])
            return list(zip(names, rows, strict=True))
        except AudioError:
            pass  # a file that breaks off while it is decoded: find out which
        found = []
        for name in names:
            try:
                found.append((name, slit.embed_audio(str(self.root / name))))
            except AudioError as error:
                skipped[name] = str(error)
        return found

    @staticmethod
    def _write(path: Path, arrays: dict) -> None:
        with atomic(path) as stream:
            np.savez(stream, **arrays)

    # ------------------------------------------------------------------ searching

    def search(self, slit: SLIT, text: str, top_k: int = 10, rerank: int = 0):
        """Clips that a text describes.

        Args:
            slit: the model that the index was made with.
            text: what is looked for.
            top_k: results wanted.
            rerank: best candidates that the matching head looks at again, which
                decodes their audio; 0 for none.

        Returns:
            List of Hit, best first; `index` counts the rows of the index.

        Raises:
            InferenceError: no index, or another model's.
        """
        self.check(slit)
        query = slit.embed_text(text)[None]  # (1,E)
        wanted = max(top_k, rerank)
        best: list[tuple[float, int, str]] = []
        offset = 0
        for part in self.parts:
            with np.load(part, allow_pickle=False) as content:
                names = content["files"]
                embeddings = content["embeddings"].astype(np.float32)
            scores = similarity(embeddings, query)[0]  # (n,)
            order = np.argsort(-scores, kind="stable")[:wanted]
            best += [(float(scores[i]), offset + int(i), str(names[i])) for i in order]
            best = sorted(best, key=lambda row: (-row[0], row[1]))[:wanted]
            offset += len(names)
        if rerank and best:
            top = best[:rerank]
            paths = [str(self.root / name) for _, _, name in top]
            pairs = [np.zeros(1, np.int64)] * len(top)
            logits = match_pairs(slit, slit.clips(paths), [text], pairs)
            scores = np.array([[score for score, _, _ in best]])
            match = np.full_like(scores, np.nan)
            match[0, : len(top)] = np.concatenate(logits)
            looked_at = np.arange(len(top))[None]
            scores = rerank_rows(scores, match, looked_at, rerank_scale_of(slit))[0]
            best = [
                (float(score), index, name)
                for score, (_, index, name) in zip(scores, best, strict=True)
            ]
            best = sorted(best, key=lambda row: (-row[0], row[1]))
        return [
            Hit(index, score, str(self.root / name))
            for score, index, name in best[:top_k]
        ]
