"""Decoded sets: what the library gives, complete or not there, shared by jobs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_system
from tiny_system import RERANKED, SHORT

from espnet2_slit.bin import slit_inference
from espnet2_slit.common.files import sha256
from espnet2_slit.data import feature_cache, kaldi_matrix
from espnet2_slit.data.kaldi_dir import read_map
from espnet2_slit.inference import decode_tasks
from espnet2_slit.inference.classification import (
    label_likelihoods,
    label_matches,
    label_similarities,
)
from espnet2_slit.inference.decode_options import DecodeOptions
from espnet2_slit.inference.decoding import decode_set
from espnet2_slit.inference.generation import generate_and_score, score_candidates
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.slit import SLIT
from espnet2_slit.model.audio_encoder import build_audio_encoder


def read_npz(path):
    with np.load(path, allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}


OPTIONS = DecodeOptions(caption=SHORT, question_answering=SHORT, rerank=3)


@pytest.fixture(scope="module")
def decoded(slit, sets, tmp_path_factory):
    root = tmp_path_factory.mktemp("decode")
    for name in ("test_caption", "test_qa", "test_class"):
        decode_set(slit, sets / "dump" / name, root / name, OPTIONS)
    return root


def test_decoded_captions_and_scores(slit, clips, decoded):
    captions = read_map(decoded / "test_caption" / "caption" / "text")
    expected = slit.caption(clips, options=SHORT)
    assert captions == {f"clip{i}": text for i, text in enumerate(expected)}
    scores = read_npz(decoded / "test_caption" / "retrieval" / "scores.npz")
    assert scores["audio_ids"].tolist() == [f"clip{i}" for i in range(7)]
    assert scores["contrastive"].shape == (14, 7) == (len(scores["texts"]), 7)
    for i, text in enumerate(scores["texts"]):
        cosine = (slit.embed_audio(clips) @ slit.embed_text(str(text))).max(axis=1)
        np.testing.assert_allclose(scores["contrastive"][i], cosine, atol=1e-4)
    assert set(scores) == {
        "audio_ids", "text_audio_ids", "texts", "contrastive",
        "reranked_text_to_audio", "reranked_audio_to_text",
    }  # fmt: skip
    attention = read_npz(decoded / "test_caption" / "attention.npz")
    assert attention["attention"].shape[:2] == (4, 3)
    np.testing.assert_allclose(attention["attention"].sum(axis=-1), 1, atol=1e-4)


def test_decoded_answers(slit, clips, decoded):
    texts = read_map(decoded / "test_qa" / "question_answering" / "text")
    ranked = read_map(decoded / "test_qa" / "question_answering" / "ranked")
    assert len(texts) == len(ranked) == 14
    options = slit_options(slit)
    requests = [(0, "what is it? 1")]
    free, scores = generate_and_score(
        slit,
        slit.clips([clips[3]]),
        requests,
        options=options,
        candidates=["yes", "no"],
    )
    assert texts["clip3_q1"] == free[0]
    answers = ["yes", "no", "a dog", "two"]
    scores = score_candidates(slit, slit.clips([clips[3]]), requests, answers)
    assert ranked["clip3_q1"] == answers[int(scores[0].argmax())]


def slit_options(slit):
    return OPTIONS.generation("question_answering")


def test_decoded_label_scores(slit, clips, decoded):
    scores = read_npz(decoded / "test_class" / "classification" / "scores.npz")
    assert scores["labels"].tolist() == ["dog_bark", "rain", "bell"]
    speech = slit.clips(clips)
    labels = scores["labels"].tolist()
    np.testing.assert_allclose(
        scores["similarity"], label_similarities(slit, speech, labels), atol=1e-4
    )
    np.testing.assert_allclose(
        scores["matching"], label_matches(slit, speech, labels), atol=1e-3
    )
    sums, lengths = label_likelihoods(slit, speech, labels)
    np.testing.assert_allclose(scores["language_model_sum"], sums, atol=1e-3)
    np.testing.assert_allclose(scores["language_model_mean"], sums / lengths, atol=1e-3)


def test_decode_json_is_complete(decoded):
    content = json.loads((decoded / "test_caption" / "decode.json").read_text())
    assert content["schema"] == 1 and content["n"] == 7
    assert content["tasks"] == ["caption", "retrieval"]
    assert "tiny_instruction/valid.loss.best.pth" in content["model"]
    assert content["decoding"]["caption"]["num_beams"] == 2
    assert "beats" in content["encoder"] and "llama" in content["language_model"]
    for name, facts in content["files"].items():
        path = decoded / "test_caption" / name
        assert path.stat().st_size == facts["bytes"]
        assert sha256(path) == facts["sha256"]
    assert not (decoded / "test_caption" / ".parts").exists()


def test_waveforms_give_what_cached_features_give(slit, sets, decoded, tmp_path):
    for name in ("test_caption", "test_qa", "test_class"):
        content = decode_set(slit, sets / "data" / name, tmp_path / name, OPTIONS)
        assert content["audio"] == "waveforms"
        for path in sorted(decoded.glob(f"{name}/*/*")):
            other = tmp_path / path.relative_to(decoded)
            if path.suffix == ".npz":
                one, two = read_npz(path), read_npz(other)
                for key, array in one.items():
                    if array.dtype.kind == "f":
                        np.testing.assert_allclose(array, two[key], atol=1e-3)
                    else:
                        assert array.tolist() == two[key].tolist()
            else:
                assert path.read_text() == other.read_text()


def test_killed_decoding_goes_on(slit, sets, decoded, tmp_path, monkeypatch):
    monkeypatch.setattr("espnet2_slit.inference.decode_parts.CHUNK", 3)
    calls = []
    generate = decode_tasks.generate

    def counted(slit, clips, requests, options):
        calls.append(len(requests))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(slit, clips, requests, options)

    monkeypatch.setattr(decode_tasks, "generate", counted)
    source = sets / "dump" / "test_caption"
    with pytest.raises(KeyboardInterrupt):
        decode_set(slit, source, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out" / "decode.json").exists()
    assert not (tmp_path / "out" / "caption").exists()
    decode_set(slit, source, tmp_path / "out", OPTIONS)
    assert calls == [3, 3, 3, 1]  # the first three were kept
    text = (tmp_path / "out" / "caption" / "text").read_text()
    assert text == (decoded / "test_caption" / "caption" / "text").read_text()
    decode_set(slit, source, tmp_path / "out", OPTIONS)
    assert len(calls) == 4  # complete: nothing is done
    other = DecodeOptions(caption={**SHORT, "num_beams": 1}, rerank=3)
    decode_set(slit, source, tmp_path / "out", other)
    assert len(calls) == 7  # other options: decoded again


def test_jobs_share_a_set(slit, sets, decoded, tmp_path, monkeypatch):
    monkeypatch.setattr("espnet2_slit.inference.decode_parts.CHUNK", 2)
    source = sets / "dump" / "test_caption"
    with pytest.raises(InferenceError, match="parts of caption are missing"):
        decode_set(slit, source, tmp_path / "out", OPTIONS, "auto", 1, 2, True)
    for job in (1, 2):
        assert not (tmp_path / "out" / "decode.json").exists()
        decode_set(slit, source, tmp_path / "out", OPTIONS, "auto", job, 2)
    decode_set(slit, source, tmp_path / "out", OPTIONS, merge=True)
    one = read_npz(tmp_path / "out" / "retrieval" / "scores.npz")
    two = read_npz(decoded / "test_caption" / "retrieval" / "scores.npz")
    np.testing.assert_allclose(
        one["reranked_audio_to_text"], two["reranked_audio_to_text"], atol=1e-3
    )


def test_jobs_do_not_each_embed_everything(slit, sets, tmp_path, passes, monkeypatch):
    monkeypatch.setattr("espnet2_slit.inference.decode_parts.CHUNK", 2)
    lone = sets / "data" / "test_caption"
    options = DecodeOptions(caption=SHORT, rerank=0, attention_clips=0)
    embed, embedded = decode_tasks.embed_clips, []

    def while_another_job_works(slit, clips):
        embedded.append(len(clips))
        if len(embedded) == 1:
            decode_set(slit, lone, tmp_path / "out", options, "auto", 2, 2)
        return embed(slit, clips)

    monkeypatch.setattr(decode_tasks, "embed_clips", while_another_job_works)
    decode_set(slit, lone, tmp_path / "out", options, "auto", 1, 2)
    # all but the piece that the first job was at when the second came to it
    assert sum(embedded) <= 7 + 2
    decode_set(slit, lone, tmp_path / "out", options, merge=True)
    assert sum(embedded) <= 7 + 2 and passes["encoded"] <= 7 + sum(embedded)


def test_waveforms_are_encoded_once_for_all_scores_of_labels(
    slit, sets, tmp_path, passes
):
    options = DecodeOptions(attention_clips=0)
    decode_set(slit, sets / "data" / "test_class", tmp_path / "out", options)
    assert passes["encoded"] == 7


def test_bare_espnet_directory_is_decoded(slit, sets, tmp_path):
    """wav.scp, text, utt2spk alone: captions and retrieval against text."""
    source = tmp_path / "bare"
    source.mkdir()
    for name in ("wav.scp", "text", "utt2spk"):
        shutil.copyfile(sets / "data" / "test_caption" / name, source / name)
    content = decode_set(slit, source, tmp_path / "out", OPTIONS)
    assert content["tasks"] == ["caption", "retrieval"]
    assert read_npz(tmp_path / "out/retrieval/scores.npz")["contrastive"].shape == (
        7,
        7,
    )


def test_features_of_another_encoder_are_refused(slit, sets, tmp_path, tiny_parts):
    import tiny

    other = build_audio_encoder(
        "beats", path=str(tiny.beats_checkpoint(tmp_path / "b", seed=3))
    )
    source = sets / "data" / "test_class"
    work = feature_cache.plan(source, other.identity())
    feature_cache.encode(work, other, tmp_path / "dump")
    feature_cache.merge(
        work, source, tmp_path / "dump", feature_cache.encoder_facts(other)
    )
    with pytest.raises(kaldi_matrix.FeatureCacheError, match="fingerprint: expected"):
        decode_set(slit, tmp_path / "dump", tmp_path / "out")
    done = decode_set(slit, tmp_path / "dump", tmp_path / "out", OPTIONS, "waveform")
    assert done["audio"] == "waveforms"


def test_what_the_system_cannot_do_is_said(folder, sets, tmp_path, caplog):
    lone = SLIT.from_pretrained(folder.parent / "tiny_representation")
    content = decode_set(lone, sets / "dump" / "test_caption", tmp_path / "a", OPTIONS)
    assert content["tasks"] == ["retrieval"]
    assert content["not_decoded"] == {"caption": "the system has no generator part"}
    assert "caption is not decoded" in caplog.text
    nothing = decode_set(lone, sets / "dump" / "test_qa", tmp_path / "b", OPTIONS)
    assert nothing["tasks"] == [] and set(nothing["not_decoded"]) == {
        "question_answering"
    }
    decode_set(lone, sets / "dump" / "test_class", tmp_path / "c", OPTIONS)
    scores = read_npz(tmp_path / "c" / "classification" / "scores.npz")
    assert set(scores) == {"ids", "labels", "similarity", "matching"}


def test_captions_are_not_reranked_without_the_part_that_does_it(
    sets, tiny_parts, tmp_path, caplog
):
    folder = tiny_system.experiment(
        tmp_path / "gen", tiny_parts, "generative", tiny_parts.t5
    )
    lone, options = SLIT.from_pretrained(folder), DecodeOptions(caption=RERANKED)
    content = decode_set(lone, sets / "dump" / "test_caption", tmp_path / "a", options)
    assert "captions are not re-ranked (rerank 4)" in caplog.text
    assert "rerank" not in content["decoding"]["caption"]
    likeliest = DecodeOptions(caption={**RERANKED, "rerank": 0})
    decode_set(lone, sets / "dump" / "test_caption", tmp_path / "b", likeliest)
    found, expected = (tmp_path / name / "caption" / "text" for name in "ab")
    assert found.read_text() == expected.read_text()


@pytest.mark.parametrize("kind", ["data", "dump"])
def test_decoded_moments_are_those_of_the_library(slit, sets, clips, tmp_path, kind):
    """Of waveforms and of cached features, by two jobs."""
    source = tmp_path / "test_moments"
    shutil.copytree(sets / kind / "test_qa", source)
    (source / "instruction").unlink()
    samples = list(read_map(source / "wav.scp"))
    texts = {sample: f"a dog barks {sample[-1]}" for sample in samples}
    write_lines = "".join(f"{s} {t}\n" for s, t in texts.items())
    (source / "text").write_text(write_lines)
    (source / "moments").write_text("".join(f"{s} 0.1 0.3\n" for s in samples))
    facts = json.loads((source / "set.json").read_text())
    (source / "set.json").write_text(json.dumps({**facts, "tasks": ["moments"]}))
    options = DecodeOptions(moment_windows_s=(0.2, 0.4))
    for job in (1, 2):
        decode_set(slit, source, tmp_path / "out", options, job=job, num_jobs=2)
    done = decode_set(slit, source, tmp_path / "out", options, merge=True)
    assert done["tasks"] == ["moments"] and list(done["files"]) == [
        "moments/predictions.jsonl"
    ]
    lines = (tmp_path / "out/moments/predictions.jsonl").read_text().splitlines()
    found = {row["qid"]: row for row in map(json.loads, lines)}
    assert set(found) == set(samples)
    for sample in ("clip6_q0", "clip6_q1"):
        row = found[sample]
        expected = slit.moments(texts[sample], clips[6], window_s=(0.2, 0.4))
        assert row["vid"] == "clip6" and row["query"] == texts[sample]
        windows = row["pred_relevant_windows"]
        assert [w[0] for w in windows] == pytest.approx(
            [hit.start_s for hit in expected], abs=1e-3
        )
        assert [w[2] for w in windows] == pytest.approx(
            [hit.score for hit in expected], abs=2e-4
        )
        assert row["duration"] == pytest.approx(1.18, abs=0.1)


def run(capsys, *words):
    status = slit_inference.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def test_wrong_command_lines(folder, sets, capsys, tmp_path):
    for words in ([], ["--data_dir", "x"], ["--data_dir", "x", "--output_dir"]):
        with pytest.raises(SystemExit) as error:
            run(capsys, "--model", folder, *words)
        assert error.value.code == 2
    common = ["--data_dir", sets / "data" / "test_qa", "--output_dir", tmp_path / "out"]
    status, _, err = run(capsys, "--model", tmp_path / "none", *common)
    assert status == 1 and "no such folder or archive" in err
    config = tmp_path / "typo.yaml"
    config.write_text("captions: {}\n")
    status, _, err = run(capsys, "--model", folder, "--config", config, *common)
    assert status == 1 and "unknown captions" in err


def test_a_set_that_a_system_cannot_do_takes_no_other_down(
    folder, sets, tmp_path, capsys, caplog
):
    lone = folder.parent / "tiny_representation"
    dumps, out = sets / "dump", tmp_path / "out"
    both = ["test_qa", "test_class"]
    words = ["--data_dir", *(dumps / name for name in both)]
    words += ["--output_dir", *(out / name for name in both)]
    assert run(capsys, "--model", lone, *words)[0] == 0
    assert "question_answering is not decoded" in caplog.text
    assert json.loads((out / "test_qa/decode.json").read_text())["tasks"] == []
    assert (out / "test_class/classification/scores.npz").is_file()
    alone = ["--data_dir", dumps / "test_qa", "--output_dir", tmp_path / "alone"]
    status, _, err = run(capsys, "--model", lone, *alone)
    assert status == 1 and "can do none of their tasks" in err


def test_set_on_the_command_line(folder, sets, decoded, tmp_path, capsys):
    config = tmp_path / "decode.yaml"
    config.write_text(
        "caption: {max_new_tokens: 6, num_beams: 2}\n"
        "question_answering: {max_new_tokens: 6, num_beams: 2}\nrerank: 3\n"
    )
    status, _, _ = run(
        capsys, "--model", folder, "--config", config,
        "--data_dir", sets / "dump" / "test_qa", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert status == 0
    for name in ("text", "ranked"):
        path = Path("question_answering") / name
        expected = (decoded / "test_qa" / path).read_text()
        assert (tmp_path / "out" / path).read_text() == expected
