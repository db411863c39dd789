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


def test_waveforms_of_unequal_length_are_embedded_as_by_pytorch(model, exported):
    slit, folder = SLIT.from_pretrained(model), exported[0]
    random = np.random.default_rng(0)
    for counts in (
        [9000],
        [50_321, 400, 16000],
        [3000, 2799, 2800, 160],
        [159_000] * 2,
    ):
        clips = [random.uniform(-0.3, 0.3, n).astype(np.float32) for n in counts]
        # whatever the padding holds, and however long it is
        speech = random.uniform(-1, 1, (len(clips), max(counts) + 777))
        speech = speech.astype(np.float32)
        for row, clip in zip(speech, clips, strict=True):
            row[: len(clip)] = clip
        found = run(folder, "audio", speech=speech, lengths=np.array(counts))
        expected = slit.embed_audio(clips, sample_rate=16000)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layer", [1, "weighted", "concatenated"])
def test_frames_of_any_layer_are_the_encoders(tiny_parts, layer):
    import torch

    from espnet2_slit.inference.traceable_beats import BeatsFrames
    from espnet2_slit.model.audio_encoder import build_audio_encoder

    encoder = build_audio_encoder("beats", path=str(tiny_parts.beats), layer=layer)
    if layer == "weighted":
        torch.nn.init.normal_(encoder.layer_weights)
    speech = 0.2 * torch.randn(3, 20_000, generator=torch.manual_seed(0))
    lengths = torch.tensor([20_000, 5000, 12_345])
    with torch.no_grad():
        found, counts = BeatsFrames(encoder).eval()(speech, lengths)
        expected, expected_counts = encoder(speech, lengths)
    assert counts.tolist() == expected_counts.tolist()
    for row, other, count in zip(found, expected, counts, strict=True):
        torch.testing.assert_close(row[:count], other[:count], rtol=0, atol=1e-3)


def test_windows_that_are_filled_up_are_left_out_with_the_reason(tiny_parts):
    from espnet2_slit.inference.traceable_beats import BeatsFrames
    from espnet2_slit.model.audio_encoder import build_audio_encoder

    encoder = build_audio_encoder("beats", path=str(tiny_parts.beats), fill_windows=2)
    with pytest.raises(InferenceError, match="expected fill_windows 0, found 2"):
        BeatsFrames(encoder)


OWN_ENCODER = """
import torch


class Encoder(torch.nn.Conv1d):
    sampling_rate, output_dim = 16000, 8

    def forward(self, audio, mask):
        return super().forward(audio[:, None]).transpose(1, 2).tanh()


def encoder():
    torch.manual_seed(0)
    return Encoder(1, 8, 400, stride=400)
"""


def test_another_encoder_is_exported_for_one_clip_at_a_time(
    tiny_parts, tmp_path, monkeypatch
):
    from espnet2_slit.inference import export

    (tmp_path / "own_encoder.py").write_text(OWN_ENCODER)
    monkeypatch.syspath_prepend(tmp_path)
    conf = "{path: 'own_encoder:encoder'}"
    options = {"audio_encoder": "python", "audio_encoder_conf": conf}
    folder = tmp_path / "x"
    tiny_system.experiment(folder, tiny_parts, "representation", **options)
    slit = SLIT.from_pretrained(folder)
    model = slit.representation.model
    graphs, left_out = export._audio_graph(model, slit.encoder, tmp_path, onnxruntime)
    assert left_out == "" and graphs["audio"]["inputs"] == ["speech"]
    clip = np.random.default_rng(0).uniform(-0.3, 0.3, 8000).astype(np.float32)
    found = run(tmp_path, "audio", speech=clip[None])[0]
    expected = slit.embed_audio(clip, sample_rate=16000)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_traced_filterbank_is_kaldis():
    import torch
    from torchaudio.compliance import kaldi

    from espnet2_slit.inference.traceable_beats import Filterbank

    speech = 0.1 * torch.randn(2, 16123, generator=torch.manual_seed(0)) + 0.01
    options = {"num_mel_bins": 128, "sample_frequency": 16000}
    expected = torch.stack([kaldi.fbank(x[None] * 2**15, **options) for x in speech])
    found = Filterbank(16000, 128, 15.0, 6.0)(speech) * 12.0 + 15.0
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_the_search_of_the_docs_runs(model, exported, tmp_path, monkeypatch, capsys):
    """Of docs/deploy.md, on what `slit embed` wrote; the order is that of `search`."""
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    blocks = [code.partition("```")[0] for code in page.split("```python")[1:]]
    search, of_windows = (code for code in blocks if "onnxruntime" in code)
    random = np.random.default_rng(1)
    for name, samples in (("a", 9000), ("b", 9000), ("long", 2 * 158_720 + 5000)):
        audio = random.uniform(-0.3, 0.3, samples)
        soundfile.write(tmp_path / f"{name}.wav", audio, 16000)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "embedder").symlink_to(exported[0])
    words = ["embed", "a.wav", "b.wav", "--output", "clips.npz", "--model", str(model)]
    assert command.main(words) == 0
    capsys.readouterr()
    names: dict = {}
    exec(compile(search, "deploy.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    slit = SLIT.from_pretrained(model)
    hits = slit.search("a dog barks", ["a.wav", "b.wav"], rerank=0)
    assert lines == [f"{hit.score:.3f} {hit.item}" for hit in hits]

    exec(compile(of_windows, "deploy.md", "exec"), names)
    score, file = capsys.readouterr().out.split()
    windows = np.split(names["clip"], [158_720, 2 * 158_720])
    expected = slit.embed_audio(windows, sample_rate=16000) @ names["query"][0]
    assert file == "long.wav" and float(score) == pytest.approx(
        expected.max(), abs=2e-3
    )


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
        export._export("text", text, [inputs], tmp_path, onnxruntime)


def test_without_its_packages_the_command_says_what_to_install(
    model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    words = ["export", "--onnx", str(tmp_path), "--model", str(model)]
    assert command.main(words) == 1
    assert "pip install 'espnet2_slit[onnx]'" in capsys.readouterr().err
