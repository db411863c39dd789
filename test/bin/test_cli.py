"""Tests of the command `slit`: every word, its output, its exit status."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_system

from espnet2_slit.bin import shared
from espnet2_slit.bin import slit as command
from espnet2_slit.inference import doctor, system_info
from espnet2_slit.inference.clips import AudioClips
from espnet2_slit.inference.pack import pack
from espnet2_slit.inference.search_index import SearchIndex, find_audio
from espnet2_slit.inference.slit import SLIT, InferenceError

ROOT = Path(__file__).resolve().parents[2]
RATE = 16000
FAST = ["--num_beams", "1", "--max_new_tokens", "4"]


def write_clip(path, number):
    """A clip of its own sound."""
    random = np.random.default_rng(number)
    audio = 0.3 * np.sin(0.03 * (number + 1) * np.arange(RATE // 2 + 900 * number))
    audio += 0.05 * random.standard_normal(len(audio))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio.astype(np.float32), RATE)
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_parts):
    return str(tiny_system.system(tmp_path_factory.mktemp("exp"), tiny_parts))


@pytest.fixture(scope="module")
def slit(model):
    return SLIT.from_pretrained(model)


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        write_clip(tmp_path / "sounds" / ("deep" if i == 3 else ".") / f"{i}.wav", i)
    (tmp_path / "sounds" / "notes.txt").write_text("no audio")
    return tmp_path / "sounds"


@pytest.fixture
def run(model, slit, monkeypatch, capsys):
    """Run a command with the model loaded once: (status, lines, stderr)."""
    monkeypatch.setattr(shared, "load", lambda args: slit)

    def call(*words):
        status = command.main([str(word) for word in words])
        found = capsys.readouterr()
        return status, found.out.splitlines(), found.err

    return call


def test_captions_of_one_and_of_several_files(run, slit, folder):
    files = [str(folder / "0.wav"), str(folder / "1.wav")]
    options = {"num_beams": 1, "max_new_tokens": 4}
    expected = slit.caption(files, options=options)
    assert run("caption", files[0], *FAST) == (0, [expected[0]], "")
    status, lines, _ = run("caption", *files, *FAST)
    assert lines == [f"{f}\t{t}" for f, t in zip(files, expected, strict=True)]
    _, lines, _ = run("caption", *files, *FAST, "--json")
    assert [json.loads(line)["caption"] for line in lines] == expected
    options = {"num_beams": 3, "max_new_tokens": 4, "rerank": 3}
    words = [word for name, n in options.items() for word in (f"--{name}", str(n))]
    assert run("caption", files[0], *words)[1] == [
        slit.caption(files[0], options=options)
    ]
    status, _, error = run("caption", files[0], *FAST, "--rerank", "3")
    assert status == 1 and "at most num_beams (1)" in error


def test_a_folder_of_audio_with_nothing_else(run, folder, tmp_path):
    files = [str(folder / name) for name in ("0.wav", "1.wav", "2.wav", "deep/3.wav")]
    status, lines, _ = run("caption", folder, *FAST)
    assert status == 0 and [line.split("\t")[0] for line in lines] == files
    out = tmp_path / "embeddings.npz"
    assert run("embed", folder, "--output", out)[0] == 0
    assert list(np.load(out)["files"]) == files
    status, lines, _ = run("search", "a bell", folder, "--top_k", "4")
    assert status == 0 and {line.split("\t")[1] for line in lines} == set(files)
    (tmp_path / "empty").mkdir()
    status, lines, error = run("caption", tmp_path / "empty", files[0], *FAST)
    assert status == 1 and "empty: is a folder, expected an audio file" in error
    assert [line.split("\t")[0] for line in lines] == files[:1]


def test_dashes_and_underscores_are_the_same(run, folder):
    clip = folder / "0.wav"
    assert run("caption", clip, *FAST) == run(
        "caption", clip, "--num-beams=1", "--max-new-tokens", "4"
    )


def test_bad_file_is_told_and_the_others_are_served(run, folder):
    bad = folder / "broken.wav"
    bad.write_bytes(b"RIFFnothing")
    status, lines, error = run("caption", folder / "0.wav", bad, *FAST)
    assert status == 1 and len(lines) == 1
    assert "broken.wav" in error


def test_answer_is_one_of_the_candidates(run, slit, folder, tmp_path):
    clip = str(folder / "2.wav")
    words = tmp_path / "answers.txt"
    words.write_text("yes\nno\n\nyes\n")
    expected = slit.answer(clip, "is it loud?", candidates=["yes", "no"])
    assert run("ask", "is it loud?", clip, "--candidates", words)[1] == [expected]
    assert run("ask", "is it loud?", clip, "--candidates", "yes", "no")[1] == [expected]


def test_label_is_the_best_scored(run, folder):
    labels = ["dog", "rain", "bell"]
    clip = folder / "1.wav"
    for route in ("similarity", "matching", "language_model"):
        words = ["classify", clip, "--labels", *labels, "--route", route]
        _, (line,), _ = run(*words, "--json")
        found = json.loads(line)
        assert set(found["scores"]) == set(labels)
        assert found["label"] == max(found["scores"], key=found["scores"].get)
        assert run(*words)[1] == [found["label"]]


def test_embeddings_are_written(run, slit, folder, tmp_path):
    output = tmp_path / "found.npz"
    clip = str(folder / "0.wav")
    status, _, _ = run("embed", clip, "--texts", "a dog", "--output", output)
    content = np.load(output, allow_pickle=False)
    assert status == 0 and content["files"].tolist() == [clip]
    np.testing.assert_allclose(content["audio"][0], slit.embed_audio(clip), atol=1e-5)
    np.testing.assert_allclose(content["text"][0], slit.embed_text("a dog"), atol=1e-5)


# ------------------------------------------------------------------------- the index


def test_search_finds_what_the_library_finds(run, slit, folder):
    files = [str(folder / name) for name in find_audio(folder)]
    expected = slit.search("a dog barks", files, rerank=0)
    status, lines, _ = run("search", "a dog barks", folder, "--json")
    found = [json.loads(line) for line in lines]
    assert status == 0
    assert [row["file"] for row in found] == [hit.item for hit in expected]
    for row, hit in zip(found, expected, strict=True):
        assert row["score"] == pytest.approx(hit.score, abs=2e-3)  # kept as float16


@pytest.mark.parametrize("rerank", [2, 4])
def test_reranked_search_equals_the_library(run, slit, folder, rerank):
    files = [str(folder / name) for name in find_audio(folder)]
    expected = slit.search("a bell rings", files, rerank=rerank)
    _, lines, _ = run("search", "a bell rings", folder, "--rerank", rerank)
    found = [line.split("\t")[:2] for line in lines]
    assert [item for _, item in found[:2]] == [hit.item for hit in expected[:2]]
    # the index keeps float16, and cosines are divided by the temperature: near ties
    # among the others may change places
    scores = {hit.item: hit.score for hit in expected}
    assert {item: float(score) for score, item in found} == pytest.approx(
        scores, abs=0.02
    )


def test_index_grows_shrinks_and_repeats_nothing(run, slit, folder, monkeypatch):
    embedded = []
    rows = SearchIndex._rows
    monkeypatch.setattr(
        SearchIndex,
        "_rows",
        lambda self, slit, names: embedded.extend(names) or rows(self, slit, names),
    )
    assert "4 added" in run("index", folder)[1][0]
    write_clip(folder / "new.wav", 7)
    (folder / "0.wav").unlink()
    write_clip(folder / "1.wav", 9)  # changed
    embedded.clear()
    _, (line,), _ = run("index", folder, "--json")
    report = json.loads(line)
    assert (report["kept"], report["added"], report["removed"]) == (2, 2, 2)
    assert sorted(name.rpartition("/")[2] for name in embedded) == ["1.wav", "new.wav"]
    assert len(SearchIndex(folder / ".slit_index")) == 4
    embedded.clear()
    assert "0 added" in run("index", folder)[1][0] and embedded == []


def test_moved_folder_keeps_its_index(run, folder, tmp_path):
    run("index", folder)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)  # with the times of the files
    assert "4 kept, 0 added" in run("index", moved)[1][0]
    hits = run("search", "a dog", moved)[1]
    assert all(str(moved) in line for line in hits)


def test_unreadable_file_is_left_out_of_the_index(run, folder):
    (folder / "bad.wav").write_bytes(b"")
    status, (line,), _ = run("index", folder)
    assert status == 0 and "4 added" in line and "1 unreadable" in line


def test_index_keeps_windows_of_what_is_longer_than_one(run, slit, folder):
    files = [str(folder / name) for name in find_audio(folder)]
    write_long(folder / "long.wav", 12)
    write_long(folder / "longest.wav", int(2 * slit.longest_s))
    status, (line,), error = run("index", folder)
    assert status == 0 and "6 added" in line and error == ""
    status, lines, _ = run("search", "a bell", folder, "--json", "--top_k", "6")
    hits = {row["file"]: row for row in map(json.loads, lines)}
    assert set(hits) == {*files, str(folder / "long.wav"), str(folder / "longest.wav")}
    whole = hits[str(folder / "long.wav")]
    assert (whole["start_s"], whole["end_s"]) == (0, 12)
    expected = slit.search("a bell", str(folder / "long.wav"), rerank=0)[0]
    assert whole["score"] == pytest.approx(expected.score, abs=2e-3)
    # too long to be read at once: as good as its best window
    best = hits[str(folder / "longest.wav")]
    (moment,) = slit.moments(
        "a bell", str(folder / "longest.wav"), window_s=5.0, top_k=1
    )
    assert best["score"] == pytest.approx(moment.score, abs=0.02)
    assert best["end_s"] - best["start_s"] == pytest.approx(5, abs=0.2)


def write_long(path, seconds):
    """Noise that changes every second."""
    random = np.random.default_rng(seconds)
    loud = np.repeat(random.uniform(0.01, 0.3, seconds), RATE)
    soundfile.write(path, loud * random.standard_normal(seconds * RATE), RATE)


def test_moments_of_files_and_of_a_folder(run, slit, folder):
    long = folder / "long.wav"
    write_long(long, 12)
    expected = slit.moments("a dog barks", str(long), top_k=3)
    status, lines, _ = run("moments", "a dog barks", long, "--top_k", "3")
    assert status == 0
    assert lines == [
        f"{hit.score:.4f}\t{long}\t{hit.start_s:.2f}\t{hit.end_s:.2f}"
        for hit in expected
    ]
    bad = folder / "bad.wav"
    bad.write_bytes(b"RIFF")
    words = ["--json", "--window_s", "2", "4", "--top_k", "20"]
    status, lines, error = run("moments", "a dog barks", folder, *words)
    found = [json.loads(line) for line in lines]
    assert status == 1 and "bad.wav" in error
    assert {row["file"] for row in found} >= {str(long), str(folder / "0.wav")}
    bad.unlink()
    status, lines, _ = run("search", "a dog barks", folder, "--moments", "--json")
    found = [json.loads(line) for line in lines]
    assert status == 0 and [row["score"] for row in found] == sorted(
        (row["score"] for row in found), reverse=True
    )
    places = [(r["start_s"], r["end_s"]) for r in found if r["file"] == str(long)]
    assert len(places) > 1 and all(0 <= a < b <= 12 for a, b in places)
    lines = run("search", "a dog", folder, "--moments", "--top_k", "1")[1]
    assert len(lines[0].split("\t")) == 4
    _, lines, _ = run("search", "a dog", folder, "--moments", "--rerank", "3")
    scores = [float(line.split("\t")[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    status, _, error = run("moments", "a dog", long, "--window_s", "1000")
    assert status == 1 and "window_s: expected" in error


def test_long_files_are_captioned_by_window(run, slit, folder):
    long = folder / "longest.wav"
    write_long(long, int(2 * slit.longest_s))
    status, lines, error = run("caption", folder / "0.wav", long, *FAST)
    assert status == 1 and len(lines) == 1
    assert "longest.wav: lasts" in error and "window_s" in error
    status, lines, _ = run("caption", long, *FAST, "--window_s", "40")
    assert status == 0 and len(lines) == -(-int(2 * slit.longest_s) // 40)
    assert lines[1].split("\t")[:2] == ["40.00", "80.00"]
    _, (line,), _ = run("caption", long, *FAST, "--window_s", "40", "--json")
    assert len(json.loads(line)["captions"]) == len(lines)


@pytest.mark.parametrize("fault", [RuntimeError("soxr"), TypeError("x"), MemoryError()])
@pytest.mark.parametrize(
    "words",
    ["caption {} --num_beams 1 --max_new_tokens 2", "ask what? {} --candidates a b",
     "classify {} --labels a b", "embed {} --output {}/x.npz", "index {}",
     "moments dog {}"],
)  # fmt: skip
def test_whatever_is_raised_for_a_file_the_others_are_served(
    run, slit, folder, monkeypatch, fault, words
):
    load = AudioClips.load_part

    def faulty(clips, i, *place):
        if isinstance(clips.items[i], tuple) and "1.wav" in clips.items[i][0]:
            raise fault
        return load(clips, i, *place)

    monkeypatch.setattr(AudioClips, "load_part", faulty)
    status, lines, error = run(*[w.format(folder) for w in words.split()])
    assert "1.wav: could not be used" in error or "1 unreadable" in lines[0]
    if words.startswith("embed"):
        assert len(np.load(folder / "x.npz")["files"]) == 3
    elif words.startswith("index"):
        assert "3 added" in lines[0] and status == 0
    else:
        assert status == 1 and len(lines) >= 3


def test_index_of_an_earlier_version_is_made_again(run, folder, caplog):
    run("index", folder)
    file = folder / ".slit_index" / "index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 1}))
    np.savez(folder / ".slit_index" / "part.00000.npz", files=np.array(["gone.wav"]))
    old = SearchIndex(folder / ".slit_index")
    with pytest.raises(InferenceError, match="expected schema 2, found 1.*slit index"):
        old.search(None, "a dog")
    caplog.clear()
    status, (line,), _ = run("index", folder)
    assert status == 0 and "4 added" in line and "0 removed" in line
    assert "is made again" in caplog.text


def test_index_of_another_model_is_refused(run, slit, folder, monkeypatch):
    run("index", folder)
    file = folder / ".slit_index" / "index.json"
    facts = json.loads(file.read_text())
    facts["model"]["representation_weights"] = "0" * 64
    file.write_text(json.dumps(facts))
    status, _, error = run("search", "a dog", folder)
    assert status == 1 and "representation_weights" in error and "--rebuild" in error
    assert "4 added" in run("index", folder, "--rebuild")[1][0]


def test_two_updates_at_once_are_refused(slit, folder):
    index = SearchIndex(folder / ".slit_index")
    index.update(slit, folder)
    with index._lock(), pytest.raises(InferenceError, match="another process"):
        SearchIndex(folder / ".slit_index").update(slit, folder)


# -------------------------------------------------------------------- info and doctor


def test_info_names_parts_and_frozen_parts(model, capsys):
    assert command.main(["info", model, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"caption", "search"} <= set(facts["can"])
    assert set(facts["parts"]) == {"representation", "generator"}
    assert facts["parts"]["representation"]["qformer"]["num_queries"] == 3
    for part in ("audio_encoder", "language_model"):
        assert len(facts["frozen"][part]["sha256"]) == 64
    assert command.main(["info", model]) == 0
    text = capsys.readouterr().out
    assert facts["frozen"]["audio_encoder"]["sha256"] in text


def test_info_of_an_archive(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    archive = pack(model, tmp_path / "a.zip", licence="CC-BY-4.0")
    assert command.main(["info", str(archive)]) == 0
    text = capsys.readouterr().out
    assert "CC-BY-4.0" in text and "not here: pass its path" in text


@pytest.mark.parametrize(
    "name, word",
    [
        ("google/flan-t5-xl", "https://huggingface.co/google/flan-t5-xl"),
        ("downloads/flan-t5-xl", "not known"),
        ("my_encoder.pt", "not known"),
    ],
)
def test_licence_notes(name, word):
    assert word in system_info.licence_note(name)


def test_doctor_finds_what_runs_these_tests(capsys):
    assert command.main(["doctor", "--json"]) == 0
    checks = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    for name in ("Python", "espnet", "torch", "transformers"):
        assert checks[name]["status"] == "ok"
    for row in checks.values():
        assert row["status"] == "ok" or row["remedy"] or row["name"] == "GPU"


def test_doctor_says_what_auto_precision_is(capsys, monkeypatch):
    for there, chosen in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda t=there: t)
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
        assert command.main(["doctor", "--json"]) == 0
        checks = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert f"auto is {chosen}" in checks["precision"]["found"]


def test_standard_output_is_the_answer_alone(model, folder):
    """In a process of its own, where ESPnet is imported for the first time."""
    done = subprocess.run(
        [sys.executable, "-m", "espnet2_slit.bin.slit", "classify", "--json",
         folder / "0.wav", "--labels", "dog", "rain", "--model", model],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["label"] in ("dog", "rain")
    assert done.stderr == ""


COMPLETE = """
source {script}
COMP_WORDS=({words} "{word}") COMP_CWORD={count} COMPREPLY=()
_shtab_slit slit "{word}" {last}
echo "${{COMPREPLY[*]}}"
"""


def test_tab_completes_commands_options_and_files(tmp_path, capsys):
    pytest.importorskip("shtab", reason="completion needs shtab")
    assert command.main(["completion", "bash"]) == 0
    script = tmp_path / "slit.bash"
    script.write_text(capsys.readouterr().out)
    for words, word, expected in (
        ("slit", "cap", "caption"),
        ("slit classify --route", "", "similarity matching language_model"),
        ("slit corpus", "clotho_", "clotho_aqa"),
        ("slit train", "--accum", "--accum_grad"),
        ("slit caption", f"{tmp_path}/sl", str(script)),
    ):
        *_, last = names = words.split()
        lines = COMPLETE.format(
            script=script, words=words, word=word, count=len(names), last=last
        )
        done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True)
        assert done.stdout.strip() == expected, (words, word, done.stderr)


def test_doctor_says_how_to_add_what_is_missing(capsys, monkeypatch):
    installed = doctor.is_installed
    monkeypatch.setattr(
        doctor, "is_installed", lambda name: name != "soxr" and installed(name)
    )
    assert command.main(["doctor"]) == 1
    found = capsys.readouterr()
    assert "pip install soxr" in found.out and "soxr" in found.err


# --------------------------------------------------------------------- command lines


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["sing"],
        ["caption"],
        ["classify", "a.wav"],
        ["search", "a dog", "folder", "--top_k", "0"],
        ["caption", "a.wav", "--nun_beams", "2"],
    ],
)
def test_wrong_command_lines_end_with_2(words, monkeypatch, capsys):
    monkeypatch.delenv("SLIT_MODEL", raising=False)
    with pytest.raises(SystemExit) as stop:
        command.main(words)
    assert stop.value.code == 2
    assert "usage: slit" in capsys.readouterr().err


def test_model_must_be_named(monkeypatch, capsys):
    monkeypatch.delenv("SLIT_MODEL", raising=False)
    with pytest.raises(SystemExit) as stop:
        command.main(["caption", "a.wav"])
    assert stop.value.code == 2 and "SLIT_MODEL" in capsys.readouterr().err


def test_model_that_is_not_there_ends_with_1(capsys, tmp_path):
    status = command.main(["caption", "a.wav", "--model", str(tmp_path / "nothing")])
    assert status == 1 and "no such folder" in capsys.readouterr().err


def test_model_is_loaded_from_the_command_line(model, folder, capsys):
    words = ["caption", str(folder / "0.wav"), "--model", model, "--device", "cpu"]
    assert command.main([*words, *FAST]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("name", sorted(command.PROGRAMS))
def test_other_programs_are_reached(name, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([name, "--help"])
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out
