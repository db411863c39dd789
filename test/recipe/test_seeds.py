"""Claims about --seeds: which trainings are made, and the table of mean and range."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "egs2" / "slit" / "slit1"
TABLE = RECIPE / "local" / "ablation_table.py"


def scored(folder, value, chance=0.1):
    """An experiment with one score."""
    folder.mkdir(parents=True)
    row = {"key": "test/classification/similarity/accuracy", "chance": chance}
    rows = {"scores": [{**row, "value": value}]}
    (folder / "scores.json").write_text(json.dumps(rows))


def table(tmp_path, *systems):
    command = [sys.executable, TABLE, "--output", tmp_path / "table.md", *systems]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_several_seeds_make_mean_and_range(tmp_path):
    for seed, value in (("1", 0.5), ("2", 0.7), ("3", 0.9)):
        scored(tmp_path / f"a_seed{seed}" / "decode_x", value)
    scored(tmp_path / "b" / "scores", 0.25)  # as a baseline's
    lines = table(tmp_path, "A=a_seed1,a_seed2,a_seed3", "B=b")
    assert lines[0] == "| test set | score | A | B | chance |"
    expected = "| test | labels right %, similarity | 70.0 [50.0, 90.0] | 25.0 | 10.0 |"
    assert lines[2] == expected
    assert "Mean [lowest, highest]" in lines[-1]


def test_one_training_is_a_plain_value_and_a_missing_one_a_dash(tmp_path):
    scored(tmp_path / "a" / "decode_x", 0.5)
    scored(tmp_path / "b" / "decode_x", None, None)
    lines = table(tmp_path, "A=a", "B=b")
    assert lines[2].endswith("| 50.0 | – | 10.0 |") and "Mean" not in lines[-1]


@pytest.fixture
def recipe(tmp_path):
    """A copy of the recipe whose slit.sh notes its words and leaves a score."""
    copy = tmp_path / "egs2" / "slit" / "slit1"
    ignored = shutil.ignore_patterns("data", "dump", "exp", "downloads")
    shutil.copytree(RECIPE, copy, ignore=ignored)
    text = (copy / "slit.sh").read_text()
    options = text[text.index("# Options") :].split("# End of options")[0]
    (copy / "slit.sh").write_text(
        f"#!/usr/bin/env bash\n{options}# End of options\n. utils/parse_options.sh\n"
        'echo "$*" | tr "\\n" " " >>calls; echo >>calls\nparse_options "$@"\n'
        'dir=${expdir}/${tag}_${generator}/decode_x\nmkdir -p "${dir}"\n'
        'echo "{\\"scores\\": []}" >"${dir}/scores.json"\n'
    )
    return copy


def run(script, *words):
    known = {"PYTHON": sys.executable, "SLIT_NO_INSTALL": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [script, *words], env={**os.environ, **known}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (script.parent / "calls").read_text().splitlines()


def test_each_seed_is_a_training_of_its_own_on_the_same_data(recipe):
    words = ["--seeds", "1 2", "--train_args", "--max_epoch 1", "--stop_stage", "score"]
    calls = run(recipe / "run.sh", *words)
    assert len(calls) == 2
    for seed, call in zip("12", calls, strict=True):
        assert f"--tag mini_seed{seed} --train_args --max_epoch 1 --seed {seed}" in call
        assert "--datadir" not in call and "--encoder_tag mini_beats" in call
    assert "mini" in (recipe / "exp" / "mini_seeds.md").read_text()


def test_another_language_has_texts_of_its_own_and_the_same_sounds(recipe):
    encoded = recipe / "dump" / "mini_beats" / "test_caption"
    encoded.mkdir(parents=True)
    (encoded / "feats.json").write_text("{}")
    words = ["--lang", "de", "--threads", "2", "--stop_stage", "score"]
    (call,) = run(recipe / "run.sh", *words)
    for words in (
        "--tag mini_de",
        "--datadir data/mini_de --dumpdir dump/mini_de",
        "--local_data_opts mini --nj 2 --threads 2 --lang de --data_dir data/mini_de",
        "--inference_config conf/decode_mini_de.yaml",
        "--reuse_features dump/mini_beats/test_caption",
        "--audio_encoder_path downloads/mini/audio_encoder.pt",
        "--language_model downloads/mini/de/language_model",
        "--qformer_tokenizer downloads/mini/de/qformer_tokenizer",
        "--preprocessor_conf language=de",
        "--inference_conf language=de",
    ):
        assert words in call
    assert (recipe / "conf" / "decode_mini_de.yaml").is_file()
    words = [recipe / "run.sh", "--lang", "de", "--manifest", "x.csv"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and "from_manifest --language de" in done.stderr


def test_every_system_of_the_ablation_is_trained_with_each_seed(recipe):
    calls = run(recipe / "run_ablation.sh", "--seeds", "1 2 3")
    assert len(calls) == 18
    tags = [call.split(" --tag ")[1].split()[0] for call in calls]
    assert tags[:4] == ["mini_seed1", "mini_seed2", "mini_seed3"] + [
        "mini_no_representation_seed1"
    ]
    heading = (recipe / "exp" / "ablation.md").read_text().splitlines()[0]
    assert "whole system | no representation | no instruction tuning |" in heading
