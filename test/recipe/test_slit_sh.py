"""slit.sh from a manifest to scores, on 24 clips: each stage, twice, after a kill."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_recipe
import tiny_system
from hub_mirror import COMMIT, Hub, serving
from launchers import StandIns

from espnet2_slit.data.kaldi_dir import read_map

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "egs2" / "slit" / "slit1"
pytestmark = pytest.mark.recipe

TRAININGS = ("representation", "generative", "instruction")
KINDS = {"bell": 880.0, "hum": 110.0, "hiss": 0.0}


def audio(kind, seed):
    """0.6 s of a tone or of noise; rate and channels must be converted."""
    rng = np.random.default_rng(seed)
    rate = (16000, 22050, 8000)[seed % 3]
    time_s = np.arange(int(0.6 * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * KINDS[kind] * time_s) if KINDS[kind] else 0
    wave = wave + 0.1 * rng.standard_normal(len(time_s))
    return np.stack([wave] * (1 + seed % 2), axis=1).astype(np.float32), rate


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_parts):
    """A new recipe directory with tiny configs, and the command that runs it."""
    folder = tmp_path_factory.mktemp("tree") / "egs2" / "tiny" / "slit1"
    subprocess.run([RECIPE / "setup.sh", folder], check=True, capture_output=True)
    tiny_recipe.write_configs(folder / "conf", epochs=2)
    rows = []
    for split, count in (("train", 16), ("valid", 4), ("test", 6)):
        for n in range(count):
            kind = list(KINDS)[n % 3]
            name = f"{split} {n} it's.wav"
            soundfile.write(folder / name, *audio(kind, n))
            for text in (f"a {kind} sounds", f"one can hear a {kind}"):
                rows.append({"audio": name, "text": text, "split": split})
            rows.append(
                {
                    "audio": name,
                    "text": "yes" if kind == "bell" else "no",
                    "instruction": "is there a bell?",
                    "split": split,
                }
            )
            rows.append(
                {"audio": name, "text": kind, "task": "classification", "split": split}
            )
    rows.append({"audio": "missing.wav", "text": "nothing", "split": "train"})
    manifest = folder / "my data.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        *["./slit.sh", "--manifest", manifest.name, *tiny_recipe.options(tiny_parts)],
        *["--train_set", "train_caption", "--valid_set", "valid_caption"],
        *["--instruction_train_set", "train_instruction"],
        *["--instruction_valid_set", "valid_instruction"],
    ]
    return folder, [str(word) for word in command]


def run(recipe, *more, **variables):
    folder, command = recipe
    done = subprocess.run(
        [*command, *more],
        cwd=folder,
        env=tiny_recipe.environment(**variables),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def log_of(folder, name):
    """What the one job of an array has written."""
    (path,) = folder.glob(f"{name}.1.log")
    return path.read_text()


def marks(folder):
    """Times of every file that a stage makes and a later run must leave alone."""
    names = ("*.pth", "feats.*.ark", "feats.json", "decode.json", "RESULTS.md", "*.scp")
    return {
        path: path.lstat().st_mtime_ns
        for name in names
        for part in ("data", "dump", "exp")
        for path in (folder / part).rglob(name)
    }


def test_a_manifest_goes_through_all_stages_and_a_second_run_repeats_nothing(recipe):
    folder, _ = recipe
    out = run(recipe, "--stage", "1", "--stop-stage", "7")
    assert "dropped 1: missing audio" in out
    assert "epoch 2: train loss" in out
    exp = folder / "exp" / "tiny_instruction"
    assert "CategoryPowerSampler(" in (exp / "train.log").read_text()
    decoded = exp / "decode_tiny"
    for path in (
        folder / "exp/tiny_representation/train.log",
        folder / "exp/tiny_generative/valid.loss.best.pth",
        exp / "config.yaml",
        exp / "run.sh",
        exp / "slit.json",
        exp / "slit_tiny.zip",
        decoded / "test_caption" / "caption" / "text",
        decoded / "test_caption" / "retrieval" / "scores.npz",
        decoded / "test_qa" / "question_answering" / "text",
        decoded / "test_class" / "classification" / "scores.npz",
        decoded / "RESULTS.md",
    ):
        assert path.is_file(), path
    scores = json.loads((decoded / "scores.json").read_text())
    tasks = {row["task"] for row in scores["scores"] if row["value"] is not None}
    assert tasks == {"caption", "retrieval", "question_answering", "classification"}

    before = marks(folder)
    out = run(recipe, "--stage", "1", "--stop-stage", "6")
    assert marks(folder) == before
    decode = Path("exp/tiny_instruction/decode_tiny")
    for path in ("data", *(f"exp/tiny_{name}" for name in TRAININGS), decode):
        assert f"Skipped: {path} is up to date" in out
    assert "Training" not in out and "Scores" not in out
    for log in ("dump/beats_beats/logdir/train_caption", decode / "logdir/decode"):
        assert re.search(r"is (encoded|complete) and kept", log_of(folder, log))

    # What was decoded since then is scored.
    more = ["--stage", "decode", "--stop_stage", "score"]
    run(recipe, *more, "--inference_args", "--control silence")
    assert "### Does it listen?" in (decoded / "RESULTS.md").read_text()

    # The packed system, elsewhere: decoded and scored, nothing is trained.
    shutil.copy(exp / "slit_tiny.zip", folder / "downloaded.zip")
    before = marks(folder)
    out = run(recipe, "--download_model", "downloaded.zip")
    assert "Skipped: stage 2 (representation), as --download_model is given" in out
    assert marks(folder).items() >= before.items() and "Training" not in out
    again = folder / "exp" / "downloaded" / "decode_tiny"
    for file in ("test_caption/caption/text", "test_qa/question_answering/text"):
        assert (again / file).read_text() == (decoded / file).read_text()
    assert (again / "RESULTS.md").is_file()


def test_audio_is_kept_at_the_rate_that_is_asked_for(recipe):
    folder, _ = recipe
    words = [
        "--stop_stage",
        "data",
        "--dumpdir",
        "dump/22k",
        "--cache_features",
        "false",
    ]
    run(recipe, *words, "--fs", "22050")
    found = read_map(folder / "dump/22k/raw/valid_caption/wav.scp")
    assert {soundfile.info(folder / path).samplerate for path in found.values()} == {
        22050
    }


@pytest.fixture(scope="module")
def packed(tmp_path_factory, tiny_parts):
    """A recipe directory with a packed system, as zip and as folder, and its files."""
    from espnet2_slit.bin import slit_pack

    root = tmp_path_factory.mktemp("packed")
    folder = root / "egs2" / "tiny" / "slit1"
    subprocess.run([RECIPE / "setup.sh", folder], check=True, capture_output=True)
    tiny_recipe.write_configs(folder / "conf", epochs=1)
    system = tiny_system.system(root / "exp", tiny_parts)
    (folder / "as folder").mkdir()
    words = ["--exp", str(system), "--include_frozen", "true"]
    for option, target in (("--outpath", "as_zip.zip"), ("--upload", "as folder")):
        assert slit_pack.main([*words, option, str(folder / target)]) == 0
    shutil.rmtree(root / "exp")  # nothing but what was packed is there
    for n, kind in enumerate(KINDS):
        soundfile.write(folder / f"{kind}.wav", *audio(kind, n))
    rows = [{"audio": f"{k}.wav", "text": f"a {k}", "split": "test"} for k in KINDS]
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_downloaded_system_decodes_alike_as_zip_folder_and_repository(
    packed, tmp_path
):
    files = {
        str(path.relative_to(packed / "as folder")): path.read_bytes()
        for path in (packed / "as folder").rglob("*")
        if path.is_file()
    }

    class Repositories(Hub):
        repositories = {"someone/as-repository": {"files": files}}
        asked: list = []

    command = ["./slit.sh", "--ngpu", "0", "--nj", "1", "--config", "tiny"]
    command += ["--manifest", "my.jsonl", "--test_sets", "test_caption"]
    texts = {}
    with serving(Repositories) as address:
        hub = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}
        hub |= {"HF_HOME": str(tmp_path / "hub"), "XDG_CACHE_HOME": str(tmp_path)}
        for name, given, stage in (
            ("as_zip", "as_zip.zip", "data"),
            ("as_folder", "as folder/", "decode"),
            ("someone_as-repository", "someone/as-repository", "decode"),
        ):
            more = ["--stage", stage, "--stop_stage", "decode"]
            out = run((packed, [*command, "--download_model", given]), *more, **hub)
            assert "Training" not in out
            decoded = packed / "exp" / name / "decode_tiny" / "test_caption"
            texts[name] = (decoded / "caption" / "text").read_text()
    assert len(set(texts.values())) == 1 and len(texts["as_zip"].splitlines()) == 3
    # of the repository all files came from the mirror
    fetched = {path.partition(f"/{COMMIT}/")[2] for _, path in Repositories.asked}
    assert {"slit.json", "generator/model.pth"} <= fetched


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_as_an_undisturbed_one(recipe):
    import torch

    folder, command = recipe
    more = ["--stage", "1", "--stop-stage", "2", "--train_args", "--max_epoch 4"]
    run(recipe, *more, "--tag", "whole")
    killed = [*command, *more, "--tag", "killed"]
    process = subprocess.Popen(
        killed, cwd=folder, env=tiny_recipe.environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    exp = folder / "exp" / "killed_representation"
    while not (exp / "2epoch.pth").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (exp / ".done").exists()
    for _ in range(100):  # its jobs end with it
        with open(exp / ".lock") as lock:
            if subprocess.run(["flock", "-n", lock.name, "true"]).returncode == 0:
                break
        time.sleep(0.1)
    run(recipe, *more, "--tag", "killed")
    whole, again = (
        torch.load(
            folder / "exp" / f"{tag}_representation" / "4epoch.pth", weights_only=True
        )
        for tag in ("whole", "killed")
    )
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


@pytest.mark.slow
def test_a_later_stage_notices_that_the_earlier_one_was_trained_anew(recipe):
    folder, command = recipe
    more = ["--stage", "1", "--stop-stage", "3", "--tag", "anew"]
    run(recipe, *more)
    run(recipe, *more[:3], "2", *more[4:], "--train_args", "--max_epoch 3")
    done = subprocess.run(
        [*command, *more, "--train_args", "--max_epoch 3"],
        cwd=folder, env=tiny_recipe.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        "anew_generative: expected to go on with a training that began" in done.stderr
    )


# One training set and one test set; encoded once for the tests below.
SMALL = [
    *["--valid_set", "train_caption", "--instruction_train_set", "train_caption"],
    *["--instruction_valid_set", "train_caption", "--test_sets", "test_caption"],
    *["--dumpdir", "small", "--expdir", "small_exp", "--stage"],
]


@pytest.mark.slow
def test_slurm_encodes_and_decodes_in_arrays_of_jobs(
    recipe, tmp_path, tiny_parts, monkeypatch
):
    """A stand-in for Slurm; two jobs give what one gives."""
    from espnet2_slit.bin import slit_inference
    from espnet2_slit.data import feature_cache, kaldi_matrix
    from espnet2_slit.model.audio_encoder import build_audio_encoder

    folder, _ = recipe
    slurm = StandIns(tmp_path / "bin", exports=("PATH",))
    by_slurm = dict(cmd_backend="slurm", PATH=slurm.path)
    run(recipe, *SMALL, "1", "--stop-stage", "1", "--encode_nj", "2", **by_slurm)
    raw = folder / "small" / "raw" / "test_caption"
    (encoded,) = folder.glob("small/*/test_caption/feats.scp")
    encoder = build_audio_encoder("beats", path=str(tiny_parts.beats))
    monkeypatch.chdir(folder)  # paths in the dump are relative to it
    work = feature_cache.plan(raw, encoder.identity())
    feature_cache.encode(work, encoder, tmp_path / "alone")
    feature_cache.merge(
        work, raw, tmp_path / "alone", feature_cache.encoder_facts(encoder)
    )
    one = kaldi_matrix.FeatureReader(tmp_path / "alone" / "feats.scp")
    two = kaldi_matrix.FeatureReader(encoded)
    assert set(one) == set(two) and len(one) == 6
    assert all(np.array_equal(one[key], two[key]) for key in one)

    system = tiny_system.system(folder / "small_exp", tiny_parts)  # as if trained
    run(recipe, *SMALL, "5", "--stop-stage", "5", "--inference_nj", "2", **by_slurm)
    decoded = system / "decode_tiny" / "test_caption"
    words = ["--model", system, "--data_dir", encoded.parent]
    words += ["--config", folder / "conf/decode_tiny.yaml"]
    words += ["--output_dir", tmp_path / "decoded"]
    assert slit_inference.main([str(word) for word in words]) == 0
    text = Path("caption", "text")
    assert (decoded / text).read_text() == (tmp_path / "decoded" / text).read_text()

    arrays = [words for words in slurm.calls("slurm.pl") if "JOB=1:2" in words]
    jobs = [(folder / w[w.index("bash") + 1]).read_text() for w in arrays]
    assert sum("slit_encode" in job for job in jobs) == 2  # sets
    assert sum("slit_inference" in job for job in jobs) == 1


@pytest.mark.slow
def test_sge_trains_with_the_python_and_the_threads_of_the_submission(recipe, tmp_path):
    """A stand-in for SGE whose jobs find another Python first, and none of ours."""
    folder, _ = recipe
    sge = StandIns(tmp_path / "bin", exports=("PATH",))
    other = folder.parents[2] / "tools" / "activate_python.sh"  # of an ESPnet tree
    (folder.parents[2] / "espnet2").mkdir()
    other.parent.mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "other" / "python3").chmod(0o755)
    other.write_text(f'PATH="{tmp_path}/other:$PATH"\n')
    run(recipe, *SMALL, "1", "--stop-stage", "data")
    more = ["--tag", "sge", "--train_threads", "2"]
    variables = dict(cmd_backend="sge", PATH=sge.path, HF_HOME=str(tmp_path))
    run(recipe, *SMALL, "2", "--stop-stage", "2", *more, **variables)
    shutil.rmtree(other.parent), (folder.parents[2] / "espnet2").rmdir()
    exp = folder / "small_exp" / "sge_representation"
    assert (exp / "2epoch.pth").is_file()
    (call,) = sge.calls("queue.pl")
    assert call[: call.index("--gpu")] == [
        *["--name", "slit_sge_representation", "--num_threads", "2"]
    ]
    job = (exp / "train.sh").read_text()
    python = Path(sys.executable).with_name("python3")
    assert f"exec {python} -m espnet2_slit.bin.slit_train" in job
    assert "export OMP_NUM_THREADS=2" in job and f"export HF_HOME={tmp_path}" in job


@pytest.mark.slow
def test_ssh_trains_on_two_machines(recipe, tmp_path, tiny_parts):
    """A stand-in for ssh; a path with blanks, quotes and commands gets there whole."""
    folder, _ = recipe
    ssh = StandIns(tmp_path / "bin")
    odd = tmp_path / "it's a `touch executed` $(touch executed)"
    shutil.copytree(tiny_parts.tokenizer, odd)
    more = ["--host", "localhost,localhost", "--tag", "ssh"]
    more += ["--qformer_tokenizer", str(odd)]
    run(recipe, *SMALL, "1", "--stop-stage", "2", *more, PATH=ssh.path)
    exp = folder / "small_exp" / "ssh_representation"
    assert ":0/2]" in (exp / "train.log").read_text()
    assert (exp / "2epoch.pth").is_file()
    assert [words[0] for words in ssh.calls("ssh")] == ["localhost", "localhost"]
    assert not list(folder.rglob("executed")) and not Path("executed").exists()
