"""Pretrained weights: each source is recognised, and every name accounted for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_qformer import BOS, ENCODER_WIDTH, SIZES, VOCAB, tiny_heads, tiny_qformer

from espnet2_slit.model.qformer_weights import (
    ENCODER_SIDE,
    EXTRA_FILE,
    export_to_transformers,
    load_pretrained_qformer,
    qformer_sizes,
)


@pytest.fixture(scope="module")
def convert():
    file = Path(__file__).parents[2] / "tools" / "convert_qformer.py"
    spec = importlib.util.spec_from_file_location("convert_qformer", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def tiny_bert(folder, **sizes):
    config = dict(
        vocab_size=VOCAB - 1,
        hidden_size=SIZES["width"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
        intermediate_size=SIZES["feed_forward"],
        max_position_embeddings=20,
    )
    bert = transformers.BertForPreTraining(transformers.BertConfig(**config | sizes))
    bert.save_pretrained(folder)
    return bert


def lavis_state(qformer, heads=None, prefix="", wrapped=True):
    """Our weights under LAVIS' names: stage 1, or one modality of X-InstructBLIP."""
    state = {}
    for name, tensor in qformer.state_dict().items():
        parts = name.split(".")
        if parts[0] == "layers":
            inner, last = ".".join(parts[2:-1]), parts[-1]
            base = f"{prefix}Qformer.bert.encoder.layer.{parts[1]}"
            if inner == "self_attention.query_key_value":
                for part, chunk in zip(
                    ("query", "key", "value"), tensor.chunk(3), strict=True
                ):
                    state[f"{base}.attention.self.{part}.{last}"] = chunk
                continue
            theirs = {
                "self_attention.output": "attention.output.dense",
                "self_attention.norm": "attention.output.LayerNorm",
                "cross_attention.query": "crossattention.self.query",
                "cross_attention.key": "crossattention.self.key",
                "cross_attention.value": "crossattention.self.value",
                "cross_attention.output": "crossattention.output.dense",
                "cross_attention.norm": "crossattention.output.LayerNorm",
                "query_feed_forward.up": "intermediate_query.dense",
                "query_feed_forward.down": "output_query.dense",
                "query_feed_forward.norm": "output_query.LayerNorm",
                "text_feed_forward.up": "intermediate.dense",
                "text_feed_forward.down": "output.dense",
                "text_feed_forward.norm": "output.LayerNorm",
            }[inner]
            state[f"{base}.{theirs}.{last}"] = tensor
        elif name == "query_tokens":
            state[f"{prefix}query_tokens"] = tensor[None]
        else:
            norm = f"{prefix}ln" if prefix else "ln_vision"
            renamed = (
                name.replace("frame_norm", norm)
                .replace("embedding.word.", "word_embeddings.")
                .replace("embedding.position.", "position_embeddings.")
                .replace("embedding_norm", "LayerNorm")
                .replace("language_head.", "cls.predictions.")
            )
            if renamed.startswith(("word_", "position_", "LayerNorm")):
                renamed = f"{prefix}Qformer.bert.embeddings.{renamed}"
            if renamed.startswith("cls.predictions.") and "bias" != parts[1]:
                renamed = renamed.replace("transform.", "transform.dense.")
                renamed = renamed.replace(
                    "predictions.norm.", "predictions.transform.LayerNorm."
                )
            if renamed.startswith("cls."):
                renamed = f"{prefix}Qformer.{renamed}"
            state[renamed] = tensor
    if qformer.language_head is not None:
        word = qformer.embedding.word.weight
        state[f"{prefix}Qformer.cls.predictions.decoder.weight"] = word.detach()
    if heads is not None:
        state |= {
            "vision_proj.weight": heads.audio_projection.weight.detach(),
            "vision_proj.bias": heads.audio_projection.bias.detach(),
            "text_proj.weight": heads.text_projection.weight.detach(),
            "text_proj.bias": heads.text_projection.bias.detach(),
            "itm_head.weight": heads.matching_head.weight.detach(),
            "itm_head.bias": heads.matching_head.bias.detach(),
            "temp": torch.tensor(0.05),
        }
    state["visual_encoder.blocks.0.attn.qkv.weight"] = torch.zeros(2, 2)
    state = {name: tensor.clone() for name, tensor in state.items()}
    return {"model": state, "epoch": 3} if wrapped else state


def assert_same(ours, theirs):
    expected = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


# -- sources --------------------------------------------------------------------------


