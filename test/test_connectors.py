"""Stacked frames in place of the Q-Former, from training to every way of asking."""

import numpy as np
import pytest
import tiny_system
import torch
import yaml
from tiny_system import SHORT

from espnet2_slit.common.weights import read_checkpoint
from espnet2_slit.inference.attention import attention
from espnet2_slit.inference.pack import pack
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.slit import SLIT
from espnet2_slit.task import SLITTask

STACK = "{stack: 4, hidden: 8}"


@pytest.fixture(scope="module", params=["linear", "mlp"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def clips():
    random = np.random.default_rng(0)
    lengths = 9000, 16000, 12500
    return [(random.uniform(-0.3, 0.3, n).astype(np.float32), 16000) for n in lengths]


def test_both_stages_train_and_go_on_after_a_stop(
    kind, tmp_path, tiny_features, train_command
):
    more = ["--connector", kind, "--connector_conf", STACK]
    first, second = tmp_path / "generative", tmp_path / "instruction"
    SLITTask.main(cmd=train_command("generative", first, *more))
    more += ["--init_param", str(first / "1epoch.pth")]
    SLITTask.main(cmd=train_command("instruction", second, *more))
    resumed = train_command("instruction", second, *more, "--resume", "true", epochs=2)
    SLITTask.main(cmd=resumed)
    assert read_checkpoint(second / "checkpoint.pth")["reporter"]["epoch"] == 2
    started, ended = (
        torch.load(file, weights_only=True)
        for file in (first / "1epoch.pth", second / "2epoch.pth")
    )
    assert set(started) == set(ended)
    assert {name.split(".")[0] for name in ended} == {
        "connector",
        "language_projection",
    }
    assert all((started[name] != ended[name]).any() for name in ended)
    config = yaml.safe_load((second / "config.yaml").read_text())
    assert config["connector"] == kind and not config["qformer_tokenizer_identity"]
    model, _ = SLITTask.build_model_from_file(
        second / "config.yaml", second / "2epoch.pth"
    )
    assert model.encoder_width == config["audio_encoder_identity"]["width"]


@pytest.fixture(scope="module")
def slit(kind, tmp_path_factory, tiny_parts):
    folder = tmp_path_factory.mktemp(kind)
    options = dict(connector=kind, connector_conf=STACK)
    return SLIT.from_pretrained(tiny_system.system(folder, tiny_parts, **options))


def test_it_writes_ranks_and_searches_one_clip_as_in_a_batch(slit, clips):
    captions = slit.caption(clips, options=SHORT)
    assert captions == [slit.caption(clip, options=SHORT) for clip in clips]
    labels = ["dog", "rain", "bell"]
    found = slit.classify(clips, labels, route="language_model")
    alone = [slit.classify(clip, labels, route="language_model") for clip in clips]
    for one, other in zip(found, alone, strict=True):
        for label in labels:
            assert one.scores[label] == pytest.approx(other.scores[label], abs=1e-4)
    answer = slit.answer(clips[0], "is it loud?", candidates=["yes", "no"])
    assert answer in ("yes", "no")
    assert len(slit.search("a dog barks", clips)) == 3  # by the representation part


def test_archive_of_it_opens(slit, kind, clips, tmp_path, tiny_parts):
    options = dict(connector=kind, connector_conf=STACK)
    folder = tiny_system.system(tmp_path / "exp", tiny_parts, **options)
    archive = pack(folder, tmp_path / "tiny.zip")
    opened = SLIT.from_pretrained(
        archive,
        tmp_path / "cache",
        audio_encoder=str(tiny_parts.beats),
        language_model=str(tiny_parts.llama),
    )
    assert opened.caption(clips[1], options=SHORT) == slit.caption(
        clips[1], options=SHORT
    )


def test_what_needs_queries_says_so(kind, clips, tmp_path, tiny_parts):
    options = dict(connector=kind, connector_conf=STACK)
    folder = tiny_system.experiment(
        tmp_path / "lone", tiny_parts, "instruction", **options
    )
    lone = SLIT.from_pretrained(folder)
    assert isinstance(lone.caption(clips[0], options=SHORT), str)
    with pytest.raises(InferenceError, match=f"a Q-Former.*connector: {kind}"):
        attention(lone, lone.clips(clips))
    with pytest.raises(ValueError, match="representation: expected --connector qform"):
        tiny_system.experiment(
            tmp_path / "no", tiny_parts, "representation", connector=kind
        )
