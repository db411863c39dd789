"""Tests of SLIT and of decoding: one result, however it is asked for."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_system
import torch

from espnet2_slit.bin import slit_encode, slit_inference
from espnet2_slit.common import templates
from espnet2_slit.common.files import sha256
from espnet2_slit.data import feature_cache, kaldi_matrix
from espnet2_slit.data.audio import AudioError
from espnet2_slit.data.kaldi_dir import read_map
from espnet2_slit.inference.decoding import DecodeOptions, decode_set
from espnet2_slit.inference.slit import (
    SLIT,
    Features,
    InferenceError,
    packing,
    rerank_rows,
    similarity,
    top_indices,
    wanted_pairs,
)
from espnet2_slit.model.audio_encoder import build_audio_encoder
from espnet2_slit.model.language_model import GenerationOptions

RATE = 16000
SHORT = {"max_new_tokens": 6, "num_beams": 2}
TEXTS = [
    "a dog barks twice",
    "a bell rings while water flows in the background",
    "loud rain falls on a roof",
    "birds chirp",
    "an engine starts, runs, and stops; someone laughs",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_parts):
    return tiny_system.system(tmp_path_factory.mktemp("exp"), tiny_parts)


@pytest.fixture(scope="module")
def slit(folder):
    return SLIT.from_pretrained(folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Seven clips of different length and sound."""
    folder = tmp_path_factory.mktemp("wav")
    paths = []
    for i in range(7):
        random = np.random.default_rng(i)
        time = np.arange(int(RATE * (0.4 + 0.13 * i))) / RATE
        audio = 0.4 * np.sin(2 * np.pi * 200 * (i + 1) * time)
        audio += 0.1 * random.standard_normal(len(time))
        paths.append(folder / f"clip {i}.wav")
        soundfile.write(paths[-1], audio.astype(np.float32), RATE, subtype="FLOAT")
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def sets(tmp_path_factory, clips, tiny_parts):
    """data/<set> with waveforms and dump/<set> with their cached features."""
    root = tmp_path_factory.mktemp("sets")

    def write(name, tasks, samples, **files):
        target = root / "data" / name
        target.mkdir(parents=True)
        content = {
            "wav.scp": [f"{s} {clips[i]}" for s, i in samples],
            "text": [f"{s} {TEXTS[i % 5]}" for s, i in samples],
            "utt2spk": [f"{s} dummy" for s, _ in samples],
            **files,
        }
        for key, lines in content.items():
            lines = lines if key in ("labels", "answers") else sorted(lines)
            (target / key).write_text("".join(f"{line}\n" for line in lines))
        facts = {"schema": 1, "name": name, "tasks": tasks, "zero_shot": False}
        (target / "set.json").write_text(json.dumps(facts))

    ids = [(f"clip{i}", i) for i in range(7)]
    write(
        "test_caption",
        ["caption", "retrieval"],
        ids,
        references=[f"clip{i} {TEXTS[(i + j) % 5]}" for i in range(7) for j in (0, 1)],
    )
    questions = [(f"clip{i}_q{j}", i) for i in range(7) for j in (0, 1)]
    write(
        "test_qa",
        ["question_answering"],
        questions,
        utt2audio=[f"{s} clip{i}" for s, i in questions],
        instruction=[f"{s} what is it? {s[-1]}" for s, _ in questions],
        answers=["yes", "no", "a dog", "two"],
    )
    write("test_class", ["classification"], ids, labels=["dog_bark", "rain", "bell"])
    for name in ("test_caption", "test_qa", "test_class"):
        status = slit_encode.main(
            ["--data_dir", str(root / "data" / name),
             "--output_dir", str(root / "dump" / name),
             "--audio_encoder", "beats",
             "--audio_encoder_conf", f"path={tiny_parts.beats}",
             "--shard_clips", "3",
             "--dtype", "float32"]
        )  # fmt: skip
        assert status == 0
    return root


# ------------------------------------------------------------- one result for one clip


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


def test_answers_do_not_depend_on_batch_neighbours(folder, slit, clips):
    questions = ["loud?", "how many times does the bird chirp? answer shortly."] * 4
    questions = questions[: len(clips)]
    other = SLIT.from_pretrained(folder, batch_size=1)
    requests = list(enumerate(questions))
    answers = ["yes", "a rising tone, a falling tone"]
    one, two = (
        s.respond(s.clips(clips), requests, options=SHORT, candidates=answers)
        for s in (slit, other)
    )
    assert one[0] == two[0]
    np.testing.assert_allclose(one[1], two[1], atol=1e-4)


def test_extracted_features_are_what_embeddings_are_made_of(slit, clips):
    audio, rate = soundfile.read(clips[1], dtype="float32")
    found = slit.extract_features([audio, clips[0]], sampling_rate=rate)
    hidden = found["last_hidden_state"]
    with torch.inference_mode():
        heads = slit.representation.model.heads
        embedded = heads.embed_audio(torch.from_numpy(hidden)).numpy()
    expected = slit.embed_audio([clips[1], clips[0]])
    np.testing.assert_allclose(embedded, expected, atol=1e-5)
    one = slit.extract_features(audio, rate, return_tensors="pt")["last_hidden_state"]
    torch.testing.assert_close(one[0], torch.from_numpy(hidden[0]), atol=1e-5, rtol=0)
    with pytest.raises(InferenceError, match="'np' or 'pt', found 'tf'"):
        slit.extract_features(audio, rate, return_tensors="tf")