def test_bert_start_copies_the_text_feed_forward_to_the_queries(tmp_path):
    bert = tiny_bert(tmp_path)
    qformer, before = tiny_qformer(), tiny_qformer().state_dict()
    report = load_pretrained_qformer(qformer, tmp_path)
    assert report.kind == "bert"
    for ours, theirs in zip(qformer.layers, bert.bert.encoder.layer, strict=True):
        up = theirs.intermediate.dense.weight
        assert torch.equal(ours.text_feed_forward.up.weight, up)
        assert torch.equal(ours.query_feed_forward.up.weight, up)
    # what BERT lacks keeps its start, and is reported
    state = qformer.state_dict()
    for name in report.initialised:
        assert torch.equal(state[name], before[name])
    assert {n.split(".")[0] for n in report.initialised} == {
        "query_tokens",
        "frame_norm",
        "layers",
    }
    assert all(
        "cross_attention" in n for n in report.initialised if n.startswith("layers")
    )
    assert any("pooler" in n for n in report.left)


def test_bert_start_adds_a_row_for_dec_and_cuts_positions(tmp_path):
    bert = tiny_bert(tmp_path)
    qformer, before = tiny_qformer(), tiny_qformer().state_dict()
    report = load_pretrained_qformer(qformer, tmp_path)
    word = bert.bert.embeddings.word_embeddings.weight
    assert torch.equal(qformer.embedding.word.weight[:-1], word)
    assert torch.equal(
        qformer.embedding.word.weight[BOS], before["embedding.word.weight"][BOS]
    )
    notes = "\n".join(report.notes)
    assert "embedding.word.weight: rows 49..49 are new tokens" in notes
    assert "the first 16 of 20 positions" in notes


@pytest.mark.parametrize("file", ["pytorch_model.bin", "weights.safetensors"])
def test_old_bert_files_with_gamma_and_beta(tmp_path, file):
    bert = tiny_bert(tmp_path)
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t.clone()
        for n, t in bert.state_dict().items()
        if "decoder" not in n
    }
    (tmp_path / "model.safetensors").unlink()
    if file.endswith("bin"):
        torch.save(old, tmp_path / file)
        source = tmp_path
    else:
        source = tmp_path / file
        save_file(old, source)
    qformer = tiny_qformer()
    load_pretrained_qformer(qformer, source)
    norm = bert.bert.encoder.layer[1].attention.output.LayerNorm.weight
    assert torch.equal(qformer.layers[1].self_attention.norm.weight, norm)


@pytest.mark.parametrize("wrapped", [True, False])
def test_lavis_stage_one(tmp_path, wrapped):
    theirs, their_heads = tiny_qformer(seed=1), tiny_heads(seed=1)
    torch.save(
        lavis_state(theirs, their_heads, wrapped=wrapped), tmp_path / "blip2.pth"
    )
    qformer, heads = tiny_qformer(), tiny_heads()
    report = load_pretrained_qformer(qformer, tmp_path / "blip2.pth", heads)
    assert report.kind == "lavis" and not report.initialised
    assert report.left == ["visual_encoder.blocks.0.attn.qkv.weight"]
    assert_same(qformer, theirs)
    assert heads.temperature().item() == pytest.approx(0.05)
    assert torch.equal(heads.matching_head.weight, their_heads.matching_head.weight)


def test_lavis_instruct_has_no_vocabulary_head(tmp_path):
    theirs = tiny_qformer(seed=1, language_head=False)
    torch.save(lavis_state(theirs), tmp_path / "instruct.pth")
    qformer = tiny_qformer(language_head=False)
    load_pretrained_qformer(qformer, tmp_path / "instruct.pth")
    assert_same(qformer, theirs)
    with pytest.raises(ValueError, match=r"missing: language_head.bias \(50,\)"):
        load_pretrained_qformer(tiny_qformer(), tmp_path / "instruct.pth")
    report = load_pretrained_qformer(
        tiny_qformer(), tmp_path / "instruct.pth", reinitialise=["language_head.*"]
    )
    assert len(report.initialised) == 5


def test_lavis_text_parts_are_left_when_ours_has_no_text(tmp_path):
    theirs = tiny_qformer(seed=1)
    torch.save(lavis_state(theirs), tmp_path / "blip2.pth")
    qformer = tiny_qformer(text_branch=False, vocab_size=0)
    report = load_pretrained_qformer(qformer, tmp_path / "blip2.pth")
    assert_same(qformer, theirs)
    assert "language_head.bias" in report.left
    assert "layers.0.text_feed_forward.up.weight" in report.left


