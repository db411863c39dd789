"""A released system, imported: every weight, every command, and training from it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import torch
import yaml
from golden_file import Golden
from xinstruct_parts import GOLDEN, parts

from espnet2_slit import SLIT
from espnet2_slit.bin import shared
from espnet2_slit.bin import slit as command
from espnet2_slit.bin import slit_encode, slit_inference, slit_pack, slit_train
from espnet2_slit.common.weights import read_weights
from espnet2_slit.inference.attention import attention
from espnet2_slit.inference.generation import score_candidates

RATE = 16000
SECONDS = (1.5, 6.0, 12.5)  # of windows of 5.12 s: 2, 2 and 3
DESCRIPTIONS = ("a dog barks", "rain falls", "a car passes by and a bell rings")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Of the golden file in this folder, whatever a variable names."""
    return parts(tmp_path_factory.mktemp("released"), Golden("", GOLDEN[1]))


def words(files, out, **changed):
    given = {
        "qformer": files.qformer,
        "audio_encoder": files.audio_encoder,
        "language_model": files.language_model,
        "qformer_tokenizer": files.qformer_tokenizer,
        "heads": files.heads,
        "dtype": "float32",
        "out": out,
        **changed,
    }
    pairs = [(f"--{name}", str(value)) for name, value in given.items()]
    return ["import", "xinstructblip", *(word for pair in pairs for word in pair)]


