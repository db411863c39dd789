"""The audio of a report's examples: where it lies, and players that hold it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_slit.data.audio import probe, read_audio
from espnet2_slit.data.kaldi_dir import read_pairs
from espnet2_slit.scoring.metrics.score_table import ScoreTable
from espnet2_slit.scoring.read import load_arrays, strings

MAX_CLIP_S = 10.0  # embedded audio is cut here; 16 kHz, 16 bit: 0.43 MB of base64
MAX_EMBEDDED_S = 400.0  # audio in one page: 17 MB

# (audio file, start_s, end_s or None: with the file)
Source = tuple[str, float, float | None]


def audio_sources(
    table: ScoreTable, data_dirs: Mapping[str, Path], decode_dir: Path | None = None
) -> dict[str, dict[str, Source]]:
    """Where the audio of the report's examples is.

    Args:
        table: its `details` name the examples.
        data_dirs: {set: data directory}.
        decode_dir: where `<set>/attention.npz` may name more clips, or None.

    Returns:
        {set: {id: (path, start_s, end_s or None)}}; entries of wav.scp that are no
        plain file (pipes, archives) are left out.
    """
    found: dict[str, dict[str, Source]] = {}
    for set_name, folder in data_dirs.items():
        wanted = _example_ids(table.details.get(set_name, {}))
        attention = Path(decode_dir or "", set_name, "attention.npz")
        if decode_dir is not None and attention.is_file():
            wanted |= set(strings(load_arrays(attention, [("ids",)])["ids"]))
        if not wanted or not (folder / "wav.scp").is_file():
            continue
        crops: dict[str, Source] = {}
        if (folder / "segments").is_file():
            for key, value in read_pairs(folder / "segments"):
                if key in wanted:
                    recording, start, end = value.split()
                    until = float(end)
                    crops[key] = recording, float(start), until if until > 0 else None
        recordings = {crop[0] for crop in crops.values()} or wanted
        paths = {k: v for k, v in read_pairs(folder / "wav.scp") if k in recordings}
        found[set_name] = {}
        for key in wanted:
            recording, begin, stop = crops.get(key, (key, 0.0, None))
            path = paths.get(recording, "")
            if path and Path(path).is_file():
                found[set_name][key] = path, begin, stop
    return found


def _example_ids(details: Mapping[str, Any]) -> set[str]:
    wanted = {item["id"] for item in details.get("caption", [])}
    wanted |= {item["id"] for item in details.get("question_answering", [])}
    for item in details.get("retrieval", []):
        wanted |= {hit["audio"] for hit in item["first"]}
    return wanted


def read_clip(
    path: str, start_s: float = 0.0, end_s: float | None = None
) -> tuple[np.ndarray, int, bool]:
    """Mono samples of the first seconds of a clip, at 16 kHz or less.

    Args:
        path: audio file.
        start_s: where the clip begins.
        end_s: where it ends; None: with the file.

    Returns:
        (samples (S,) float32, rate, whether it was cut at `MAX_CLIP_S`).
    """
    info = probe(path)
    rate = min(info.sample_rate, 16000)
    last_s = info.duration_s if end_s is None else min(info.duration_s, end_s)
    shown_s = min(last_s, start_s + MAX_CLIP_S)
    return read_audio(path, rate, start_s, shown_s), rate, shown_s < last_s


class Players:
    """Audio elements, each clip embedded once, within the page's limit.

    Args:
        sources: of `audio_sources`.
    """

    def __init__(self, sources: Mapping[str, Mapping[str, Source]]) -> None:
        self._sources = sources
        self._made: dict[tuple[str, str], str] = {}
        self._embedded_s = 0.0

    def html(self, set_name: str, clip: str) -> str:
        """The element of a clip, or a word on why there is none."""
        key = (set_name, clip)
        if key not in self._made:
            if self._embedded_s >= MAX_EMBEDDED_S:
                return (
                    '<span class="quiet">audio left out to keep the page small</span>'
                )
            source = self._sources.get(set_name, {}).get(clip)
            self._made[key] = self._make(source)
        return self._made[key]

    def _make(self, source: Source | None) -> str:
        if source is None:
            return '<span class="quiet">no audio file in wav.scp</span>'
        try:
            samples, rate, cut = read_clip(*source)
        except (RuntimeError, OSError, ValueError) as error:
            said = html.escape(str(error))
            return f'<span class="quiet">audio not embedded: {said}</span>'
        import soundfile

        self._embedded_s += len(samples) / rate
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
        data = base64.b64encode(buffer.getvalue()).decode()
        note = f' <span class="quiet">first {MAX_CLIP_S:g} s</span>' if cut else ""
        return (
            f'<audio controls preload="metadata" src="data:audio/wav;base64,{data}">'
            f"</audio>{note}"
        )
