"""kill -9 at random moments: the same command again ends in the same files.

Every command runs as a process of its own and is killed with SIGKILL after a time drawn
from its undisturbed duration. Training, with dropout, goes on from its last step; all
files are those of a run that was left alone, to the bit. Only what the clock wrote
(times, dates) is left out of the comparison.
"""

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_system
import torch

HERE = Path(__file__).parent
SEED = 20
LIMIT_S = 240  # of one undisturbed run, on a crowded machine
STAGES = ("representation", "generative", "instruction")
KILLS = dict.fromkeys(("prepare", "encode", *STAGES, "decode", "score"), 6)
CLIPS = 24
WORDS = ("a dog barks", "rain falls", "a bell rings", "birds chirp", "an engine runs")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start():
    """Start one command in a process that a fork server makes."""
    context = multiprocessing.get_context("forkserver")
    root = str(HERE.parents[1])
    paths = [root, str(HERE.parent), str(HERE)]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [before])])
    sys.path.insert(0, str(HERE))
    context.set_forkserver_preload(["kill_target"])
    import kill_target

    def run(name, words, log):
        words = [str(word) for word in words]
        process = context.Process(
            target=kill_target.command, args=(name, words, str(log))
        )
        process.start()
        return process

    yield run
    sys.path.remove(str(HERE))
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def write_set(folder, clips, tasks=(), **files):
    """A data directory of (id, path) pairs."""
    folder.mkdir(parents=True)
    content = {
        "wav.scp": [f"{key} {path}" for key, path in clips],
        "text": [f"{key} {WORDS[i % 5]}" for i, (key, _) in enumerate(clips)],
        "utt2spk": [f"{key} {key}" for key, _ in clips],
        "spk2utt": [f"{key} {key}" for key, _ in clips],
        **files,
    }
    for name, lines in content.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    facts = {"schema": 1, "name": folder.name, "tasks": list(tasks), "zero_shot": False}
    (folder / "set.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def commands(tmp_path_factory, tiny_parts, tiny_features, train_command):
    """{name: (words, folders that the command writes)}."""
    root = tmp_path_factory.mktemp("kill")
    (root / "wav").mkdir()
    clips = []
    for i in range(CLIPS):
        generator = np.random.default_rng(i)
        rate = (8000, 16000, 22050)[i % 3]
        audio = 0.2 * generator.standard_normal(int(rate * (0.3 + 0.02 * i)))
        path = root / "wav" / f"{i:02d}.wav"
        soundfile.write(path, audio.clip(-1, 1), rate)
        clips.append((f"clip{i:02d}", path))
    data = write_set(root / "data" / "train", clips)
    test = write_set(
        root / "data" / "test",
        clips[:8],
        ["caption", "retrieval"],
        references=[f"{k} {WORDS[i % 5]}" for i, (k, _) in enumerate(clips[:8])],
    )
    system = tiny_system.system(root / "exp", tiny_parts)
    config = root / "decode.yaml"
    config.write_text("caption: {max_new_tokens: 5, num_beams: 2}\nrerank: 3\n")
    raw, dump = root / "dump" / "raw", root / "dump" / "tiny"
    decoded = root / "exp" / "decode"
    scores = root / "scores"
    steps = ["--qformer_conf", "dropout=0.1", "--batch_size", "2"]
    steps += ["--keep_nbest_models", 2, "--checkpoint_minutes", 1e-9]
    trainings = {
        stage: (
            train_command(stage, root / "exp" / stage, *steps, epochs=4),
            [root / "exp" / stage],
        )
        for stage in STAGES
    }
    return {
        "prepare": (["prepare", data, raw / "train", "--nj", 1], [raw]),
        "encode": (
            ["--data_dir", data, "--output_dir", dump / "train"]
            + ["--audio_encoder", "beats", "--audio_encoder_conf"]
            + [f"path={tiny_parts.beats}", "--shard_clips", 3],
            [dump],
        ),
        **trainings,
        "decode": (
            ["--model", system, "--config", config, "--data_dir", test]
            + ["--output_dir", decoded / "test"],
            [decoded],
        ),
        "score": (
            ["--decode_dir", decoded, "--data_dir", root / "data"]
            + ["--output_dir", scores, "--resamples", 50, "--skip_spice", "true"]
            + ["--skip_meteor", "true", "--tokenizer", "python"],
            [scores],
        ),
    }


CLOCK = [
    (r'"(seconds|date)": [^\n]*', ""),
    (r"- date: [^\n]*", ""),
    (r"<li>date[^\n]*", ""),
    (r"(Git hash|Commit date).{0,80}", ""),  # somebody may commit meanwhile
    (r"\w{3} \w{3} \d\d \d\d:\d\d:\d\d \w+ \d{4}", ""),
]


def plain(value):
    """Tensors as bytes, the rest as it is; the reporter's times left out."""
    if isinstance(value, torch.Tensor):
        return value.cpu().numpy().tobytes()
    if isinstance(value, dict):
        return {
            k: plain(v)
            for k, v in value.items()
            if not (isinstance(k, str) and ("time" in k or "mem" in k))
        }
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def content(path):
    """What must be equal: everything except what the clock wrote."""
    if path.suffix == ".pth":
        from espnet2_slit.common.weights import read_checkpoint

        return plain(read_checkpoint(path))
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as loaded:
            return {k: (loaded[k].dtype.str, loaded[k].tobytes()) for k in loaded.files}
    if path.name == "checked.jsonl":  # a clip may be checked twice, in another order
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {line["key"]: line for line in lines}
    data = path.read_bytes()
    if path.suffix in (".json", ".md", ".html"):
        text = data.decode("utf-8")
        for pattern, new in CLOCK:
            text = re.sub(pattern, new, text)
        return text
    return hashlib.sha256(data).hexdigest()


def snapshot(folders):
    """{path: content} of the results: no logs, no hidden temporary files."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            parts = path.relative_to(folder).parts
            if path.is_file() and not any(part.startswith(".") for part in parts):
                if path.suffix != ".log" and path.name != "config.yaml":
                    found[str(path)] = content(path)
    return found


def clear(folders):
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


# Its presence says that the command's results are whole.
LAST = {"prepare": "report.json", "encode": "feats.json", "decode": "decode.json"}


@pytest.mark.parametrize("name", KILLS)
def test_killed_at_random_moments_it_ends_in_the_same_files(
    name, start, commands, tmp_path, record_property
):
    words, folders = commands[name]
    log = tmp_path / "log"
    if name == "score" and not commands["decode"][1][0].exists():
        start("decode", commands["decode"][0], log).join(LIMIT_S)

    def finish():
        began = time.monotonic()
        process = start(name, words, log)
        process.join(LIMIT_S)
        tail = log.read_text(errors="replace")[-3000:]
        assert process.exitcode == 0, tail
        return time.monotonic() - began

    start(name, ["--help"], log).join(LIMIT_S)  # pays for the fork server
    took = finish()
    expected = snapshot(folders)
    assert expected
    draw = random.Random(f"{SEED} {name}")
    kills = runs = early = 0
    clear(folders)
    while kills < KILLS[name]:
        process = start(name, words, log)
        process.join(draw.uniform(0.02, 1.0) * took)
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:  # it was faster: nothing to kill
            assert process.exitcode == 0, log.read_text(errors="replace")[-3000:]
            assert snapshot(folders) == expected
            clear(folders)
            early += 1
            assert early < 20, "the machine's speed changes too much for this test"
            continue
        kills += 1
        for marker in folders[0].rglob(LAST.get(name, "no such file")):
            for path in marker.parent.rglob("*"):  # what it vouches for is whole
                if str(path) in expected:
                    assert content(path) == expected[str(path)], path
        if draw.random() < 0.5 or kills == KILLS[name]:
            finish()
            runs += 1
            found = snapshot(folders)
            differing = [
                p for p in {*expected, *found} if expected.get(p) != found.get(p)
            ]
            assert not differing, differing
            assert not [p for f in folders for p in f.rglob(".*.pth.*.tmp")]
            clear(folders)
    record_property("kills", kills)
    print(f"{name}: {kills} kills, {runs} resumed runs, undisturbed {took:.1f} s")
    finish()  # what the next command reads


def test_there_are_at_least_30_kills():
    assert sum(KILLS.values()) >= 30