def test_x_instructblip_gives_the_qformer_of_the_modality(tmp_path):
    audio = tiny_qformer(seed=1, language_head=False)
    video = tiny_qformer(seed=2, language_head=False)
    state = lavis_state(audio, prefix="audio_", wrapped=False)
    state |= lavis_state(video, prefix="video_", wrapped=False)
    state["audio_llm_proj.weight"] = torch.zeros(3, 3)
    torch.save({"model": state}, tmp_path / "x.pth")
    for modality, expected, projection in (
        ("audio", audio, "language_projection.weight"),  # its own: none was given here
        ("video", video, "audio_llm_proj.weight"),
    ):
        qformer = tiny_qformer(language_head=False)
        report = load_pretrained_qformer(qformer, tmp_path / "x.pth", modality=modality)
        assert_same(qformer, expected)
        assert projection in report.left


def test_transformers_instructblip_in_shards(tmp_path):
    config = transformers.InstructBlipConfig(
        vision_config=dict(
            hidden_size=ENCODER_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            image_size=8,
            patch_size=4,
        ),
        qformer_config=dict(
            vocab_size=VOCAB,
            hidden_size=SIZES["width"],
            num_hidden_layers=SIZES["layers"],
            num_attention_heads=SIZES["heads"],
            intermediate_size=SIZES["feed_forward"],
            encoder_hidden_size=ENCODER_WIDTH,
            max_position_embeddings=16,
        ),
        text_config=dict(
            model_type="opt",
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_dim=8,
            vocab_size=20,
            word_embed_proj_dim=8,
        ),
        num_query_tokens=SIZES["num_queries"],
    )
    model = transformers.InstructBlipForConditionalGeneration(config)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    qformer = tiny_qformer(language_head=False)
    report = load_pretrained_qformer(qformer, tmp_path)
    assert report.kind == "transformers" and not report.initialised
    state = {n.removeprefix("model."): t for n, t in model.state_dict().items()}
    assert torch.equal(qformer.query_tokens, state["query_tokens"][0])
    assert torch.equal(
        qformer.layers[3].text_feed_forward.down.weight,
        state["qformer.encoder.layer.3.output.dense.weight"],
    )
    assert torch.equal(
        qformer.frame_norm.bias, state["vision_model.post_layernorm.bias"]
    )


def test_export_and_import_give_everything_back(tmp_path):
    more = dict(max_windows=2, frames_per_window=5, frame_position=0.5)
    theirs = tiny_qformer(seed=1, **more)
    their_heads = tiny_heads(seed=1)
    export_to_transformers(theirs, tmp_path / "folder", their_heads)
    names = set(load_file(tmp_path / "folder" / EXTRA_FILE))
    assert {"slit.query_tokens", "slit.frame_norm.weight"} <= names
    qformer = tiny_qformer(**more | {"frame_position": 0.25})
    heads = tiny_heads()
    report = load_pretrained_qformer(qformer, tmp_path / "folder", heads)
    assert not report.initialised and not report.left
    assert_same(qformer, theirs)
    assert_same(heads, their_heads)
    with pytest.raises(ValueError, match="text_branch: false"):
        blind = tiny_qformer(text_branch=False, vocab_size=0)
        export_to_transformers(blind, tmp_path / "blind")


# -- what does not fit is an error ----------------------------------------------------


