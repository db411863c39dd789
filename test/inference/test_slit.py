"""SLIT: one result, however it is asked for."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from tiny_system import SHORT

from espnet2_slit.common.padded import Padded
from espnet2_slit.inference.attention import attention
from espnet2_slit.inference.classification import label_likelihoods
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.slit import SLIT
from espnet2_slit.inference.system import read_system


@pytest.mark.parametrize("batch_size", [1, 3])
def test_results_do_not_depend_on_batch_size(folder, slit, clips, batch_size):
    other = SLIT.from_pretrained(folder, batch_size=batch_size)
    assert other.caption(clips, options=SHORT) == slit.caption(clips, options=SHORT)
    np.testing.assert_allclose(
        other.embed_audio(clips), slit.embed_audio(clips), atol=2e-5
    )
    for route in ("similarity", "matching", "language_model"):
        one = other.classify(clips, ["dog", "rain", "bell"], route=route)
        two = slit.classify(clips, ["dog", "rain", "bell"], route=route)
        for a, b in zip(one, two, strict=True):
            assert a.label == b.label
            for label, score in a.scores.items():
                assert score == pytest.approx(b.scores[label], abs=1e-4)


def test_extracted_features_are_what_embeddings_are_made_of(slit, clips):
    audio, rate = soundfile.read(clips[1], dtype="float32")
    found = slit.extract_features([audio, clips[0]], sampling_rate=rate)
    hidden = found["last_hidden_state"]
    with torch.inference_mode():
        heads = slit.representation.model.heads
        embedded = heads.embed_audio(Padded(torch.from_numpy(hidden))).numpy()
    expected = slit.embed_audio([clips[1], clips[0]])
    np.testing.assert_allclose(embedded, expected, atol=1e-5)
    one = slit.extract_features(audio, rate, return_tensors="pt")["last_hidden_state"]
    torch.testing.assert_close(one[0], torch.from_numpy(hidden[0]), atol=1e-5, rtol=0)
    with pytest.raises(InferenceError, match="'np' or 'pt', found 'tf'"):
        slit.extract_features(audio, rate, return_tensors="tf")


def test_one_clip_equals_its_place_in_a_list(slit, clips):
    captions = slit.caption(clips, options=SHORT)
    sums, _ = label_likelihoods(slit, slit.clips(clips), ["a dog barks"])
    assert np.ptp(sums) > 1e-3  # the clips are not all alike to the language model
    assert slit.caption(clips[2], options=SHORT) == captions[2]
    assert slit.caption([clips[2]], options=SHORT) == [captions[2]]
    np.testing.assert_allclose(
        slit.embed_audio(clips[4]), slit.embed_audio(clips)[4], atol=2e-5
    )
    one, _ = label_likelihoods(slit, slit.clips([clips[2]]), ["a dog barks"])
    np.testing.assert_allclose(one[0], sums[2], atol=1e-4)
    assert slit.embed_audio(clips[4]).shape == (3, 8)
    np.testing.assert_allclose(
        np.linalg.norm(slit.embed_audio(clips), axis=-1), 1, atol=1e-5
    )


def test_missing_part_is_named(folder, clips):
    lone = SLIT.from_pretrained(folder.parent / "tiny_representation")
    assert lone.generator is None
    assert lone.embed_text("a dog barks").shape == (8,)
    with pytest.raises(InferenceError, match="no generator part.*slit_pack --link"):
        lone.caption(clips[0])


def test_moved_encoder_is_verified(folder, tiny_parts, tmp_path, clips):
    import tiny

    moved = tmp_path / "elsewhere.pt"
    shutil.copyfile(tiny_parts.beats, moved)
    slit = SLIT.from_pretrained(folder, audio_encoder=str(moved))
    assert slit.embed_audio(clips[0]).shape == (3, 8)
    other = tiny.beats_checkpoint(tmp_path / "other", seed=1)
    slit = SLIT.from_pretrained(folder, audio_encoder=str(other))
    with pytest.raises(
        InferenceError, match="is not the encoder of the training.*fing"
    ):
        slit.embed_audio(clips[0])
    slit = SLIT.from_pretrained(folder, audio_encoder=str(tmp_path / "none.pt"))
    with pytest.raises(InferenceError, match="found nothing. Pass its path"):
        slit.embed_audio(clips[0])


def test_class_is_found_in_the_package():
    import espnet2_slit

    assert espnet2_slit.SLIT is SLIT
    with pytest.raises(AttributeError, match="SLITT"):
        espnet2_slit.SLITT  # noqa: B018


def test_system_is_found_by_its_linked_parts(folder):
    system = read_system(folder)
    assert set(system.parts) == {"representation", "generator"}


def test_a_string_is_not_a_list_of_letters(slit, clips):
    for call in (
        lambda: slit.classify(clips[0], "dog"),
        lambda: slit.answer(clips[0], "is it loud?", candidates="yes"),
        lambda: slit.classify(clips[0], ["dog"], label_templates="a {}"),
    ):
        with pytest.raises(InferenceError, match=r"expected a list.*found the string"):
            call()


def test_empty_words_are_errors_of_their_own(slit, clips):
    for call in (
        lambda: slit.answer(clips[0], " "),
        lambda: slit.answer(clips[:2], ["what?", ""]),
        lambda: slit.search("", clips),
        lambda: slit.search(["a dog", "\n"], clips),
        lambda: slit.embed_text(""),
        lambda: slit.classify(clips[0], ["dog", ""]),
        lambda: slit.answer(clips[0], "what?", candidates=["yes", " "]),
    ):
        with pytest.raises(InferenceError, match="is empty"):
            call()


def test_threads_share_a_system(slit, clips):
    """What many threads ask at once is what one asks after the other."""
    words = ["dog", "a bell rings", "water flows"]
    works = [
        lambda: slit.caption(clips[0], options=SHORT),
        lambda: slit.classify(clips[1], words, route="language_model").scores,
        lambda: slit.answer(clips[2], "what is it?", candidates=words),
        lambda: attention(slit, slit.clips([clips[3]]))[0].tolist(),
        lambda: attention(slit, slit.clips([clips[4]]))[0].tolist(),
    ] * 3
    expected = [work() for work in works]
    with ThreadPoolExecutor(8) as pool:
        found = [future.result() for future in [pool.submit(w) for w in works]]
    assert found == expected