@pytest.fixture(scope="module")
def system(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("exp") / "xinstructblip"
    assert command.main(words(files, out)) == 0
    return out


@pytest.fixture(scope="module")
def slit(system):
    return SLIT.from_pretrained(system)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    random = np.random.RandomState(0)
    for i, seconds in enumerate(SECONDS):
        audio = 0.1 * random.randn(int(seconds * RATE))
        soundfile.write(folder / f"{i}.wav", audio.astype(np.float32), RATE)
    return [str(folder / f"{i}.wav") for i in range(len(SECONDS))]


@pytest.fixture
def run(slit, monkeypatch, capsys):
    monkeypatch.setattr(shared, "load", lambda args: slit)

    def call(*given):
        status = command.main([str(word) for word in given])
        return status, capsys.readouterr().out.splitlines()

    return call


# ---------------------------------------------------------------------------- weights


def test_every_weight_is_in_its_place(files, system):
    state = torch.load(files.qformer, weights_only=True)["model"]
    model = read_weights(system / "model.pth")
    report = json.loads((system / "import.json").read_text())
    assert report["loaded"] == len(model) and report["layout"] == "plain"
    used = set(state) - set(report["buffers"])
    assert all(n.endswith(("position_ids", "inv_freq")) for n in report["buffers"])
    # three self-attention matrices of theirs are one of ours
    joint = [n for n in used if ".attention.self." in n]
    assert len(model) == len(used) - len(joint) + len(joint) // 3
    assert sum(t.numel() for t in model.values()) == sum(
        state[name].numel() for name in used
    )


def changed(files, folder, change):
    content = torch.load(files.qformer, weights_only=True)
    change(content["model"])
    torch.save(content, folder / "audio_qformer.pth")
    return folder / "audio_qformer.pth"


LAYER = "audio_Qformer.bert.encoder.layer.1."


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("audio_llm_proj.bias"), "missing: language_projection.bias"),
        (lambda s: s.pop("audio_ln.bias"), "missing: frame_norm.bias"),
        (lambda s: s.pop("audio_query_tokens"), "Missing: audio_query_tokens"),
        (
            lambda s: s.pop("audio_Qformer.bert.embeddings.LayerNorm.weight"),
            "Missing: audio_Qformer.bert.embeddings.LayerNorm.weight",
        ),
        (
            lambda s: s.pop(f"{LAYER}attention.self.key.bias"),
            "lacks key of layers.1.self_attention.query_key_value.bias",
        ),
        (
            lambda s: s.update({f"{LAYER}output.dense.bias": torch.zeros(3)}),
            r"misshapen: layers.1.text_feed_forward.down.bias: source \(3,\)",
        ),
        (
            lambda s: s.update({f"{LAYER}gate.weight": torch.zeros(3)}),
            "unexpected: .*gate.weight",
        ),
        (
            lambda s: s.update({"video_llm_proj.weight": torch.zeros(3)}),
            "unexpected: video_llm_proj.weight",
        ),
    ],
)
def test_a_file_that_differs_by_one_weight_is_refused(
    files, tmp_path, change, message, capsys
):
    file = changed(files, tmp_path, change)
    assert command.main(words(files, tmp_path / "out", qformer=file)) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_nothing_is_unpickled(files, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was_here",))

    torch.save({"model": {"x": Evil()}}, tmp_path / "evil.pth")
    status = command.main(words(files, tmp_path / "out", qformer=tmp_path / "evil.pth"))
    assert status == 1 and "evil.pth" in capsys.readouterr().err
    assert not (tmp_path / "was_here").exists()


def test_parts_that_do_not_belong_together_are_named(files, tmp_path, capsys):
    """Another width of frames or language model, another vocabulary, no tokenizer."""
    beats = tiny.beats_checkpoint(tmp_path / "beats")  # 24 wide
    status = command.main(words(files, tmp_path / "a", audio_encoder=beats))
    error = capsys.readouterr().err
    assert status == 1 and "expected frames of width" in error and "found 24" in error

    file = changed(
        files,
        tmp_path,
        lambda s: s.update(
            {"audio_llm_proj.weight": torch.zeros(7, s["audio_query_tokens"].shape[2])}
        ),
    )
    status = command.main(words(files, tmp_path / "b", qformer=file))
    assert status == 1 and "embeddings of width 7" in capsys.readouterr().err

    other = tiny.bert_tokenizer(tmp_path / "bert")
    status = command.main(words(files, tmp_path / "c", qformer_tokenizer=other))
    assert status == 1 and "qformer_tokenizer: expected" in capsys.readouterr().err

    folder = tmp_path / "vicuna"
    shutil.copytree(files.language_model, folder)
    (folder / "tokenizer.model").unlink()
    status = command.main(words(files, tmp_path / "d", language_model=folder))
    assert status == 1 and "tokenizer.model, found nothing" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_left_alone(files, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert command.main(words(files, tmp_path)) == 1
    assert "new or empty folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


# --------------------------------------------------------------------------- commands


def test_captions_are_asked_for_as_its_makers_ask(slit, clips, run):
    options = slit.writing("caption")
    assert (options.num_beams, options.max_new_tokens) == (5, 79)
    assert slit.wording("caption") == "a short description"
    status, lines = run("caption", *clips, "--max_new_tokens", "12")
    expected = [slit.caption(clip, options={"max_new_tokens": 12}) for clip in clips]
    assert status == 0 and len(set(expected)) > 1
    assert [line.split("\t")[1] for line in lines] == expected


def test_long_clips_are_read_whole_and_short_ones_filled(slit, clips):
    found = slit.extract_features(clips)["last_hidden_state"]
    queries = slit.generator.model.qformer.num_queries
    assert found.shape[1] == 3 * queries and found[2].any(axis=-1).all()
    assert not found[:2, 2 * queries :].any()
    maps = attention(slit, slit.clips(clips))
    assert [m.shape[-1] for m in maps] == [512, 512, 768]
    np.testing.assert_allclose(maps[2][..., 512:].sum(-1), 1, atol=1e-5)


def test_answers_and_candidates(slit, clips, run):
    question = "Is it LOUD?"
    assert slit.wording("question_answering", question) == (
        "Question: is it loud? Answer:"
    )
    status, lines = run("ask", question, *clips)
    assert status == 0 and len(lines) == len(clips)
    status, lines = run("ask", question, clips[0], "--candidates", "yes", "no")
    assert status == 0 and lines[0] in ("yes", "no")


def test_labels_are_ranked_by_sums_without_an_end(slit, clips, run):
    labels = ["dog", "rain", "car_engine"]
    status, lines = run("classify", clips[0], "--labels", *labels, "--json")
    found = json.loads(lines[0])
    speech = slit.clips(clips[:1])
    texts = [f"an audio of {label.replace('_', ' ')}" for label in labels]
    request = [(0, "describe the audio")]
    sums = score_candidates(slit, speech, request, texts, end=False)
    assert status == 0 and list(found["scores"].values()) == pytest.approx(
        sorted(sums[0].tolist(), reverse=True)
    )
    assert found["label"] == labels[int(sums[0].argmax())]


def test_info_says_what_it_is(system, files, run):
    status, lines = run("info", system)
    text = "\n".join(lines)
    assert status == 0 and "instruction" in text and str(files.qformer) in text


def test_packed_and_opened_elsewhere(system, slit, clips, tmp_path):
    archive = tmp_path / "x.zip"
    slit_pack.main(["--exp", str(system), "--outpath", str(archive),
                    "--include_frozen", "true"])  # fmt: skip
    options = {"max_new_tokens": 8}
    other = SLIT.from_pretrained(archive, cache_dir=tmp_path / "cache")
    assert other.caption(clips, options=options) == slit.caption(clips, options=options)
    assert other.wording("caption") == "a short description"


def data_dir(folder, clips, **more):
    folder.mkdir(parents=True)
    names = [f"clip{i}" for i in range(len(clips))]
    columns = {"wav.scp": clips, "utt2spk": names, **more}
    columns["utt2num_samples"] = [int(s * RATE) for s in SECONDS]
    for file, values in columns.items():
        lines = (f"{n} {v}\n" for n, v in zip(names, values, strict=True))
        (folder / file).write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def raw(clips, tmp_path_factory):
    return data_dir(tmp_path_factory.mktemp("data") / "set", clips, text=DESCRIPTIONS)


def test_a_set_is_decoded_as_its_clips_are(system, slit, clips, raw, tmp_path):
    config = tmp_path / "decode.yaml"
    config.write_text("caption: {max_new_tokens: 6}\n")
    labelled = tmp_path / "labelled"
    shutil.copytree(raw, labelled)
    (labelled / "labels").write_text("dog\nrain\n")
    for folder in (raw, labelled):
        slit_inference.main(
            ["--model", str(system), "--data_dir", str(folder), "--config", str(config),
             "--output_dir", str(tmp_path / f"out_{folder.name}")]
        )  # fmt: skip
    expected = slit.caption(clips, options={"max_new_tokens": 6})
    lines = (tmp_path / "out_set" / "caption" / "text").read_text().splitlines()
    written = [line.partition(" ")[2] for line in lines]
    assert written == [" ".join(text.split()) for text in expected]
    facts = json.loads((tmp_path / "out_set" / "decode.json").read_text())
    assert facts["decoding"]["caption"]["repetition_penalty"] == 1.15
    scores = np.load(tmp_path / "out_labelled" / "classification" / "scores.npz")
    found = slit.classify(clips[0], ["dog", "rain"], route="language_model").scores
    expected = [found["dog"], found["rain"]]
    np.testing.assert_allclose(scores["language_model_sum"][0], expected, atol=1e-4)


# --------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def cached(system, raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("dump") / "set"
    slit_encode.main(
        ["--data_dir", str(raw), "--output_dir", str(out),
         "--config", str(system / "finetune_instruction.yaml")]
    )  # fmt: skip
    return out


def train(config, folder, out, init, *more):
    audio, shape = "feats.scp,feats,kaldi_ark", "feats_shape"
    options = ["--features", folder / "feats.json"]
    if not (folder / "feats.json").is_file():
        audio, shape, options = "wav.scp,speech,sound", "utt2num_samples", []
    for part in ("train", "valid"):
        name = f"--{part}_data_path_and_name_and_type"
        options += [name, f"{folder}/{audio}", name, f"{folder}/text,text,text"]
        options += [f"--{part}_shape_file", folder / shape]
    options += ["--config", config, "--output_dir", out, "--init_param", init]
    options += ["--max_epoch", "2", "--num_workers", "0", "--use_tensorboard", "false"]
    options += ["--use_matplotlib", "false", "--optim_conf", "lr=0.001", *more]
    slit_train.main([str(option) for option in options])
    return out


@pytest.mark.parametrize("stage, from_cache", [
    ("generative", True), ("instruction", True), ("instruction", False)
])  # fmt: skip
def test_training_goes_on_from_it(
    stage, from_cache, system, slit, raw, cached, clips, tmp_path
):
    out = train(
        system / f"finetune_{stage}.yaml", cached if from_cache else raw,
        tmp_path / stage, system / "model.pth",
    )  # fmt: skip
    before = read_weights(system / "model.pth")
    after = read_weights(out / "valid.loss.best.pth")
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert "query_tokens" in " ".join(moved) and "language_projection.weight" in moved
    trained = SLIT.from_pretrained(out)
    assert trained.wording("caption") == "a short description"
    assert trained.caption(clips, options={"max_new_tokens": 4})
    # before a step is taken it says what the imported system says
    untouched = train(
        system / f"finetune_{stage}.yaml", cached, tmp_path / "still",
        system / "model.pth", "--optim_conf", "lr=0",
    )  # fmt: skip
    if stage == "instruction":
        options = {"max_new_tokens": 6}
        same = SLIT.from_pretrained(untouched).caption(clips, options=options)
        assert same == slit.caption(clips, options=options)


def test_frames_that_were_not_filled_are_refused(system, files, raw, tmp_path):
    out = tmp_path / "dump"
    slit_encode.main(
        ["--data_dir", str(raw), "--output_dir", str(out), "--audio_encoder", "beats",
         "--audio_encoder_conf", f"path={files.audio_encoder}"]
    )  # fmt: skip
    with pytest.raises(ValueError, match="fill_windows: expected 2, found None"):
        train(system / "finetune_instruction.yaml", out, tmp_path / "x",
              system / "model.pth")  # fmt: skip


def test_its_qformer_starts_a_representation_stage(system, cached, clips, tmp_path):
    config = yaml.safe_load((system / "finetune_instruction.yaml").read_text())
    for name in ("language_model", "language_model_conf", "preprocessor_conf"):
        del config[name]
    config.update(model="representation", model_conf={"joint_width": 8})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    init = f"{system / 'model.pth'}:qformer:qformer"
    out = train(tmp_path / "config.yaml", cached, tmp_path / "exp", init)
    before = read_weights(system / "model.pth")
    after = read_weights(out / "valid.loss.best.pth")
    name = "qformer.layers.0.cross_attention.key.weight"
    assert 0 < (before[name] - after[name]).abs().max() < 0.02
    found = SLIT.from_pretrained(out).search("a dog", clips)
    assert {hit.item for hit in found} == set(clips)