def test_another_encoder_width_needs_an_explicit_choice(tmp_path):
    theirs = tiny_qformer(seed=1)
    torch.save(lavis_state(theirs), tmp_path / "blip2.pth")
    with torch.random.fork_rng():
        from espnet2_slit.model.qformer import QFormer

        qformer = QFormer(33, VOCAB, **SIZES)
    before = {n: t.clone() for n, t in qformer.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_pretrained_qformer(qformer, tmp_path / "blip2.pth")
    message = str(error.value)
    shapes = "layers.0.cross_attention.key.weight: source (24, 20), ours (24, 33)"
    assert f"misshapen: {shapes}" in message
    assert "misshapen: frame_norm.weight: source (20,), ours (33,)" in message
    assert all(pattern in message for pattern in ENCODER_SIDE)
    for name, tensor in qformer.state_dict().items():
        assert torch.equal(tensor, before[name]), "changed although it failed"
    report = load_pretrained_qformer(
        qformer, tmp_path / "blip2.pth", reinitialise=ENCODER_SIDE
    )
    assert len(report.initialised) == 2 + 2 * 4
    assert torch.equal(qformer.query_tokens, theirs.query_tokens)


def test_all_problems_are_listed_at_once(tmp_path):
    state = lavis_state(tiny_qformer(seed=1), wrapped=False)
    del state["Qformer.bert.encoder.layer.1.output.dense.bias"]
    state["Qformer.bert.encoder.layer.2.adapter.weight"] = torch.zeros(2)
    state["Qformer.bert.embeddings.LayerNorm.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(ValueError) as error:
        load_pretrained_qformer(tiny_qformer(), tmp_path / "broken.pth")
    message = str(error.value)
    assert "3 problems" in message
    assert "missing: layers.1.text_feed_forward.down.bias (24,)" in message
    assert "unexpected: Qformer.bert.encoder.layer.2.adapter.weight (2,)" in message
    assert "misshapen: embedding_norm.bias: source (3,), ours (24,)" in message


def test_more_layers_than_ours_are_not_dropped(tmp_path):
    tiny_bert(tmp_path, num_hidden_layers=5)
    with pytest.raises(ValueError, match="unexpected: layers.4.self_attention"):
        load_pretrained_qformer(tiny_qformer(), tmp_path)


def test_smaller_vocabulary_than_the_source_is_an_error(tmp_path):
    tiny_bert(tmp_path, vocab_size=VOCAB + 7)
    with pytest.raises(ValueError, match=r"word.weight: source \(57, 24\), ours \(50"):
        load_pretrained_qformer(tiny_qformer(), tmp_path)


def test_untied_prediction_head_is_an_error(tmp_path):
    state = lavis_state(tiny_qformer(seed=1), wrapped=False)
    state["Qformer.cls.predictions.decoder.weight"] += 1
    torch.save(state, tmp_path / "untied.pth")
    with pytest.raises(ValueError, match="ties the two"):
        load_pretrained_qformer(tiny_qformer(), tmp_path / "untied.pth")


def test_unknown_sources_say_what_was_found(tmp_path, monkeypatch):
    torch.save({"encoder.w": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not recognised.*encoder.w"):
        load_pretrained_qformer(tiny_qformer(), tmp_path / "other.pth")
    torch.save({"step": 3}, tmp_path / "no_tensors.pth")
    with pytest.raises(ValueError, match="expected a dict of tensors.*step"):
        load_pretrained_qformer(tiny_qformer(), tmp_path / "no_tensors.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        load_pretrained_qformer(tiny_qformer(), tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        load_pretrained_qformer(tiny_qformer(), tmp_path / "nowhere" / "a" / "b")


def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        load_pretrained_qformer(tiny_qformer(), tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


# -- converter ------------------------------------------------------------------------


def test_sizes_are_read_from_the_weights():
    sizes = qformer_sizes(tiny_qformer().state_dict(), heads=4)
    expected = {n: v for n, v in SIZES.items() if n not in ("dropout", "bos_id")}
    assert expected.items() <= sizes.items()
    assert sizes["encoder_width"] == ENCODER_WIDTH and sizes["vocab_size"] == VOCAB
    assert sizes["cross_attention_every"] == 2
    with pytest.raises(ValueError, match="width 24 is not a multiple of 64"):
        qformer_sizes(tiny_qformer().state_dict())


def test_converter_goes_there_and_back(tmp_path, convert):
    theirs, their_heads = tiny_qformer(seed=1), tiny_heads(seed=1)
    torch.save(lavis_state(theirs, their_heads), tmp_path / "blip2.pth")
    ours, folder, again = (str(tmp_path / n) for n in ("a.pth", "folder", "b.pth"))
    convert(["import", str(tmp_path / "blip2.pth"), ours, "--num_heads", "4"])
    convert(["export", ours, folder, "--num_heads", "4"])
    model = transformers.InstructBlipQFormerModel.from_pretrained(folder)
    assert torch.equal(
        model.encoder.layer[2].crossattention.attention.key.weight,
        theirs.layers[2].cross_attention.key.weight,
    )
    convert(["import", folder, again, "--num_heads", "4"])
    first, second = (torch.load(f, weights_only=True) for f in (ours, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert torch.equal(first["qformer.query_tokens"], theirs.query_tokens)


def test_converter_starts_from_bert_for_another_encoder(tmp_path, convert):
    tiny_bert(tmp_path)
    command = ["import", str(tmp_path), str(tmp_path / "start.pth"), "--num_heads", "4"]
    with pytest.raises(SystemExit, match="--encoder_width and --num_queries"):
        convert(command)
    sizes = ["--encoder_width", "31", "--num_queries", "7", "--vocab_size", "50"]
    convert([*command, *sizes])
    state = torch.load(tmp_path / "start.pth", weights_only=True)
    assert state["qformer.query_tokens"].shape == (7, 24)
    assert state["qformer.layers.2.cross_attention.key.weight"].shape == (24, 31)
    assert state["qformer.embedding.word.weight"].shape == (50, 24)
