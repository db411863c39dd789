"""Stacked frames as the language model's prompt: what they may depend on."""

import pytest
import torch
from test_espnet_model import STAGES, as_padded, make_batch, rows

from espnet2_slit.common.padded import Padded
from espnet2_slit.model.espnet_model import PromptedModel
from espnet2_slit.model.frame_stack import build_frame_stack
from espnet2_slit.model.load_language_model import load_language_model

WIDTH, STACK = 12, 4  # of the batches' frames; 9 frames are 3 vectors


def connector(kind="mlp"):
    torch.manual_seed(0)
    return build_frame_stack(kind, WIDTH, STACK, hidden=10)


def frames_of(batch):
    return as_padded(batch, "feats")


@pytest.fixture(params=["linear", "mlp"])
def model(request, tiny_parts):
    stack = connector(request.param)
    return PromptedModel(None, load_language_model(tiny_parts.t5), connector=stack)


def test_vectors_are_projections_of_their_own_frames():
    stack, frames = connector("linear"), torch.randn(1, 9, WIDTH)
    found = stack(Padded(frames)).values
    assert found.shape == (1, 3, STACK * WIDTH)
    normalised = stack.frame_norm(frames)[0]
    torch.testing.assert_close(found[0, 1], normalised[4:8].flatten())
    assert (
        torch.equal(found[0, 2, :WIDTH], normalised[8]) and not found[0, 2, 12:].any()
    )
    hidden = connector("mlp")
    expected = torch.nn.functional.gelu(hidden.hidden(found))
    torch.testing.assert_close(hidden(Padded(frames)).values, expected)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_neither_padding_nor_neighbours_change_a_clips_vectors(kind):
    stack, batch = connector(kind), make_batch("generative")
    together = stack(frames_of(batch))
    assert together.lengths.tolist() == [-(-n // STACK) for n in batch["feats_lengths"]]
    feats = torch.nn.functional.pad(batch["feats"], (0, 0, 0, 7), value=1e4)
    padding = torch.arange(feats.size(1)) >= batch["feats_lengths"][:, None]
    noise = feats.masked_fill(padding[..., None], 1e4)
    longer = stack(Padded(noise, batch["feats_lengths"]))
    for i, length in enumerate(together.lengths.tolist()):
        mine = together.values[i, :length]
        alone = stack(frames_of(rows(batch, [i]))).values[0, :length]
        torch.testing.assert_close(alone, mine)
        torch.testing.assert_close(longer.values[i, :length], mine)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_every_weight_is_trained_and_loss_falls(model, stage):
    batch = make_batch(stage)
    batch.pop("qformer_instruction", None)
    batch.pop("qformer_instruction_lengths", None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        loss, stats, _ = model(**batch)
        loss.sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    names = {name.split(".")[0] for name in model.state_dict()}
    assert names == {"connector", "language_projection"}
    assert {"loss_language_model", "accuracy_token", "query_diversity"} <= set(stats)


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match="qformer, linear, mlp, found 'transformer'"):
        build_frame_stack("transformer", WIDTH)
    with pytest.raises(ValueError, match="at least 1, found 0 and None"):
        build_frame_stack("linear", WIDTH, stack=0)
    with pytest.raises(ValueError, match="13 wide.*built for 12"):
        connector()(Padded(torch.zeros(1, 3, 13)))
