"""Claims about the exported embedder, by onnxruntime."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_system

from espnet2_slit.bin import shared
from espnet2_slit.bin import slit as command
from espnet2_slit.inference.slit import SLIT, InferenceError

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_parts):
    folder = tmp_path_factory.mktemp("exp")
    return tiny_system.experiment(folder / "x", tiny_parts, "representation")


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "new"
    slit = SLIT.from_pretrained(model)
    clip = np.random.default_rng(0).uniform(-0.3, 0.3, 9000).astype(np.float32)
    before = slit.embed_audio(clip, sample_rate=16000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "load", lambda args: slit)
        assert command.main(["export", "--onnx", str(folder), "--quantize"]) == 0
    # the export leaves the system as it was
    np.testing.assert_array_equal(slit.embed_audio(clip, sample_rate=16000), before)
    return folder, json.loads((folder / "onnx.json").read_text())


def run(folder, name, **inputs):
    session = onnxruntime.InferenceSession(
        str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)[0]


def test_texts_of_any_length_are_embedded_as_by_pytorch(model, exported):
    tokenizers = pytest.importorskip("tokenizers")
    folder, facts = exported
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = ["a dog barks", "rain", "an engine starts, runs, and stops"]
    rows = [tokenizer.encode(text).ids[: facts["max_text_length"]] for text in texts]
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lengths.max()), np.int64)
    for place, row in zip(ids, rows, strict=True):
        place[: len(row)] = row
    found = run(folder, "text", ids=ids, lengths=lengths)
    expected = SLIT.from_pretrained(model).embed_text(texts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_frames_of_any_number_are_embedded_as_by_pytorch(model, exported, tmp_path):
    import torch

    slit = SLIT.from_pretrained(model)
    random = np.random.default_rng(0)
    clips = [
        random.uniform(-0.3, 0.3, n).astype(np.float32) for n in (9000, 16000, 7000)
    ]
    audio = np.zeros((3, 16000), np.float32)
    for row, clip in zip(audio, clips, strict=True):
        row[: len(clip)] = clip
    lengths = torch.tensor([len(clip) for clip in clips])
    frames, counts = slit.encoder(torch.from_numpy(audio), lengths)[:2]
    found = run(exported[0], "frames", frames=frames.numpy(), lengths=counts.numpy())
    expected = slit.embed_audio(clips, sample_rate=16000)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_waveforms_of_any_length_are_embedded_as_by_pytorch(model, exported):
    slit, folder = SLIT.from_pretrained(model), exported[0]
    for samples in (9000, 16000, 50_321):
        random = np.random.default_rng(samples)
        clip = random.uniform(-0.3, 0.3, samples).astype(np.float32)
        found = run(folder, "audio", speech=clip[None])[0]
        expected = slit.embed_audio(clip, sample_rate=16000)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_traced_filterbank_is_kaldis():
    import torch
    from torchaudio.compliance import kaldi

    from espnet2_slit.inference.export import Filterbank

    speech = 0.1 * torch.randn(2, 16123, generator=torch.manual_seed(0)) + 0.01
    options = {"num_mel_bins": 128, "sample_frequency": 16000}
    expected = torch.stack([kaldi.fbank(x[None] * 2**15, **options) for x in speech])
    found = Filterbank(16000, 128, 15.0, 6.0)(speech) * 12.0 + 15.0
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_the_search_of_the_docs_runs(model, exported, tmp_path, monkeypatch, capsys):
    """Of docs/deploy.md, on what `slit embed` wrote; the order is that of `search`."""
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    (code,) = (c for c in page.split("```python")[1:] if "onnxruntime" in c)
    random = np.random.default_rng(1)
    for name in ("a", "b"):
        soundfile.write(
            tmp_path / f"{name}.wav", random.uniform(-0.3, 0.3, 9000), 16000
        )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "embedder").symlink_to(exported[0])
    words = ["embed", "a.wav", "b.wav", "--output", "clips.npz", "--model", str(model)]
    assert command.main(words) == 0
    capsys.readouterr()
    exec(compile(code.partition("```")[0], "deploy.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    hits = SLIT.from_pretrained(model).search(
        "a dog barks", ["a.wav", "b.wav"], rerank=0
    )
    assert lines == [f"{hit.score:.3f} {hit.item}" for hit in hits]


def test_the_command_says_what_it_measured(exported):
    folder, facts = exported
    assert {"audio", "frames", "text", "audio.int8", "text.int8"} <= set(
        facts["graphs"]
    )
    for name, graph in facts["graphs"].items():
        assert graph["milliseconds"] > 0
        assert graph["error"] <= 1e-4 or name.endswith(".int8")
        assert (folder / f"{name}.onnx").is_file()
    # of an encoder that cannot be traced the reason is told, and no file is left
    assert ("audio" in facts["graphs"]) != bool(facts["encoder_left_out"])
    assert (folder / "audio.onnx").is_file() == ("audio" in facts["graphs"])


def test_a_graph_that_differs_is_an_error(model, exported, tmp_path, monkeypatch):
    import torch

    from espnet2_slit.inference import export

    def other_weights(module, inputs, path, **_):
        shutil.copyfile(exported[0] / "text.int8.onnx", path)

    monkeypatch.setattr(torch.onnx, "export", other_weights)
    text = export.TextToEmbedding(SLIT.from_pretrained(model).representation.model)
    inputs = [torch.tensor([[5, 6, 7, 8, 9]] * 2), torch.tensor([5, 4])]
    with pytest.raises(InferenceError, match="expected what PyTorch computes"):
        export._export("text", text, inputs, tmp_path, onnxruntime)


def test_without_its_packages_the_command_says_what_to_install(
    model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    words = ["export", "--onnx", str(tmp_path), "--model", str(model)]
    assert command.main(words) == 1
    assert "pip install 'espnet2_slit[onnx]'" in capsys.readouterr().err
