"""Queries for each window: windows are clips of their own, and no result needs more."""

import pytest
import ranks
import torch
import torch.distributed as dist
import torch.nn.functional as F
from test_language_model import inputs, padded, prefix_of
from test_qformer import EXACT, all_outputs, rows
from tiny_qformer import (
    tiny_audio,
    tiny_batch,
    tiny_heads,
    tiny_qformer,
    tiny_text,
    training_losses,
)

from espnet2_slit.common.padded import Padded
from espnet2_slit.model.espnet_model import RepresentationModel
from espnet2_slit.model.language_model import GenerationOptions
from espnet2_slit.model.load_language_model import load_language_model
from espnet2_slit.model.objectives import similarity

SIZE = 4  # frames of a window
WINDOW = dict(query_window_s=0.4, frames_per_second=10.0)
QUERIES = 3


def windowed(**sizes):
    return tiny_qformer(**WINDOW | sizes)


def model_of(qformer):
    model = RepresentationModel(qformer)
    model.heads = tiny_heads()
    return model.eval()


def windows_of(batch, clip):
    """The windows of a clip, each (1, T, D_a)."""
    frames = batch["frames"][clip, : batch["frame_lengths"][clip]]
    return [Padded(part[None]) for part in frames.split(SIZE)]


def test_each_window_is_read_as_a_clip_of_its_own_with_the_clips_instruction():
    batch, qformer, plain = tiny_batch(), windowed().eval(), tiny_qformer().eval()
    text = tiny_text(batch)
    for instruction in (None, text):
        found = qformer.forward_queries(
            qformer.encode_frames(tiny_audio(batch)), instruction
        ).hidden
        assert found.values.shape[1] == 3 * QUERIES  # of the longest clip
        for clip, frames in enumerate(batch["frame_lengths"].tolist()):
            words = None
            if instruction is not None:
                words = text.select(torch.tensor([clip]))
            alone = [
                plain.forward_queries(plain.encode_frames(window), words).hidden.values
                for window in windows_of(batch, clip)
            ]
            assert found.lengths[clip] == len(alone) * QUERIES
            assert len(alone) == -(-frames // SIZE)
            rows_found = found.values[clip, : found.lengths[clip]]
            torch.testing.assert_close(rows_found, torch.cat(alone, 1)[0], **EXACT)


def test_clips_within_one_window_are_read_as_without_windows():
    batch = rows(tiny_batch(), [4, 2])
    one_window = dict(query_window_s=2.0, frames_per_second=10.0)
    plain = all_outputs(tiny_qformer().eval(), batch)
    for name, output in all_outputs(tiny_qformer(**one_window).eval(), batch).items():
        assert torch.equal(output, plain[name]), name


def by_clip(qformer, batch):
    """Outputs of `all_outputs`, without what stands behind a clip's queries."""
    outputs = all_outputs(qformer, batch)
    counts = (batch["frame_lengths"] + SIZE - 1) // SIZE * QUERIES
    for name in ("queries", "instructed", "pairs"):
        outputs[name] = [row[:n] for row, n in zip(outputs[name], counts, strict=True)]
    return outputs


def test_neither_padding_nor_neighbours_change_a_clips_outputs():
    qformer, batch = windowed().eval(), tiny_batch()
    together = by_clip(qformer, batch)
    longer = F.pad(batch["frames"], (0, 0, 0, 2 * SIZE), value=1e4)
    padding = torch.arange(longer.size(1)) >= batch["frame_lengths"][:, None]
    longer = longer.masked_fill(padding[..., None], 1e4)
    padded_batch = by_clip(qformer, batch | {"frames": longer})
    for name, output in together.items():
        for mine, other in zip(output, padded_batch[name], strict=True):
            torch.testing.assert_close(other, mine, **EXACT)
    tokens = (batch["text_lengths"] - 1).cumsum(0)
    for i in range(len(batch["text"])):
        alone = by_clip(qformer, rows(batch, [i]))
        for name in ("queries", "instructed", "text"):
            torch.testing.assert_close(alone[name][0], together[name][i], **EXACT)
        mine = slice(tokens[i] - batch["text_lengths"][i] + 1, tokens[i])
        torch.testing.assert_close(alone["logits"], together["logits"][mine], **EXACT)


def test_similarity_is_that_of_the_best_query_of_the_best_window():
    batch, model = tiny_batch(), model_of(windowed())
    text = model.embed_text(tiny_text(batch))
    found = similarity(model.embed_audio(tiny_audio(batch))[0], text)
    plain = model_of(tiny_qformer())
    for clip, row in enumerate(found):
        alone = [
            plain.embed_audio(window)[0] @ text.T for window in windows_of(batch, clip)
        ]
        best = torch.cat(alone, dim=1).amax(dim=(0, 1))
        torch.testing.assert_close(row, best, rtol=0, atol=1e-5)


def test_matching_is_the_mean_over_the_windows_that_a_clip_has():
    batch, model = tiny_batch(), model_of(windowed())
    text, memory = tiny_text(batch), model.embed_audio(tiny_audio(batch))[1]
    index = torch.tensor([0, 1, 4, 4, 2])
    found = model.match(memory, text, index, index)
    plain = model_of(tiny_qformer())
    for logit, clip in zip(found, index, strict=True):
        one = text.select(clip[None])
        zero = torch.zeros(1, dtype=torch.long)
        alone = [
            plain.match(plain.qformer.encode_frames(window), one, zero, zero)
            for window in windows_of(batch, clip)
        ]
        torch.testing.assert_close(logit, torch.cat(alone).mean(), rtol=0, atol=1e-5)


def test_text_is_written_from_all_windows_of_its_clip():
    """Another last window changes the long clip's text and no other clip's."""
    qformer, batch = windowed().eval(), tiny_batch(3)
    changed = batch["frames"].clone()
    changed[0, 2 * SIZE :] = changed[0, 2 * SIZE :].flip(-1)
    logits, other = (
        all_outputs(qformer, batch | {"frames": frames})["logits"]
        for frames in (batch["frames"], changed)
    )
    differs = (logits - other).abs().amax(1) > 1e-4
    first = int(batch["text_lengths"][0]) - 1
    assert differs[:first].all() and not differs[first:].any()


def test_checkpointing_on_equals_off():
    results = []
    for switch in (False, True):
        qformer = windowed(gradient_checkpointing=switch).train()
        losses = training_losses(qformer, tiny_heads(), tiny_batch())
        sum(losses.values()).backward()
        results.append([*losses.values(), *(p.grad for p in qformer.parameters())])
    for off, on in zip(*results, strict=True):
        torch.testing.assert_close(on, off, **EXACT)


def rank_step(batch):
    """Losses and gradients, weighted by batch size as ESPnet's Trainer does."""
    qformer, heads = windowed(), tiny_heads()
    world = dist.get_world_size() if dist.is_initialized() else 1
    share = torch.tensor(len(batch["text"]) / 6)
    losses = training_losses(qformer, heads, batch)
    (sum(losses.values()) * share).backward()
    found = [loss.detach() * share for loss in losses.values()]
    found += [p.grad for m in (qformer, heads) for p in m.parameters()]
    for tensor in found:
        if world > 1:
            dist.all_reduce(tensor)
    return found


def rank_main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    # the second rank's clips have fewer windows than the first one's
    part = rows(tiny_batch(), [[0, 1, 3, 5], [4, 2]][rank])
    torch.save(rank_step(part), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_of_unequal_windows_are_one_rank(tmp_path):
    ranks.spawn("test_query_windows", "rank_main", str(tmp_path))
    whole = rank_step(rows(tiny_batch(), [0, 1, 3, 5, 4, 2]))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for mine, expected in zip(found, whole, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_every_trainable_weight_gets_a_gradient():
    qformer = windowed(max_windows=2, frames_per_window=3)
    sum(training_losses(qformer, tiny_heads(), tiny_batch()).values()).backward()
    assert not [n for n, p in qformer.named_parameters() if p.grad is None]


def test_more_windows_than_allowed_is_an_error():
    qformer = windowed(max_query_windows=2)
    with pytest.raises(ValueError, match="11 frames are 3 query windows of 4.*is 2"):
        qformer.encode_frames(tiny_audio(tiny_batch()))
    with pytest.raises(ValueError, match="0.01 s at 10 frames a second"):
        windowed(query_window_s=0.01)


# ---------------------------------------------------------- in the language model


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_prefixes_of_unequal_length_give_what_each_gives_alone(name, tiny_parts):
    """Whatever stands behind a row's prefix vectors, in loss, text and likelihoods."""
    lm = load_language_model(getattr(tiny_parts, name))
    prefix = Padded(prefix_of(lm).values, torch.tensor([5, 2, 3]))
    prompt, target = inputs(lm)
    options = GenerationOptions(num_beams=3, max_new_tokens=6)
    candidates = padded([lm.encode_target(t) for t in ("yes", "a dog barks", "bell")])
    total, count, correct = lm.loss(prefix, prompt, target)
    texts = lm.generate(prefix, prompt, options)
    scores = lm.score_candidates(prefix, prompt, candidates)
    sums = torch.zeros(3)
    for i, length in enumerate(prefix.lengths.tolist()):
        row = torch.tensor([i])
        alone = Padded(prefix.values[row, :length])
        sums += torch.stack(lm.loss(alone, prompt.select(row), target.select(row)))
        assert lm.generate(alone, prompt.select(row), options) == [texts[i]]
        found = lm.score_candidates(alone, prompt.select(row), candidates)
        torch.testing.assert_close(found[0], scores[i], rtol=0, atol=1e-4)
    torch.testing.assert_close(sums[0], total, rtol=0, atol=1e-4)
    assert sums[1] == count and sums[2] == correct
