"""Queries for each window: windows are clips of their own."""

import pytest
import torch
from test_language_model import inputs, padded, prefix_of
from tiny_qformer import tiny_batch, tiny_qformer

from espnet2_slit.model.language_model import GenerationOptions, load_language_model
from espnet2_slit.model.query_windows import query_windows, split_windows

WINDOW = dict(query_window_s=0.4, frames_per_second=10.0)  # 4 frames


@pytest.fixture(scope="module")
def qformer():
    return tiny_qformer(**WINDOW).eval()


@pytest.fixture(scope="module", params=["t5", "llama"])
def lm(request, tiny_parts):
    return load_language_model(getattr(tiny_parts, request.param))


def audio(**more):
    batch = tiny_batch()
    return {k: batch[k] for k in ("frames", "frame_lengths")} | more


def test_each_window_is_read_as_a_clip_of_its_own_with_the_clips_instruction(qformer):
    batch = tiny_batch()
    found = query_windows(qformer, **audio(), instruction=batch["text"],
                          instruction_lengths=batch["text_lengths"])  # fmt: skip
    assert found.counts.tolist() == [-(-n // 4) for n in batch["frame_lengths"]]
    row = 0
    for clip, length in enumerate(batch["frame_lengths"].tolist()):
        words = int(batch["text_lengths"][clip])
        instruction = batch["text"][clip : clip + 1, :words], torch.tensor([words])
        for start in range(0, length, 4):
            frames = batch["frames"][clip : clip + 1, start : min(start + 4, length)]
            memory = qformer.read_frames(frames, torch.tensor([frames.shape[1]]))
            alone = qformer.forward_queries(memory, *instruction).hidden[0]
            torch.testing.assert_close(found.hidden[row], alone, rtol=0, atol=1e-5)
            row += 1
    assert row == len(found.hidden)


def test_joined_windows_follow_each_other_and_zeros_follow_them(qformer):
    found = query_windows(qformer, **audio())
    joined, lengths = found.join(found.hidden)
    queries = qformer.num_queries
    assert lengths.tolist() == [queries * n for n in found.counts.tolist()]
    assert joined.shape[1] == lengths.max()
    first = 0
    for row, length in zip(joined, lengths.tolist(), strict=True):
        count = length // queries
        windows = found.hidden[first : first + count].flatten(0, 1)
        assert torch.equal(row[:length], windows) and not row[length:].any()
        first += count


def test_a_clip_within_one_window_is_read_as_without_windows(qformer):
    frames = tiny_batch()["frames"][:, :4]
    lengths = torch.tensor([4, 4, 3, 4, 3, 2])
    plain = tiny_qformer().eval()
    found, expected = (query_windows(q, frames, lengths) for q in (qformer, plain))
    joined, counts = found.join(found.hidden)
    assert counts is None and torch.equal(joined, expected.hidden)
    assert expected.counts is None


def test_windows_of_padding_alone_are_not_read():
    frames = torch.arange(2 * 9.0).view(2, 9, 1)
    windows, lengths, counts = split_windows(frames, torch.tensor([9, 3]), 4)
    assert counts.tolist() == [3, 1] and lengths.tolist() == [4, 4, 1, 3]
    assert windows[:, 0, 0].tolist() == [0, 4, 8, 9]


def test_gradients_reach_the_query_tokens_through_every_window(qformer):
    found = query_windows(qformer, **audio())
    joined, lengths = found.join(found.hidden)
    real = torch.arange(joined.shape[1]) < lengths[:, None]
    joined[real].square().sum().backward()
    assert qformer.query_tokens.grad.abs().min() > 0
    qformer.zero_grad()


def test_window_without_a_frame_is_an_error():
    with pytest.raises(ValueError, match="query_window_s is 0.01.*found 10.0 frames"):
        tiny_qformer(query_window_s=0.01, frames_per_second=10.0)


# ---------------------------------------------------------- in the language model


def test_prefixes_of_unequal_length_give_what_each_gives_alone(lm):
    """Whatever stands behind a row's prefix vectors, in loss, text and likelihoods."""
    prefix, lengths = prefix_of(lm), torch.tensor([5, 2, 3])
    prompt, target = inputs(lm)
    options = GenerationOptions(num_beams=3, max_new_tokens=6)
    candidates = padded([lm.encode_target(t) for t in ("yes", "a dog barks", "bell")])
    total, count, right = lm.loss(prefix, *prompt, *target, lengths)
    texts = lm.generate(prefix, *prompt, options, lengths)
    scores = lm.score_candidates(prefix, *prompt, *candidates, prefix_lengths=lengths)
    sums = torch.zeros(2)
    for i, length in enumerate(lengths.tolist()):
        row = slice(i, i + 1)
        some = [tensor[row] for tensor in prompt]
        some[0] = some[0][:, : int(some[1])]
        alone = prefix[row, :length]
        one, _, correct = lm.loss(alone, *some, *(t[row] for t in target))
        sums += torch.stack([one, correct])
        assert lm.generate(alone, *some, options) == texts[row]
        found = lm.score_candidates(alone, *some, *candidates)
        torch.testing.assert_close(found[0], scores[i], rtol=0, atol=1e-4)
    torch.testing.assert_close(sums[0], total, rtol=0, atol=1e-4)
    assert sums[1] == right
