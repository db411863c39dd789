"""Tests of the encoder for mteb: by its contract, and by mteb itself where it is."""

import inspect

import numpy as np
import pytest
import tiny_system
import torch
from torch.utils.data import DataLoader

from espnet2_slit.common.compat import is_installed
from espnet2_slit.inference.mteb import SLITEncoder
from espnet2_slit.inference.slit import InferenceError

TEXTS = ["a dog barks", "a bell rings", "rain"]
needs_mteb = pytest.mark.skipif(not is_installed("mteb"), reason="mteb is not here")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, tiny_parts):
    folder = tiny_system.system(tmp_path_factory.mktemp("exp"), tiny_parts)
    return SLITEncoder(str(folder), device="cpu")


def sounds():
    """Four clips of different length, rate and number of channels."""
    clips = []
    for i, rate in enumerate((16000, 16000, 44100, 22050)):
        random = np.random.default_rng(i)
        audio = 0.3 * np.sin(np.arange(rate // 2 + 500 * i) * 0.03 * (i + 1))
        audio = audio + 0.05 * random.standard_normal(len(audio))
        if i == 2:
            audio = np.stack([audio, 0.5 * audio])
        clips.append({"array": audio.astype(np.float32), "sampling_rate": rate})
    return clips


def loader(name, values, batch_size=2):
    """As mteb's: a DataLoader whose own collate function stacks."""
    rows = [{name: value, "id": str(i)} for i, value in enumerate(values)]
    return DataLoader(rows, batch_size)


def plain(name, values):
    """Batches without a DataLoader."""
    return [{name: values[:3]}, {name: values[3:]}]


def audio_rows(encoder, batch_size=2):
    return encoder.encode(loader("audio", sounds(), batch_size))


def test_clip_is_the_systems_embedding_flattened(encoder):
    found = audio_rows(encoder)
    one = sounds()[2]
    expected = encoder.model.embed_audio((one["array"], one["sampling_rate"]))
    np.testing.assert_allclose(found[2] * 3**0.5, expected.reshape(-1), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_embeddings_do_not_depend_on_batches(encoder):
    np.testing.assert_allclose(
        audio_rows(encoder, 1), audio_rows(encoder, 4), atol=1e-5
    )
    np.testing.assert_allclose(
        encoder.get_audio_embeddings(plain("audio", sounds())),
        audio_rows(encoder),
        atol=1e-5,
    )


def test_similarity_of_texts_and_clips_is_that_of_search(encoder):
    audio = audio_rows(encoder)
    text = encoder.encode(plain("text", [*TEXTS, "wind"]))
    clips = [(one["array"], one["sampling_rate"]) for one in sounds()]
    scores = encoder.similarity(text, audio)
    for row, query in zip(scores, [*TEXTS, "wind"], strict=True):
        for hit in encoder.model.search(query, clips, rerank=0):
            assert row[hit.index].item() == pytest.approx(hit.score, abs=1e-5)
    torch.testing.assert_close(encoder.similarity(audio, text), scores.T)
    torch.testing.assert_close(
        encoder.similarity_pairwise(torch.from_numpy(text), audio), scores.diagonal()
    )


def test_likeness_of_one_kind_is_a_cosine(encoder):
    for rows in (audio_rows(encoder), encoder.encode(plain("text", [*TEXTS, "x"]))):
        scores = encoder.similarity(rows, rows)
        np.testing.assert_allclose(scores.diagonal(), 1, atol=1e-5)
        np.testing.assert_allclose(scores, rows @ rows.T, atol=1e-6)
    assert encoder.similarity(rows[0], rows).shape == (1, 4)


def test_loader_says_what_it_holds(encoder):
    audio = encoder.encode(
        loader("audio", sounds()), task_metadata=None, hf_split="test", hf_subset="x"
    )
    np.testing.assert_array_equal(audio, audio_rows(encoder))
    with pytest.raises(InferenceError, match="found the columns .*'id', 'image'"):
        encoder.encode(loader("image", [1, 2]))
    both = [{"audio": sounds()[:1], "text": TEXTS[:1]}]
    with pytest.raises(InferenceError, match="one at a time"):
        encoder.encode(both)


def test_system_without_a_representation_part_is_refused(tmp_path, tiny_parts):
    alone = tiny_system.experiment(tmp_path / "generative", tiny_parts, "generative")
    with pytest.raises(InferenceError, match="embeddings need a representation part"):
        SLITEncoder(str(alone), device="cpu")


# ----------------------------------------------------------------------- with mteb


@needs_mteb
def test_protocol_of_mteb_is_kept(encoder):
    from mteb.models.models_protocols import EncoderProtocol

    assert isinstance(encoder, EncoderProtocol)
    for name in ("__init__", "encode", "similarity", "similarity_pairwise"):
        wanted = inspect.signature(getattr(EncoderProtocol, name)).parameters
        given = inspect.signature(getattr(SLITEncoder, name)).parameters
        named = {n for n, p in wanted.items() if p.kind is not p.VAR_KEYWORD}
        assert named <= set(given), name
    card = encoder.mteb_model_meta
    assert card.modalities == ["audio", "text"]
    assert card.embed_dim == audio_rows(encoder).shape[1]


@needs_mteb
def test_mteb_scores_the_system(encoder, tmp_path):
    import mteb
    from datasets import Dataset, DatasetDict
    from mteb.mocks import MockAudioZeroshotClassificationTask

    clips, labels = sounds(), [0, 1, 0, 1]

    class Task(MockAudioZeroshotClassificationTask):
        def load_data(self, **_):
            # datasets.Audio decodes by torchcodec; what mteb asks of it is this dict.
            rows = [
                {"audio": {**c, "array": np.ravel(c["array"])}, "label": label}
                for c, label in zip(clips, labels, strict=True)
            ]
            self.dataset = DatasetDict(test=Dataset.from_list(rows))
            self.data_loaded = True

        def get_candidate_labels(self):
            return TEXTS[:2]

    found = mteb.evaluate(encoder, Task(), cache=None, overwrite_strategy="always")
    score = found[0].scores["test"][0]["accuracy"]
    audio = encoder.encode(
        loader("audio", [{**c, "array": np.ravel(c["array"])} for c in clips])
    )
    best = encoder.similarity(audio, encoder.model.embed_text(TEXTS[:2])).argmax(1)
    assert score == pytest.approx((best.numpy() == labels).mean())
