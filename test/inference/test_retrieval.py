"""Retrieval and re-ranking equal plain loops over pairs."""

import numpy as np
import pytest
import soundfile
import torch
from tiny_system import RERANKED, TEXTS

from espnet2_slit.common.padded import Padded
from espnet2_slit.inference.decode_options import DecodeOptions
from espnet2_slit.inference.generation import generate_and_score, prefixes
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.retrieval import rerank_captions, retrieve
from espnet2_slit.inference.slit import SLIT
from espnet2_slit.model.language_model import GenerationOptions


def plain_match(slit, path, text):
    """The matching logit of one pair, computed on its own."""
    part = slit.representation
    audio, _ = soundfile.read(path, dtype="float32")
    frames = slit.encoder(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
    memory = part.model.qformer.encode_frames(Padded(*frames))
    text = Padded(torch.from_numpy(part.text_ids(text))[None])
    zero = torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        return part.model.match(memory, text, zero, zero).item()


@pytest.mark.parametrize("rerank, scale", [(2, None), (100, None), (2, 1.0)])
def test_reranking_equals_a_plain_loop(slit, clips, rerank, scale):
    found = retrieve(slit, slit.clips(clips), TEXTS, rerank, rerank_scale=scale)
    audio, text = slit.embed_audio(clips), slit.embed_text(TEXTS)
    cosine = np.array([[(a @ t).max() for a in audio] for t in text])
    np.testing.assert_allclose(found["contrastive"], cosine, atol=1e-5)
    loop = np.array([[plain_match(slit, c, t) for c in clips] for t in TEXTS])
    factor = scale or 1 / slit.representation.model.temperature
    for name, axis in (("reranked_text_to_audio", 1), ("reranked_audio_to_text", 0)):
        best = np.argsort(-cosine, axis=axis, kind="stable")
        best = np.take(best, range(min(rerank, cosine.shape[axis])), axis=axis)
        expected = np.take_along_axis(factor * cosine + loop, best, axis)
        np.testing.assert_allclose(
            np.take_along_axis(found[name], best, axis), expected, atol=1e-4
        )
        # What was not looked at again stands below, in its old order.
        rest = found[name].copy()
        np.put_along_axis(rest, best, np.nan, axis)
        if np.isfinite(rest).any():
            assert np.nanmax(rest - expected.min(axis=axis, keepdims=True)) < 0
            shift = rest - factor * cosine
            shift -= np.nanmax(shift, axis=axis, keepdims=True)
            np.testing.assert_allclose(shift[np.isfinite(shift)], 0, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_reranked_captions_are_those_of_a_plain_loop(folder, slit, clips, batch_size):
    part, scale = slit.generator, 1 / slit.representation.model.temperature
    expected, written = [], []
    for clip in clips:
        request = [(0, "describe the audio")]
        ((_, *inputs),) = prefixes(slit, part, slit.clips([clip]), request)
        texts = part.model.language_model.generate_several(
            *inputs, GenerationOptions(**RERANKED)
        )[0]
        audio = slit.embed_audio(clip)
        fit = [
            scale * (audio @ slit.embed_text(text)).max()
            + plain_match(slit, clip, text)
            for text in texts
        ]
        expected.append(texts[int(np.argmax(fit))])
        written.append(texts[::-1])
    other = SLIT.from_pretrained(folder, batch_size=batch_size)
    found = other.caption(clips, instruction="describe the audio", options=RERANKED)
    assert found == expected
    two = [(1, "describe the audio"), (0, "describe the audio")]
    texts, _ = generate_and_score(other, other.clips(clips), two, options=RERANKED)
    assert texts == [expected[1], expected[0]]
    # The order of the beams does not decide.
    found = rerank_captions(other, other.clips(clips), range(len(clips)), written)
    assert found == expected


def test_only_captions_are_reranked(slit, clips):
    with pytest.raises(InferenceError, match="rerank is for captions, found 4"):
        slit.answer(clips[0], "what is it?", options=RERANKED)
    with pytest.raises(InferenceError, match="rerank is for captions"):
        DecodeOptions(question_answering={"rerank": 2})
    with pytest.raises(InferenceError, match="at most num_beams"):
        slit.caption(clips[0], options={"num_beams": 2, "rerank": 4})


def test_search_directions_are_not_swapped(slit, clips):
    found = retrieve(slit, slit.clips(clips), TEXTS, 0)["contrastive"]
    hits = slit.search(TEXTS[1], clips, rerank=0, top_k=3)
    assert [hit.index for hit in hits] == np.argsort(-found[1])[:3].tolist()
    assert hits[0].item == clips[hits[0].index]
    hits = slit.search(TEXTS, clips[1], direction="audio_to_text", rerank=0)
    assert [hit.index for hit in hits] == np.argsort(-found[:, 1]).tolist()
    assert hits[0].item == TEXTS[hits[0].index]
    many = slit.search(TEXTS, clips, rerank=2, top_k=1)
    assert len(many) == len(TEXTS) and len(many[0]) == 1
    with pytest.raises(InferenceError, match="text_to_audio"):
        slit.search(TEXTS, clips, direction="both")


def test_waveforms_are_encoded_once_for_both_passes(slit, clips, monkeypatch):
    count = []
    forward = slit.encoder.forward

    def counted(speech, lengths):
        count.append(len(speech))
        return forward(speech, lengths)

    monkeypatch.setattr(slit.encoder, "forward", counted)
    retrieve(slit, slit.clips(clips), TEXTS, 3)
    assert sum(count) == len(clips)
    slit.caption(clips, options=RERANKED)
    assert sum(count) == 2 * len(clips)


def test_frames_are_projected_once_for_the_choice_among_captions(slit, clips, passes):
    rerank_captions(slit, slit.clips(clips), range(len(clips)), [TEXTS] * len(clips))
    assert passes == {"encoded": len(clips), "projected": len(clips)}
