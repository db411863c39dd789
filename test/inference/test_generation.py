"""Texts and likelihoods: of each request alone, whatever else is in the batch."""

import numpy as np
import pytest
import soundfile
import tiny_system
import torch
from tiny_system import RERANKED, SHORT

from espnet2_slit.common import templates
from espnet2_slit.common.padded import Padded
from espnet2_slit.inference.generation import generate_and_score, prefixes
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.slit import SLIT


def test_answers_do_not_depend_on_batch_neighbours(folder, slit, clips):
    questions = ["loud?", "how many times does the bird chirp? answer shortly."] * 4
    questions = questions[: len(clips)]
    other = SLIT.from_pretrained(folder, batch_size=1)
    requests = list(enumerate(questions))
    answers = ["yes", "a rising tone, a falling tone"]
    one, two = (
        generate_and_score(
            s, s.clips(clips), requests, options=SHORT, candidates=answers
        )
        for s in (slit, other)
    )
    assert one[0] == two[0]
    np.testing.assert_allclose(one[1], two[1], atol=1e-4)


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
            name: Padded(torch.from_numpy(ids)[None])
            for name, ids in part.prompt("is it loud?").items()
        }
        prefix = part.model.prefix(Padded(*frames), prompt["qformer_instruction"])
        scores = []
        for answer in answers:
            ids = torch.tensor([part.model.language_model.encode_target(answer)])
            total, _, _ = part.model.language_model.loss(
                prefix, prompt["llm_prompt"], Padded(ids)
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
    ((_, (prefix, _), _),) = prefixes(slit, part, speech, requests)
    assert (prefix[0] - prefix[1]).abs().max() > 1e-3


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
        (clip, wording): generate_and_score(
            writer, speech, [(clip, wording)], options=SHORT, candidates=words
        )
        for clip in (0, 1)
        for wording in wordings
    }
    assert np.ptp([scores[0, 0] for _, scores in alone.values()]) > 1e-3
    for order in (wordings, wordings[::-1]):
        requests = [(0, order[0]), (1, order[1]), (0, order[1]), (1, order[0])]
        texts, scores = generate_and_score(
            writer, speech, requests, options=SHORT, candidates=words
        )
        for request, text, row in zip(requests, texts, scores, strict=True):
            assert text == alone[request][0][0]
            np.testing.assert_allclose(row, alone[request][1][0], atol=1e-4)


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