def test_one_clip_equals_its_place_in_a_list(slit, clips):
    captions = slit.caption(clips, options=SHORT)
    sums, _ = slit.label_likelihoods(slit.clips(clips), ["a dog barks"])
    assert np.ptp(sums) > 1e-3  # the clips are not all alike to the language model
    assert slit.caption(clips[2], options=SHORT) == captions[2]
    assert slit.caption([clips[2]], options=SHORT) == [captions[2]]
    np.testing.assert_allclose(
        slit.embed_audio(clips[4]), slit.embed_audio(clips)[4], atol=2e-5
    )
    one, _ = slit.label_likelihoods(slit.clips([clips[2]]), ["a dog barks"])
    np.testing.assert_allclose(one[0], sums[2], atol=1e-4)
    assert slit.embed_audio(clips[4]).shape == (3, 8)
    np.testing.assert_allclose(
        np.linalg.norm(slit.embed_audio(clips), axis=-1), 1, atol=1e-5
    )


def test_arrays_tensors_and_files_agree(slit, clips):
    expected = slit.embed_audio(clips[3])
    audio, rate = soundfile.read(clips[3], dtype="float32")
    stereo = np.stack([audio, audio], axis=1)
    for item in (audio, torch.from_numpy(audio), stereo, stereo.T, Path(clips[3])):
        np.testing.assert_allclose(
            slit.embed_audio(item, sample_rate=rate), expected, atol=1e-5
        )
    np.testing.assert_allclose(slit.embed_audio((audio, rate)), expected, atol=1e-5)
    mixed = slit.embed_audio([(audio, rate), clips[3], audio], sample_rate=rate)
    np.testing.assert_allclose(mixed, np.stack([expected] * 3), atol=1e-5)


@pytest.mark.parametrize("name", ["x.flac", "x.ogg", "x.wav"])
@pytest.mark.parametrize("rate, channels", [(8000, 1), (44100, 2)])
def test_any_format_is_captioned(slit, tmp_path, name, rate, channels):
    audio = np.random.default_rng(0).uniform(-0.3, 0.3, (rate // 2, channels))
    soundfile.write(tmp_path / name, audio, rate)
    assert isinstance(slit.caption(tmp_path / name, options=SHORT), str)


def test_long_audio_is_read_to_its_end(slit):
    """Longer than the encoder's window: later sound changes the result."""
    seconds = slit.encoder.max_duration_s * 2.5
    random = np.random.default_rng(0)
    audio = random.uniform(-0.1, 0.1, int(RATE * seconds)).astype(np.float32)
    other = audio.copy()
    other[-2 * RATE :] *= 5
    one, two = slit.embed_audio([audio, other], sample_rate=RATE)
    assert np.abs(one - two).max() > 1e-3


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_text("no audio"), "cannot be read as audio"),
        (lambda p: soundfile.write(p, np.zeros(0), RATE), "0.0000 s"),
        (
            lambda p: soundfile.write(p, np.full(RATE, np.nan), RATE, subtype="FLOAT"),
            "NaN",
        ),
        (lambda p: None, "no such audio file"),
    ],
)
def test_bad_audio_is_named(slit, clips, tmp_path, make, message):
    path = tmp_path / "bad.wav"
    make(path)
    with pytest.raises(AudioError, match=f"bad.wav.*{message}"):
        slit.caption([clips[0], path], options=SHORT)


def test_array_without_rate_is_an_error(slit):
    with pytest.raises(AudioError, match="sample_rate="):
        slit.caption(np.zeros(RATE, np.float32))


# ------------------------------------------------------------------------- writing


def test_each_clip_gets_its_own_question(slit, clips):
    questions = ["what is making the sound?", "how many times does it bark?"]
    both = slit.answer([clips[0], clips[0]], questions, options=SHORT)
    for question, answer in zip(questions, both, strict=True):
        assert slit.answer(clips[0], question, options=SHORT) == answer
    with pytest.raises(InferenceError, match="2 clips, found 1"):
        slit.answer(clips[:2], ["why?"])


