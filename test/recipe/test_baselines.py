"""The two baselines beside SLIT: trained by its task, scored by its scorer."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from espnet2_slit.bin import slit_score
from espnet2_slit.common.padded import Padded
from espnet2_slit.data.kaldi_dir import read_map
from espnet2_slit.scoring.metrics.score_table import read_scores

LOCAL = Path(__file__).parents[2] / "egs2" / "slit" / "slit1" / "local"
STAGES = {"dual_encoder": "representation", "captioner": "generative"}


@pytest.fixture(scope="module")
def baselines():
    if str(LOCAL) not in sys.path:
        sys.path.insert(0, str(LOCAL))
    return importlib.import_module("baselines")


@pytest.fixture(scope="module")
def test_set(tiny_features):
    """The tiny validation set, with the references that an evaluation set has."""
    folder = tiny_features / "valid"
    clips, texts = read_map(folder / "utt2audio"), read_map(folder / "text")
    lines = [f"{clips[sample]} {text}\n" for sample, text in texts.items()]
    (folder / "references").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def trained(baselines, train_command, tmp_path_factory, tiny_features):
    """{model: experiment folder}, after a few epochs."""
    folder = tmp_path_factory.mktemp("baselines")
    for model, stage in STAGES.items():
        command = train_command(stage, folder / model, epochs=12)
        command[command.index(stage)] = model
        baselines.main(["train", *command])
    return {model: folder / model for model in STAGES}


def small(baselines, model):
    """A small network, and eight clips with a text each."""
    from transformers import T5Config

    torch.manual_seed(0)
    lengths = torch.tensor([20, 30, 17, 30, 25, 9, 30, 12])
    batch = {"feats": torch.randn(8, 30, 12), "feats_lengths": lengths}
    texts, sizes = torch.randint(3, 40, (8, 6)), torch.tensor([6, 5, 6, 4, 6, 3, 6, 6])
    if model == "dual_encoder":
        network = baselines.DualEncoder(
            12, 40, width=16, layers=1, audio_layers=1, heads=2, feed_forward=32,
            dropout=0.0, joint_width=8, label_smoothing=0.0,
        )  # fmt: skip
        number = torch.arange(8)[:, None]
        batch |= {"qformer_text": texts, "qformer_text_lengths": sizes}
        batch |= {"clip_id": number, "text_id": number}
    else:
        config = T5Config(
            vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
            dropout_rate=0.0, decoder_start_token_id=0,
        )  # fmt: skip
        network = baselines.Captioner(12, config)
        batch |= {"llm_target": texts, "llm_target_lengths": sizes}
    return network, batch


@pytest.mark.parametrize("model", STAGES)
def test_a_batch_can_be_learned(baselines, model):
    network, batch = small(baselines, model)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss, stats, weight = network(**batch)
        assert weight == 8 and stats["loss"] == loss.detach()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "model, task, suffix",
    [("dual_encoder", "retrieval", "npz"), ("captioner", "caption", "txt")],
)
def test_predictions_are_what_the_scorer_reads(
    baselines, trained, test_set, tmp_path, model, task, suffix
):
    config = tmp_path / "decode.yaml"
    config.write_text("caption: {num_beams: 2, max_new_tokens: 8}\n")
    command = ["predict", "--experiment", trained[model], "--data_dir", test_set]
    command += ["--output_dir", tmp_path, "--config", config]
    baselines.main([str(word) for word in command])
    file = tmp_path / f"valid.{suffix}"
    code = slit_score.main(
        ["--predictions", f"valid:{task}={file}", "--data_dir", str(test_set.parent),
         "--system", model, "--output_dir", str(tmp_path / "scores"),
         "--resamples", "20", "--skip_meteor", "true", "--report", "false"]
    )  # fmt: skip
    assert code == 0
    table, _ = read_scores(tmp_path / "scores" / "scores.json")
    assert {row.task for row in table.rows} == {task}
    assert table.system == model


def test_padding_changes_no_embedding_and_no_caption(baselines, trained, test_set):
    for model in STAGES:
        network, options = baselines.BaselineTask.build_model_from_file(
            model_file=trained[model] / baselines.BEST, with_audio_encoder=False
        )
        clips = baselines.evaluation_set(test_set, options.audio_encoder_identity).clips
        batch = next(baselines.batches(clips.load, len(clips)))
        frames, lengths = batch
        assert len(set(lengths.tolist())) > 1
        for i, length in enumerate(lengths):
            alone = Padded(frames[i : i + 1, :length], lengths[i : i + 1])
            if model == "dual_encoder":
                with torch.no_grad():
                    together = network.embed_audio(batch)[i]
                    np.testing.assert_allclose(
                        network.embed_audio(alone)[0], together, atol=1e-5
                    )
            else:
                generate = {"max_new_tokens": 6, "num_beams": 1}
                together = network.write(batch, generate)[i]
                one = network.write(alone, generate)[0]
                kept = together[: len(one)]
                assert torch.equal(one, kept) and not together[len(one) :].any()


def test_the_captioner_takes_sizes_and_no_weights(baselines, trained, tiny_parts):
    from transformers import AutoModelForSeq2SeqLM

    frozen = AutoModelForSeq2SeqLM.from_pretrained(tiny_parts.t5)
    network, _ = baselines.BaselineTask.build_model_from_file(
        model_file=trained["captioner"] / baselines.BEST, with_audio_encoder=False
    )
    theirs, ours = frozen.state_dict(), network.network.state_dict()
    assert {k: v.shape for k, v in theirs.items()} == {
        k: v.shape for k, v in ours.items()
    }
    assert not torch.equal(theirs["shared.weight"], ours["shared.weight"])


def test_a_dual_encoder_with_a_language_model_is_refused(baselines, train_command):
    command = train_command("generative", "nowhere")
    command[command.index("generative")] = "dual_encoder"
    with pytest.raises(ValueError, match="expected no --language_model"):
        baselines.main(["train", *command])
