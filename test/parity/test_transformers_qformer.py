"""transformers' Q-Formers with copied random weights, in every mode they have.

In float64, so that a difference is a mistake and not rounding.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers

from espnet2_slit.common.padded import Padded
from espnet2_slit.model.objectives import RepresentationHeads
from espnet2_slit.model.qformer import QFormer
from espnet2_slit.model.qformer_weights import (
    export_to_transformers,
    load_pretrained_qformer,
)

B, T, L, Q, ENCODER_WIDTH, WIDTH, VOCAB = 3, 9, 7, 5, 20, 24, 60
QFORMER = dict(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=40,
    encoder_hidden_size=ENCODER_WIDTH,
    cross_attention_frequency=2,
    max_position_embeddings=16,
)
CLOSE = dict(rtol=0, atol=1e-9)
CLOSE_FLOAT32 = dict(rtol=0, atol=1e-5, check_dtype=False)  # the heads give float32


def randomise(model: torch.nn.Module) -> None:
    """transformers' start would make every norm and bias trivial."""
    generator = torch.Generator().manual_seed(4)
    model.double()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.2
        parameter.data.add_(noise)


def ours(**sizes) -> QFormer:
    sizes = dict(text_branch=True, language_head=False) | sizes
    return QFormer(
        ENCODER_WIDTH,
        VOCAB,
        width=WIDTH,
        layers=4,
        heads=4,
        feed_forward=40,
        num_queries=Q,
        max_text_length=16,
        **sizes,
    ).double()


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    return {
        "frames": torch.randn(B, T, ENCODER_WIDTH, generator=generator).double(),
        "frame_lengths": torch.tensor([9, 4, 6]),
        "text": torch.randint(1, VOCAB, (B, L), generator=generator),
        "text_lengths": torch.tensor([4, 7, 2]),
    }


def mask(lengths, width):
    return (torch.arange(width) < lengths[:, None]).long()


@pytest.fixture(scope="module")
def blip2(tmp_path_factory):
    """Blip2ForImageTextRetrieval and ours, loaded from its saved folder."""
    vision = dict(
        hidden_size=ENCODER_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=4,
        layer_norm_eps=1e-5,  # theirs is 1e-6, LAVIS and ours 1e-5
    )
    config = transformers.Blip2Config(
        vision_config=vision,
        qformer_config=QFORMER | {"use_qformer_text_input": True},
        num_query_tokens=Q,
        image_text_hidden_size=8,
    )
    theirs = transformers.Blip2ForImageTextRetrieval(config).eval()
    randomise(theirs)
    folder = tmp_path_factory.mktemp("blip2")
    theirs.save_pretrained(folder)
    qformer = ours().eval()
    heads = RepresentationHeads(WIDTH, joint_width=8).double()
    report = load_pretrained_qformer(qformer, folder, heads)
    assert set(report.initialised) == {"heads.temperature.value"}
    return theirs, qformer, heads


def test_queries_alone(blip2, inputs):
    theirs, qformer, _ = blip2
    with torch.no_grad():
        frames = theirs.vision_model.post_layernorm(inputs["frames"])
        expected = theirs.qformer(
            query_embeds=theirs.query_tokens.expand(B, -1, -1),
            encoder_hidden_states=frames,
            encoder_attention_mask=mask(inputs["frame_lengths"], T),
        ).last_hidden_state
        memory = qformer.encode_frames(
            Padded(inputs["frames"], inputs["frame_lengths"])
        )
        queries = qformer.forward_queries(memory)
    torch.testing.assert_close(queries.hidden.values, expected, **CLOSE)


def test_text_alone(blip2, inputs):
    theirs, qformer, _ = blip2
    with torch.no_grad():
        expected = theirs.qformer(
            query_embeds=theirs.embeddings(input_ids=inputs["text"]),
            query_length=0,
            attention_mask=mask(inputs["text_lengths"], L),
        ).last_hidden_state[:, 0]
        text_cls = qformer.forward_text(Padded(inputs["text"], inputs["text_lengths"]))
    torch.testing.assert_close(text_cls, expected, **CLOSE)


def test_queries_with_text_and_the_heads(blip2, inputs):
    """Without audio padding: with it, their class fails in this mode."""
    theirs, qformer, heads = blip2
    text_mask = mask(inputs["text_lengths"], L)
    index = torch.arange(B)
    with torch.no_grad():
        frames = theirs.vision_model.post_layernorm(inputs["frames"])
        tokens = theirs.query_tokens.expand(B, -1, -1)
        expected = theirs.qformer(
            query_embeds=theirs.embeddings(
                input_ids=inputs["text"], query_embeds=tokens
            ),
            query_length=Q,
            attention_mask=F.pad(text_mask, (Q, 0), value=1),
            encoder_hidden_states=frames,
        ).last_hidden_state[:, :Q]
        memory = qformer.encode_frames(Padded(inputs["frames"]))
        text = Padded(inputs["text"], inputs["text_lengths"])
        pairs = qformer.forward_pairs(memory, text, index, index)
        torch.testing.assert_close(pairs.values, expected, **CLOSE)
        torch.testing.assert_close(
            heads.match(pairs), theirs.itm_head(expected).mean(1), **CLOSE_FLOAT32
        )
        torch.testing.assert_close(
            heads.embed_audio(pairs),
            F.normalize(theirs.vision_projection(expected), dim=-1),
            **CLOSE_FLOAT32,
        )