def test_candidates_are_ranked_by_likelihood(slit, clips):
    answers = ["yes", "no", "a falling tone"]
    part = slit.generator
    best = slit.answer(clips, "is it loud?", candidates=answers)
    for clip, found in zip(clips, best, strict=True):
        audio, _ = soundfile.read(clip, dtype="float32")
        frames = slit.encoder(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
        prompt = {
            name: torch.from_numpy(ids)[None]
            for name, ids in part.prompt("is it loud?").items()
        }
        lengths = {name: torch.tensor([ids.shape[1]]) for name, ids in prompt.items()}
        prefix, _ = part.model.prefix(
            *frames, prompt["qformer_instruction"], lengths["qformer_instruction"]
        )
        scores = []
        for answer in answers:
            ids = torch.tensor([part.model.language_model.encode_target(answer)])
            total, _, _ = part.model.language_model.loss(
                prefix,
                prompt["llm_prompt"],
                lengths["llm_prompt"],
                ids,
                torch.tensor([ids.shape[1]]),
            )
            scores.append(-total.item())
        assert found == answers[int(np.argmax(scores))]


def test_unknown_decoding_option_is_named(slit, clips):
    with pytest.raises(InferenceError, match="num_beam.*Known: num_beams"):
        slit.caption(clips[0], options={"num_beam": 3})


def test_instruction_changes_the_prefix(slit, clips):
    part = slit.generator
    assert set(part.prompt("what is it?")) == {"llm_prompt", "qformer_instruction"}
    speech = slit.clips(clips[:1])
    requests = [(0, "what is it?"), (0, "describe the audio: birds chirp")]
    ((_, inputs),) = slit._prefixes(part, speech, requests)
    prefix = inputs["prefix"]
    assert (prefix[0] - prefix[1]).abs().max() > 1e-3


# --------------------------------------------------------------------- classifying


def test_language_model_route_takes_the_likeliest_label(slit, clips):
    labels = ["dog_bark", "rain", "water flows in the background"]
    speech = slit.clips(clips)
    sums, lengths = slit.label_likelihoods(speech, labels)
    for normalize, scores in (("sum", sums), ("mean", sums / lengths)):
        found = slit.classify(
            clips, labels, route="language_model", normalize=normalize
        )
        assert [one.label for one in found] == [
            labels[i] for i in scores.argmax(axis=1)
        ]
    assert lengths[2] > lengths[1]


def test_label_templates_are_an_ensemble(slit, clips):
    speech = slit.clips(clips)
    scores = slit.label_similarities(speech, ["dog", "bell"], ["{}", "a {} rings"])
    audio = slit.embed_audio(clips)
    for c, label in enumerate(["dog", "bell"]):
        text = slit.embed_text([label, f"a {label} rings"]).mean(axis=0)
        text /= np.linalg.norm(text)
        expected = (audio @ text).max(axis=1)
        np.testing.assert_allclose(scores[:, c], expected, atol=1e-5)
    with pytest.raises(InferenceError, match="expected '{}' for the label"):
        slit.classify(clips[0], ["dog"], label_templates=["a sound"])


def test_wrong_classification_requests(slit, clips):
    with pytest.raises(InferenceError, match="route: expected one of"):
        slit.classify(clips[0], ["dog"], route="guess")
    with pytest.raises(InferenceError, match="different labels"):
        slit.classify(clips[0], ["dog", "dog"])
    with pytest.raises(InferenceError, match="at least one text"):
        slit.classify(clips[0], [])


# ---------------------------------------------------------------------- retrieving


def plain_match(slit, path, text):
    """The matching logit of one pair, computed on its own."""
    part = slit.representation
    audio, _ = soundfile.read(path, dtype="float32")
    frames = slit.encoder(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
    memory = part.model.qformer.read_frames(*frames)
    ids = torch.from_numpy(part.text_ids(text))[None]
    zero = torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        return part.model.match(
            memory, ids, torch.tensor([ids.shape[1]]), zero, zero
        ).item()


@pytest.mark.parametrize("rerank, scale", [(2, None), (100, None), (2, 1.0)])
def test_reranking_equals_a_plain_loop(slit, clips, rerank, scale):
    found = slit.retrieve(slit.clips(clips), TEXTS, rerank, rerank_scale=scale)
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


RERANKED = {"num_beams": 4, "max_new_tokens": 8, "rerank": 4}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_reranked_captions_are_those_of_a_plain_loop(folder, slit, clips, batch_size):
    part, scale = slit.generator, 1 / slit.representation.model.temperature
    expected, written = [], []
    for clip in clips:
        request = [(0, "describe the audio")]
        ((_, inputs),) = slit._prefixes(part, slit.clips([clip]), request)
        texts = part.model.language_model.generate_several(
            **inputs, options=GenerationOptions(**RERANKED)
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
    texts, _ = other.respond(other.clips(clips), two, options=RERANKED)
    assert texts == [expected[1], expected[0]]
    # The order of the beams does not decide.
    found = other.most_fitting(other.clips(clips), range(len(clips)), written)
    assert found == expected


def test_only_captions_are_reranked(slit, clips):
    with pytest.raises(InferenceError, match="rerank is for captions, found 4"):
        slit.answer(clips[0], "what is it?", options=RERANKED)
    with pytest.raises(InferenceError, match="rerank is for captions"):
        DecodeOptions(question_answering={"rerank": 2})
    with pytest.raises(InferenceError, match="at most num_beams"):
        slit.caption(clips[0], options={"num_beams": 2, "rerank": 4})


def test_search_directions_are_not_swapped(slit, clips):
    found = slit.retrieve(slit.clips(clips), TEXTS, 0)["contrastive"]
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
    slit.retrieve(slit.clips(clips), TEXTS, 3)
    assert sum(count) == len(clips)
    slit.caption(clips, options=RERANKED)
    assert sum(count) == 2 * len(clips)


def test_scores_of_small_cases():
    audio = np.array([[[1, 0], [0, 1]], [[-1, 0], [0, -1]]], np.float32)
    text = np.array([[0, 1], [-1, 0], [0.6, 0.8]], np.float32)
    expected = [[1, 0], [0, 1], [0.8, -0.6]]
    np.testing.assert_allclose(similarity(audio, text), expected, atol=1e-6)
    np.testing.assert_allclose(similarity(audio, text, block=1), expected, atol=1e-6)
    scores = np.array([[0.1, 0.9, 0.5]])
    assert top_indices(scores, 2).tolist() == [[1, 2]]
    assert top_indices(scores, 9).tolist() == [[1, 2, 0]]
    best = {
        "text_to_audio": np.array([[0], [2]]),
        "audio_to_text": np.array([[1], [0], [1]]),
    }
    wanted = wanted_pairs(best, 4)
    assert [rows.tolist() for rows in wanted] == [[0, 1], [0], [1], []]
    match = np.array([[np.nan, -50.0, 3.0]])
    ranked = rerank_rows(scores, match, np.array([[1, 2]]))
    assert np.argsort(-ranked[0]).tolist() == [2, 1, 0]
    # 10 * 0.9 - 4 < 10 * 0.5 + 3, and the third, not looked at, stays below.
    match = np.array([[np.nan, -4.0, 3.0]])
    ranked = rerank_rows(scores, match, np.array([[1, 2]]), scale=10.0)
    np.testing.assert_allclose(ranked, [[-4.0, 5.0, 8.0]], atol=1e-5)


# ----------------------------------------------------------------------- attention


def test_attention_rows_are_distributions(slit, clips):
    speech = slit.clips(clips)
    maps = slit.attention(speech)
    for i, found in enumerate(maps):
        _, lengths = slit._frames(slit.representation, speech, [speech.load(i)])
        assert found.shape == (2, 3, int(lengths[0]))
        np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    alone = slit.attention(slit.clips([clips[0]]))[0]
    np.testing.assert_allclose(alone, maps[0], atol=1e-5)
    told = slit.attention(slit.clips([clips[0]]), "what is making the sound?")[0]
    assert told.shape == alone.shape and np.abs(told - alone).max() > 1e-3


def test_attention_weights_are_those_of_the_model(tiny_parts, clips, tmp_path):
    """With one head, weights times values is what the output projection is given."""
    folder = tiny_system.experiment(
        tmp_path / "one_head", tiny_parts, "representation", qformer_conf="{heads: 1}"
    )
    slit = SLIT.from_pretrained(folder)
    qformer = slit.representation.model.qformer
    speech = slit.clips([clips[0]])
    weights = torch.from_numpy(slit.attention(speech)[0])
    frames, lengths = slit._frames(slit.representation, speech, [speech.load(0)])
    memory = qformer.read_frames(frames, lengths)
    crossing = [la.cross_attention for la in qformer.layers if la.cross_attention]
    seen = []
    for cross in crossing:
        cross.output.register_forward_hook(lambda *call: seen.append(call[1][0][0]))
    with torch.no_grad():
        qformer.forward_queries(memory)
    for given, one, values in zip(seen, weights, memory.values, strict=True):
        torch.testing.assert_close(given, one @ values[0, 0], atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------- parts missing


def test_missing_part_is_named(folder, clips):
    lone = SLIT.from_pretrained(folder.parent / "tiny_representation")
    assert lone.generator is None
    assert lone.embed_text("a dog barks").shape == (8,)
    with pytest.raises(InferenceError, match="no generator part.*slit_pack --link"):
        lone.caption(clips[0])


def test_generative_model_writes_without_instruction(tmp_path, tiny_parts, clips):
    folder = tiny_system.experiment(
        tmp_path / "gen", tiny_parts, "generative", tiny_parts.t5
    )
    slit = SLIT.from_pretrained(folder)
    assert slit.representation is None
    with pytest.raises(InferenceError, match="no representation part"):
        slit.caption(clips[0], options=RERANKED)
    captions = slit.caption(clips[:3], options=SHORT)
    assert captions == [slit.caption(c, options=SHORT) for c in clips[:3]]
    assert isinstance(slit.answer(clips[0], "what is it?", options=SHORT), str)


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


# ------------------------------------------------------------------ evaluation sets


def read_npz(path):
    with np.load(path, allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}


OPTIONS = DecodeOptions(caption=SHORT, question_answering=SHORT, rerank=3)


@pytest.fixture(scope="module")
def decoded(slit, sets, tmp_path_factory):
    root = tmp_path_factory.mktemp("decode")
    for name in ("test_caption", "test_qa", "test_class"):
        decode_set(slit, sets / "dump" / name, root / name, OPTIONS)
    return root


def test_decoded_captions_and_scores(slit, clips, decoded):
    captions = read_map(decoded / "test_caption" / "caption" / "text")
    expected = slit.caption(clips, options=SHORT)
    assert captions == {f"clip{i}": text for i, text in enumerate(expected)}
    scores = read_npz(decoded / "test_caption" / "retrieval" / "scores.npz")
    assert scores["audio_ids"].tolist() == [f"clip{i}" for i in range(7)]
    assert scores["contrastive"].shape == (14, 7) == (len(scores["texts"]), 7)
    for i, text in enumerate(scores["texts"]):
        cosine = (slit.embed_audio(clips) @ slit.embed_text(str(text))).max(axis=1)
        np.testing.assert_allclose(scores["contrastive"][i], cosine, atol=1e-4)
    assert set(scores) == {
        "audio_ids", "text_audio_ids", "texts", "contrastive",
        "reranked_text_to_audio", "reranked_audio_to_text",
    }  # fmt: skip
    attention = read_npz(decoded / "test_caption" / "attention.npz")
    assert attention["attention"].shape[:2] == (4, 3)
    np.testing.assert_allclose(attention["attention"].sum(axis=-1), 1, atol=1e-4)


def test_decoded_answers(slit, clips, decoded):
    texts = read_map(decoded / "test_qa" / "question_answering" / "text")
    ranked = read_map(decoded / "test_qa" / "question_answering" / "ranked")
    assert len(texts) == len(ranked) == 14
    options = slit_options(slit)
    requests = [(0, "what is it? 1")]
    free, scores = slit.respond(
        slit.clips([clips[3]]), requests, options=options, candidates=["yes", "no"]
    )
    assert texts["clip3_q1"] == free[0]
    answers = ["yes", "no", "a dog", "two"]
    _, scores = slit.respond(
        slit.clips([clips[3]]), requests, False, candidates=answers
    )
    assert ranked["clip3_q1"] == answers[int(scores[0].argmax())]


def slit_options(slit):
    return OPTIONS.generation("question_answering")


def test_decoded_label_scores(slit, clips, decoded):
    scores = read_npz(decoded / "test_class" / "classification" / "scores.npz")
    assert scores["labels"].tolist() == ["dog_bark", "rain", "bell"]
    speech = slit.clips(clips)
    labels = scores["labels"].tolist()
    np.testing.assert_allclose(
        scores["similarity"], slit.label_similarities(speech, labels), atol=1e-4
    )
    np.testing.assert_allclose(
        scores["matching"], slit.label_matches(speech, labels), atol=1e-3
    )
    sums, lengths = slit.label_likelihoods(speech, labels)
    np.testing.assert_allclose(scores["language_model_sum"], sums, atol=1e-3)
    np.testing.assert_allclose(scores["language_model_mean"], sums / lengths, atol=1e-3)


def test_decode_json_is_complete(decoded):
    content = json.loads((decoded / "test_caption" / "decode.json").read_text())
    assert content["schema"] == 1 and content["n"] == 7
    assert content["tasks"] == ["caption", "retrieval"]
    assert "tiny_instruction/valid.loss.best.pth" in content["model"]
    assert content["decoding"]["caption"]["num_beams"] == 2
    assert "beats" in content["encoder"] and "llama" in content["language_model"]
    for name, facts in content["files"].items():
        path = decoded / "test_caption" / name
        assert path.stat().st_size == facts["bytes"]
        assert sha256(path) == facts["sha256"]
    assert not (decoded / "test_caption" / ".parts").exists()


def test_waveforms_give_what_cached_features_give(slit, sets, decoded, tmp_path):
    for name in ("test_caption", "test_qa", "test_class"):
        content = decode_set(slit, sets / "data" / name, tmp_path / name, OPTIONS)
        assert content["audio"] == "waveforms"
        for path in sorted(decoded.glob(f"{name}/*/*")):
            other = tmp_path / path.relative_to(decoded)
            if path.suffix == ".npz":
                one, two = read_npz(path), read_npz(other)
                for key, array in one.items():
                    if array.dtype.kind == "f":
                        np.testing.assert_allclose(array, two[key], atol=1e-3)
                    else:
                        assert array.tolist() == two[key].tolist()
            else:
                assert path.read_text() == other.read_text()


def test_killed_decoding_goes_on(slit, sets, decoded, tmp_path, monkeypatch):
    monkeypatch.setattr("espnet2_slit.inference.decoding.CHUNK", 3)
    calls = []
    respond = slit.respond

    def counted(clips, requests, *args, **options):
        calls.append(len(requests))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return respond(clips, requests, *args, **options)

    monkeypatch.setattr(slit, "respond", counted, raising=False)
    source = sets / "dump" / "test_caption"
    with pytest.raises(KeyboardInterrupt):
        decode_set(slit, source, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out" / "decode.json").exists()
    assert not (tmp_path / "out" / "caption").exists()
    decode_set(slit, source, tmp_path / "out", OPTIONS)
    assert calls == [3, 3, 3, 1]  # the first three were kept
    text = (tmp_path / "out" / "caption" / "text").read_text()
    assert text == (decoded / "test_caption" / "caption" / "text").read_text()
    decode_set(slit, source, tmp_path / "out", OPTIONS)
    assert len(calls) == 4  # complete: nothing is done
    other = DecodeOptions(caption={**SHORT, "num_beams": 1}, rerank=3)
    decode_set(slit, source, tmp_path / "out", other)
    assert len(calls) == 7  # other options: decoded again


def test_jobs_share_a_set(slit, sets, decoded, tmp_path, monkeypatch):
    monkeypatch.setattr("espnet2_slit.inference.decoding.CHUNK", 2)
    source = sets / "dump" / "test_caption"
    with pytest.raises(InferenceError, match="parts of caption are missing"):
        decode_set(slit, source, tmp_path / "out", OPTIONS, "auto", 1, 2, True)
    for job in (1, 2):
        assert not (tmp_path / "out" / "decode.json").exists()
        decode_set(slit, source, tmp_path / "out", OPTIONS, "auto", job, 2)
    decode_set(slit, source, tmp_path / "out", OPTIONS, merge=True)
    one = read_npz(tmp_path / "out" / "retrieval" / "scores.npz")
    two = read_npz(decoded / "test_caption" / "retrieval" / "scores.npz")
    np.testing.assert_allclose(
        one["reranked_audio_to_text"], two["reranked_audio_to_text"], atol=1e-3
    )


def test_bare_espnet_directory_is_decoded(slit, sets, tmp_path):
    """wav.scp, text, utt2spk alone: captions and retrieval against text."""
    source = tmp_path / "bare"
    source.mkdir()
    for name in ("wav.scp", "text", "utt2spk"):
        shutil.copyfile(sets / "data" / "test_caption" / name, source / name)
    content = decode_set(slit, source, tmp_path / "out", OPTIONS)
    assert content["tasks"] == ["caption", "retrieval"]
    assert read_npz(tmp_path / "out/retrieval/scores.npz")["contrastive"].shape == (
        7,
        7,
    )


def test_features_of_another_encoder_are_refused(slit, sets, tmp_path, tiny_parts):
    import tiny

    other = build_audio_encoder(
        "beats", path=str(tiny.beats_checkpoint(tmp_path / "b", seed=3))
    )
    source = sets / "data" / "test_class"
    work = feature_cache.plan(source, other.identity())
    feature_cache.encode(work, other, tmp_path / "dump")
    feature_cache.merge(
        work, source, tmp_path / "dump", feature_cache.encoder_facts(other)
    )
    with pytest.raises(kaldi_matrix.FeatureCacheError, match="fingerprint: expected"):
        decode_set(slit, tmp_path / "dump", tmp_path / "out")
    done = decode_set(slit, tmp_path / "dump", tmp_path / "out", OPTIONS, "waveform")
    assert done["audio"] == "waveforms"


def test_what_the_system_cannot_do_is_said(folder, sets, tmp_path, caplog):
    lone = SLIT.from_pretrained(folder.parent / "tiny_representation")
    content = decode_set(lone, sets / "dump" / "test_caption", tmp_path / "a", OPTIONS)
    assert content["tasks"] == ["retrieval"]
    assert content["not_decoded"] == {"caption": "the system has no generator part"}
    assert "caption is not decoded" in caplog.text
    with pytest.raises(InferenceError, match="can do none of its tasks"):
        decode_set(lone, sets / "dump" / "test_qa", tmp_path / "b", OPTIONS)
    decode_set(lone, sets / "dump" / "test_class", tmp_path / "c", OPTIONS)
    scores = read_npz(tmp_path / "c" / "classification" / "scores.npz")
    assert set(scores) == {"ids", "labels", "similarity", "matching"}


def test_captions_are_not_reranked_without_the_part_that_does_it(
    sets, tiny_parts, tmp_path, caplog
):
    folder = tiny_system.experiment(
        tmp_path / "gen", tiny_parts, "generative", tiny_parts.t5
    )
    lone, options = SLIT.from_pretrained(folder), DecodeOptions(caption=RERANKED)
    content = decode_set(lone, sets / "dump" / "test_caption", tmp_path / "a", options)
    assert "captions are not re-ranked (rerank 4)" in caplog.text
    assert "rerank" not in content["decoding"]["caption"]
    likeliest = DecodeOptions(caption={**RERANKED, "rerank": 0})
    decode_set(lone, sets / "dump" / "test_caption", tmp_path / "b", likeliest)
    found, expected = (tmp_path / name / "caption" / "text" for name in "ab")
    assert found.read_text() == expected.read_text()


def test_cached_features_know_their_length(sets):
    folder = sets / "dump" / "test_caption"
    clips = Features(folder / "feats.scp", ["clip0", "clip6"], 50.0)
    assert clips.durations_s[0] == len(clips.load(0)) / 50
    assert clips.durations_s[0] < clips.durations_s[1]


# --------------------------------------------------------------------- command line


def run(capsys, *words):
    status = slit_inference.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def test_single_files_on_the_command_line(slit, folder, clips, capsys, tmp_path):
    config = tmp_path / "decode.yaml"
    config.write_text("caption: {max_new_tokens: 6, num_beams: 5}\nrerank: 0\n")
    common = ["--model", folder, "--config", config, "--caption", "num_beams=2"]
    status, out, _ = run(capsys, *common, "--task", "caption", clips[0], clips[1])
    captions = slit.caption(clips[:2], options=SHORT)
    assert status == 0
    assert out == "".join(f"{c}\t{t}\n" for c, t in zip(clips, captions, strict=False))
    status, out, _ = run(capsys, *common, "--task", "caption", clips[1])
    assert (status, out) == (0, captions[1] + "\n")
    labels = tmp_path / "labels"
    labels.write_text("dog\nrain\n")
    status, out, _ = run(
        capsys, *common, "--json", "--task", "classify", clips[0], "--labels", labels
    )
    found = json.loads(out)
    assert found["classify"]["label"] in ("dog", "rain") and found["file"] == clips[0]
    status, out, _ = run(
        capsys, *common, "--task", "search", "--text", TEXTS[0], *clips
    )
    best = slit.search(TEXTS[0], clips, rerank=0)
    assert [line.split("\t")[0] for line in out.splitlines()] == [b.item for b in best]


def test_wrong_command_lines(folder, clips, capsys, tmp_path):
    for words in (
        ["--task", "caption"],
        [],
        ["--task", "answer", clips[0]],
        ["--data_dir", "x"],
    ):
        with pytest.raises(SystemExit) as error:
            run(capsys, "--model", folder, *words)
        assert error.value.code == 2
    status, out, err = run(
        capsys, "--model", folder, "--task", "caption", tmp_path / "none.wav"
    )
    assert (status, out) == (1, "") and "none.wav: no such audio file" in err
    status, _, err = run(
        capsys, "--model", tmp_path / "none", "--task", "caption", clips[0]
    )
    assert status == 1 and "no such folder or archive" in err
    config = tmp_path / "typo.yaml"
    config.write_text("captions: {}\n")
    status, _, err = run(
        capsys, "--model", folder, "--config", config, "--task", "caption", clips[0]
    )
    assert status == 1 and "unknown captions" in err


def test_set_on_the_command_line(folder, sets, decoded, tmp_path, capsys):
    config = tmp_path / "decode.yaml"
    config.write_text(
        "caption: {max_new_tokens: 6, num_beams: 2}\n"
        "question_answering: {max_new_tokens: 6, num_beams: 2}\nrerank: 3\n"
    )
    status, _, _ = run(
        capsys, "--model", folder, "--config", config,
        "--data_dir", sets / "dump" / "test_qa", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert status == 0
    for name in ("text", "ranked"):
        path = Path("question_answering") / name
        expected = (decoded / "test_qa" / path).read_text()
        assert (tmp_path / "out" / path).read_text() == expected


def test_class_is_found_in_the_package():
    import espnet2_slit

    assert espnet2_slit.SLIT is SLIT
    with pytest.raises(AttributeError, match="SLITT"):
        espnet2_slit.SLITT  # noqa: B018


def test_system_is_found_by_its_linked_parts(folder):
    system = packing.read_system(folder)
    assert set(system.parts) == {"representation", "generator"}


# ---------------------------------------------------------------- what was wrong once


@pytest.fixture(scope="module")
def writer(tmp_path_factory, tiny_parts):
    """A generative model without a prompt of its own, to which questions may go."""
    folder = tmp_path_factory.mktemp("writer") / "gen"
    return SLIT.from_pretrained(
        tiny_system.experiment(folder, tiny_parts, "generative", tiny_parts.t5)
    )


def test_prompts_of_a_batch_may_differ_in_kind(writer, clips):
    """A caption without a prompt beside a question, in either order."""
    wordings = ["describe the audio", "what is making the sound in this clip?"]
    wordings[0] = templates.instruction("caption")
    speech, words = writer.clips(clips[:2]), ["a dog barks", "yes"]
    alone = {
        (clip, wording): writer.respond(
            speech, [(clip, wording)], options=SHORT, candidates=words
        )
        for clip in (0, 1)
        for wording in wordings
    }
    assert np.ptp([scores[0, 0] for _, scores in alone.values()]) > 1e-3
    for order in (wordings, wordings[::-1]):
        requests = [(0, order[0]), (1, order[1]), (0, order[1]), (1, order[0])]
        texts, scores = writer.respond(
            speech, requests, options=SHORT, candidates=words
        )
        for request, text, row in zip(requests, texts, scores, strict=True):
            assert text == alone[request][0][0]
            np.testing.assert_allclose(row, alone[request][1][0], atol=1e-4)


@pytest.fixture
def passes(slit, monkeypatch):
    """Counts of clips encoded and of clips whose frames were projected."""
    counts = {"encoded": 0, "projected": 0}

    def count(module, name, key):
        call = getattr(module, name)

        def counted(*args, **options):
            counts[key] += len(args[0])
            return call(*args, **options)

        monkeypatch.setattr(module, name, counted)

    count(slit.encoder, "forward", "encoded")
    count(slit.representation.model.qformer, "read_frames", "projected")
    return counts


def test_frames_are_projected_once_for_the_choice_among_captions(slit, clips, passes):
    slit.most_fitting(slit.clips(clips), range(len(clips)), [TEXTS] * len(clips))
    assert passes == {"encoded": len(clips), "projected": len(clips)}


def test_waveforms_are_encoded_once_for_all_scores_of_labels(
    slit, sets, tmp_path, passes
):
    options = DecodeOptions(attention_clips=0)
    decode_set(slit, sets / "data" / "test_class", tmp_path / "out", options)
    assert passes["encoded"] == 7


def test_jobs_do_not_each_embed_everything(slit, sets, tmp_path, passes, monkeypatch):
    monkeypatch.setattr("espnet2_slit.inference.decoding.CHUNK", 2)
    lone = sets / "data" / "test_caption"
    options = DecodeOptions(caption=SHORT, rerank=0, attention_clips=0)
    embed, embedded = slit.embed_clips, []

    def while_another_job_works(clips):
        embedded.append(len(clips))
        if len(embedded) == 1:
            decode_set(slit, lone, tmp_path / "out", options, "auto", 2, 2)
        return embed(clips)

    monkeypatch.setattr(slit, "embed_clips", while_another_job_works, raising=False)
    decode_set(slit, lone, tmp_path / "out", options, "auto", 1, 2)
    # all but the piece that the first job was at when the second came to it
    assert sum(embedded) <= 7 + 2
    decode_set(slit, lone, tmp_path / "out", options, merge=True)
    assert sum(embedded) <= 7 + 2 and passes["encoded"] <= 7 + sum(embedded)


def test_sampled_texts_to_choose_from(slit, clips):
    drawn = {"do_sample": True, "rerank": 8, "max_new_tokens": 6, "seed": 1}
    with pytest.raises(InferenceError, match="num_beams 1.*found 5"):
        slit.caption(clips[0], options=drawn)
    one = slit.caption(clips[:2], options={**drawn, "num_beams": 1})
    assert len(one) == 2 and all(isinstance(text, str) for text in one)


@pytest.mark.parametrize("name", ["num_beams", "max_new_tokens", "rerank", "top_k"])
def test_impossible_numbers_of_generation_are_named(slit, clips, name):
    with pytest.raises(InferenceError, match=f"{name}: expected .*found -1"):
        slit.caption(clips[0], options={name: -1})
    if name != "rerank" and name != "top_k":
        with pytest.raises(InferenceError, match=f"{name}: expected .*found 0"):
            slit.caption(clips[0], options={name: 0})


def test_one_clip_in_any_form(slit, clips):
    """A clip with its rate, as NumPy, gradio and datasets hand it over."""
    audio, rate = soundfile.read(clips[3], dtype="float32")
    expected = slit.embed_audio(clips[3])
    forms = [
        (audio, np.int64(rate)),
        (audio, np.float64(rate)),
        (rate, audio),
        (np.int32(rate), torch.from_numpy(audio)),
        {"array": audio, "sampling_rate": rate},
        {"path": None, "array": torch.from_numpy(audio), "sampling_rate": rate},
        {"path": clips[3]},
        Decoded(audio, rate),
    ]
    for form in forms:
        found = slit.embed_audio(form)
        assert found.shape == expected.shape, type(form)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    many = slit.embed_audio(forms)
    np.testing.assert_allclose(many, np.stack([expected] * len(forms)), atol=1e-5)
    again = slit.embed_audio(path for path in clips)
    np.testing.assert_allclose(again, slit.embed_audio(clips), atol=1e-5)
    again = slit.embed_audio((clips[0], clips[1]))
    np.testing.assert_allclose(again, slit.embed_audio(clips[:2]), atol=1e-5)
    coarse = torch.from_numpy(audio).bfloat16()
    found = slit.embed_audio((coarse, rate))
    np.testing.assert_allclose(
        found, slit.embed_audio((coarse.float().numpy(), rate)), atol=1e-6
    )


class Decoded:
    """As torchcodec's AudioDecoder, which datasets gives out."""

    def __init__(self, audio, rate):
        self.data, self.sample_rate = torch.from_numpy(audio)[None], rate

    def get_all_samples(self):
        return self


@pytest.mark.parametrize(
    "form",
    [7, None, [0.1, 0.2], {"bytes": b"RIFF"}, {"array": np.zeros(9000)}, [3.5]],
    ids=repr,
)
def test_forms_that_are_no_clip_are_told_the_forms(slit, form):
    with pytest.raises(AudioError, match="sampl.*rate"):
        slit.caption(form)


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
    from concurrent.futures import ThreadPoolExecutor

    words = ["dog", "a bell rings", "water flows"]
    works = [
        lambda: slit.caption(clips[0], options=SHORT),
        lambda: slit.classify(clips[1], words, route="language_model").scores,
        lambda: slit.answer(clips[2], "what is it?", candidates=words),
        lambda: slit.attention(slit.clips([clips[3]]))[0].tolist(),
        lambda: slit.attention(slit.clips([clips[4]]))[0].tolist(),
    ] * 3
    expected = [work() for work in works]
    with ThreadPoolExecutor(8) as pool:
        found = [future.result() for future in [pool.submit(w) for w in works]]
    assert found == expected
