"""Systems whose queries read a clip window by window, and an index of windows."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_system
from tiny_system import RATE, SHORT, TEXTS

from espnet2_slit.inference.decode_options import DecodeOptions
from espnet2_slit.inference.decoding import decode_set
from espnet2_slit.inference.evaluation_set import EvaluationSet
from espnet2_slit.inference.retrieval import embed_clips
from espnet2_slit.inference.search_index import WINDOW_S, SearchIndex
from espnet2_slit.inference.slit import SLIT
from espnet2_slit.inference.system import link

QUERIES = 3  # of the tiny system


@pytest.fixture(scope="module")
def windowed(tmp_path_factory, tiny_parts):
    """A system with query windows of 0.32 s in all its stages."""
    folder = tmp_path_factory.mktemp("windowed")
    windows = {"qformer_conf": "query_window_s=0.32"}
    parts = [
        tiny_system.experiment(
            folder / f"tiny_{stage}", tiny_parts, stage, tiny_parts.llama, **windows
        )
        for stage in ("representation", "instruction")
    ]
    link(parts[1], parts)
    return SLIT.from_pretrained(parts[1])


def test_cached_frames_give_what_waveforms_give_with_query_windows(
    windowed, sets, tmp_path
):
    embeddings = {}
    for kind in ("data", "dump"):
        data = EvaluationSet(sets / kind / "test_caption", windowed)
        assert data.cached == (kind == "dump")
        embeddings[kind] = embed_clips(windowed, data.clips)
        options = DecodeOptions(caption=SHORT, question_answering=SHORT, rerank=3)
        for name in ("test_caption", "test_qa"):
            decode_set(windowed, sets / kind / name, tmp_path / kind / name, options)
    shape = embeddings["data"].shape
    assert shape[1] > QUERIES and shape[1] % QUERIES == 0  # more windows than one
    np.testing.assert_allclose(embeddings["data"], embeddings["dump"], atol=1e-3)
    for name in ("test_caption/caption", "test_qa/question_answering"):
        online, cached = (tmp_path / kind / name / "text" for kind in ("data", "dump"))
        assert online.read_text() == cached.read_text()
    with (
        np.load(tmp_path / "data/test_caption/retrieval/scores.npz") as online,
        np.load(tmp_path / "dump/test_caption/retrieval/scores.npz") as cached,
    ):
        for key in ("contrastive", "reranked_text_to_audio", "reranked_audio_to_text"):
            np.testing.assert_allclose(online[key], cached[key], atol=1e-3)


def test_moments_of_an_index_are_those_that_are_found_online(slit, tmp_path):
    random = np.random.default_rng(3)
    for name, seconds in (("short", 2), ("middle", 9), ("long", 14)):
        time = np.arange(RATE) / RATE
        tones = random.uniform(100, 4000, seconds)
        audio = np.concatenate([np.sin(2 * np.pi * tone * time) for tone in tones])
        soundfile.write(tmp_path / f"{name}.wav", 0.3 * audio, RATE)
    index = SearchIndex(tmp_path / ".slit_index")
    index.update(slit, tmp_path)
    files = sorted(map(str, tmp_path.glob("*.wav")))
    for text in TEXTS:
        online = slit.moments(text, files, top_k=6, window_s=[WINDOW_S])
        indexed = index.search(slit, text, top_k=6, moments=True)
        places = [
            [
                (Path(hit.item).name, round(hit.start_s, 3), round(hit.end_s, 3))
                for hit in hits
            ]
            for hits in (online, indexed)
        ]
        assert sorted(places[0]) == sorted(places[1]) and len(places[0]) > 3
        scores = [[hit.score for hit in hits] for hits in (online, indexed)]
        np.testing.assert_allclose(*scores, atol=2e-3)  # the index keeps halves