def test_gradients_of_queries_alone(blip2, inputs):
    theirs, qformer, _ = blip2
    theirs.zero_grad()
    qformer.zero_grad()
    frames = theirs.vision_model.post_layernorm(inputs["frames"])
    theirs.qformer(
        query_embeds=theirs.query_tokens.expand(B, -1, -1),
        encoder_hidden_states=frames,
        encoder_attention_mask=mask(inputs["frame_lengths"], T),
    ).last_hidden_state.square().sum().backward()
    memory = qformer.encode_frames(Padded(inputs["frames"], inputs["frame_lengths"]))
    qformer.forward_queries(memory).hidden.values.square().sum().backward()
    norm, layer = qformer.frame_norm, qformer.layers[2]
    their_norm = theirs.vision_model.post_layernorm
    their_layer = theirs.qformer.encoder.layer[2]
    for mine, expected in (
        (qformer.query_tokens, theirs.query_tokens),
        (norm.weight, their_norm.weight),
        (norm.bias, their_norm.bias),
        (
            layer.cross_attention.key.weight,
            their_layer.crossattention.attention.key.weight,
        ),
        (
            layer.cross_attention.value.bias,
            their_layer.crossattention.attention.value.bias,
        ),
        (
            layer.query_feed_forward.up.weight,
            their_layer.intermediate_query.dense.weight,
        ),
    ):
        scale = expected.grad.abs().max()
        torch.testing.assert_close(
            mine.grad / scale, expected.grad.view_as(mine) / scale, **CLOSE
        )


def test_instruction_aware_queries_with_padded_audio_and_text(inputs, tmp_path):
    """Ours -> their folder -> InstructBlipQFormerModel."""
    qformer = ours().eval()
    randomise(qformer)
    export_to_transformers(qformer, tmp_path)
    theirs, info = transformers.InstructBlipQFormerModel.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float64
    )
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert not info["unexpected_keys"]
    theirs.eval()
    with torch.no_grad():
        expected = theirs(
            input_ids=inputs["text"],
            attention_mask=F.pad(mask(inputs["text_lengths"], L), (Q, 0), value=1),
            query_embeds=qformer.query_tokens.expand(B, -1, -1),
            encoder_hidden_states=qformer.frame_norm(inputs["frames"]),
            encoder_attention_mask=mask(inputs["frame_lengths"], T),
        ).last_hidden_state[:, :Q]
        memory = qformer.encode_frames(
            Padded(inputs["frames"], inputs["frame_lengths"])
        )
        queries = qformer.forward_queries(
            memory, Padded(inputs["text"], inputs["text_lengths"])
        )
    torch.testing.assert_close(queries.hidden.values, expected, **CLOSE)


def test_queries_of_a_model_without_text(inputs, tmp_path):
    """Blip2QFormerModel as in stage 2: no text branch on either side."""
    theirs = transformers.Blip2QFormerModel(
        transformers.Blip2QFormerConfig(**QFORMER)
    ).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    qformer = ours(text_branch=False).eval()
    report = load_pretrained_qformer(
        qformer, tmp_path, reinitialise=("query_tokens", "frame_norm.*")
    )
    assert set(report.initialised) == {
        "query_tokens",
        "frame_norm.weight",
        "frame_norm.bias",
    }
    with torch.no_grad():
        expected = theirs(
            query_embeds=qformer.query_tokens.expand(B, -1, -1),
            encoder_hidden_states=qformer.frame_norm(inputs["frames"]),
            encoder_attention_mask=mask(inputs["frame_lengths"], T),
        ).last_hidden_state
        memory = qformer.encode_frames(
            Padded(inputs["frames"], inputs["frame_lengths"])
        )
        queries = qformer.forward_queries(memory)
    torch.testing.assert_close(queries.hidden.values, expected, **CLOSE)


def test_text_pass_of_a_bert_start_is_bert(inputs, tmp_path):
    theirs = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=VOCAB - 1,  # without [DEC]
            hidden_size=WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=40,
            max_position_embeddings=32,
        )
    ).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    qformer = ours(language_head=True, bos_id=VOCAB - 1).eval()
    load_pretrained_qformer(qformer, tmp_path)
    text = inputs["text"].clamp(max=VOCAB - 2)
    with torch.no_grad():
        hidden = theirs.bert(text, mask(inputs["text_lengths"], L)).last_hidden_state
        text_cls = qformer.forward_text(Padded(text, inputs["text_lengths"]))
        torch.testing.assert_close(text_cls, hidden[:, 0], **CLOSE)
        prediction = qformer.language_head(hidden, qformer.embedding.word.weight)
        torch.testing.assert_close(
            prediction[..., : VOCAB - 1], theirs.cls.predictions(hidden), **CLOSE
        )
