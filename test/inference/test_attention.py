"""Attention maps are those of the model."""

import numpy as np
import tiny_system
import torch

from espnet2_slit.inference.attention import attention
from espnet2_slit.inference.slit import SLIT


def test_attention_rows_are_distributions(slit, clips):
    speech = slit.clips(clips)
    maps = attention(slit, speech)
    for i, found in enumerate(maps):
        _, lengths = slit.frames(slit.representation, speech, [speech.load(i)])
        assert found.shape == (2, 3, int(lengths[0]))
        np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    alone = attention(slit, slit.clips([clips[0]]))[0]
    np.testing.assert_allclose(alone, maps[0], atol=1e-5)
    told = attention(slit, slit.clips([clips[0]]), "what is making the sound?")[0]
    assert told.shape == alone.shape and np.abs(told - alone).max() > 1e-3


def test_attention_weights_are_those_of_the_model(tiny_parts, clips, tmp_path):
    """With one head, weights times values is what the output projection is given."""
    folder = tiny_system.experiment(
        tmp_path / "one_head", tiny_parts, "representation", qformer_conf="{heads: 1}"
    )
    slit = SLIT.from_pretrained(folder)
    qformer = slit.representation.model.qformer
    speech = slit.clips([clips[0]])
    weights = torch.from_numpy(attention(slit, speech)[0])
    frames = slit.frames(slit.representation, speech, [speech.load(0)])
    memory = qformer.encode_frames(frames)
    crossing = [la.cross_attention for la in qformer.layers if la.cross_attention]
    seen = []
    for cross in crossing:
        cross.output.register_forward_hook(lambda *call: seen.append(call[1][0][0]))
    with torch.no_grad():
        qformer.forward_queries(memory)
    for given, one, values in zip(seen, weights, memory.values, strict=True):
        torch.testing.assert_close(given, one @ values[0, 0], atol=1e-5, rtol=1e-4)
