"""LAVIS' own numbers for one stage-1 step: losses, logits, gradients.

`golden/lavis_stage1_small.npz` holds weights (in LAVIS' names), inputs, intermediates
and results of LAVIS' code: 4 layers, width 48, 2 clips, so that the hard negative of
each is forced; dropout 0, label smoothing 0.1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from espnet2_slit.model.objectives import (
    RepresentationHeads,
    contrastive,
    gather_memory,
    gather_text,
    generation,
    matching,
    sample_negative_pairs,
)
from espnet2_slit.model.qformer import QFormer
from espnet2_slit.model.qformer_weights import load_pretrained_qformer

GOLDEN = Path(__file__).parents[1] / "golden" / "lavis_stage1_small.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def step(golden, tmp_path_factory):
    """One step of ours on the same weights and inputs, gather rule as LAVIS'."""
    prefix = "weights/"
    weights = {
        n.removeprefix(prefix): t for n, t in golden.items() if n.startswith(prefix)
    }
    file = tmp_path_factory.mktemp("lavis") / "checkpoint.pth"
    torch.save({"model": weights}, file)
    qformer = QFormer(
        encoder_width=40,
        vocab_size=500,
        width=48,
        layers=4,
        heads=4,
        feed_forward=96,
        num_queries=6,
        max_text_length=64,
        dropout=0.0,
        bos_id=int(golden["in/special_ids"][0]),
    )
    heads = RepresentationHeads(48, joint_width=24)
    report = load_pretrained_qformer(qformer, file, heads)
    assert not report.initialised
    assert report.left == ["Qformer.bert.embeddings.position_ids"]

    frames, text = golden["in/frames"], golden["in/ids"]
    frame_lengths = torch.full((2,), frames.size(1))
    text_lengths = golden["in/attention_mask"].sum(1)
    memory = qformer.read_frames(frames, frame_lengths)
    queries = qformer.forward_queries(memory)
    summary = qformer.forward_text(text, text_lengths)
    contrast = contrastive(
        heads.embed_audio(queries.hidden),
        heads.embed_text(summary),
        heads.temperature(),
        gather="detach",
    )
    negatives = sample_negative_pairs(contrast, seed=0)
    world = contrast.world
    pairs = qformer.forward_triplets(
        memory,
        text,
        text_lengths,
        gather_memory(qformer, memory, frames, frame_lengths, negatives.audio, world),
        *gather_text(text, text_lengths, negatives.text, world),
    )
    match_logits = heads.match(pairs)
    logits, targets = qformer.forward_generation(queries.cache, text, text_lengths)
    losses = {
        "itc": contrast.loss,
        "itm": matching(match_logits, negatives.labels, negatives.valid, 2),
        "lm": generation(logits, targets, 2),
    }
    sum(losses.values()).backward()
    return {
        "losses": losses,
        "queries": queries.hidden,
        "summary": summary,
        "similarity": contrast.audio_to_text * heads.temperature(),
        "match_logits": match_logits,
        "logits": logits,
        "targets": targets,
        "text_lengths": text_lengths,
        "query_tokens": qformer.query_tokens.grad,
        "temperature": heads.temperature.value.grad[0],
    }


def close(ours, theirs, tolerance):
    torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["itc", "itm", "lm"])
def test_each_loss(golden, step, name):
    close(step["losses"][name], golden[f"out/loss_{name}"], 1e-5)


def test_sum_of_losses(golden, step):
    close(sum(step["losses"].values()), golden["out/loss"], 1e-5)


def test_intermediates(golden, step):
    close(step["queries"], golden["mid/query_output"], 1e-5)
    close(step["summary"], golden["mid/text_output"][:, 0], 1e-5)
    close(step["similarity"], golden["mid/similarity_audio_to_text"], 1e-5)


def test_matching_logits_of_the_positives(golden, step):
    close(step["match_logits"][:2], golden["mid/match_logits_positive"], 1e-4)


def test_generation_logits_of_predicted_tokens_only(golden, step):
    ids, lengths = golden["in/ids"], step["text_lengths"]
    keep = torch.arange(ids.size(1) - 1) < lengths[:, None] - 1
    close(step["logits"], golden["mid/generation_logits"][:, :-1][keep], 1e-4)
    assert torch.equal(step["targets"], ids[:, 1:][keep])


def test_gradients_under_the_rule_detach(golden, step):
    close(step["query_tokens"], golden["grad/query_tokens"][0], 1e-4)
    close(step["temperature"], golden["grad/temp"], 1e-4)
