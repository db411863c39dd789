"""The recipes of public corpora and of other ESPnet recipes, on miniature trees."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "egs2" / "slit" / "slit1"
sys.path.insert(0, str(ROOT / "test" / "corpora"))

import trees  # noqa: E402

pytestmark = pytest.mark.recipe
CORPORA = (
    "audiocaps clotho wavcaps macs clotho_aqa audioset esc50 urbansound8k vggsound"
)
CORPORA += " fsd50k nsynth"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """The variables of db.sh, each a miniature corpus."""
    root = tmp_path_factory.mktemp("corpora")
    return {n.upper(): str(getattr(trees, n)(root / n)) for n in CORPORA.split()}


@pytest.fixture
def recipe(tmp_path):
    """A copy of the recipe with tiny configurations, for the package on PYTHONPATH."""
    left_out = shutil.ignore_patterns("data", "dump", "exp", "downloads")
    copy = tmp_path / "egs2" / "slit" / "slit1"
    shutil.copytree(RECIPE, copy, ignore=left_out)
    tiny_recipe.write_configs(copy / "conf", epochs=1)
    return copy


def run(script, *words, fails=False, **variables):
    """Runs a script; returns what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {"PATH": path, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [script, *words],
        env=tiny_recipe.environment(**variables),
        capture_output=True,
        text=True,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr if fails else done.stdout


def scores(folder):
    """{test set: tasks that have a score}."""
    found = {}
    for row in json.loads((folder / "decode_tiny" / "scores.json").read_text())[
        "scores"
    ]:
        if row["value"] is not None:
            found.setdefault(row["set"], set()).add(row["task"])
    return found


def script_options(path):
    """(names in the option block, lines of commands) of a script."""
    text = path.read_text()
    block = re.search(r"^# Options.*?^# End of options", text, re.M | re.S)
    names = re.findall(r"^([a-z]\w*)=", block[0] if block else "", re.M)
    return set(names), text


@pytest.mark.parametrize("name", ["run_audiocaps_clotho.sh", "run_full.sh"])
def test_a_recipe_is_slit_sh_with_names(name):
    known, _ = script_options(RECIPE / "slit.sh")
    _, text = script_options(RECIPE / name)
    preamble, _, command = text.partition("exec ./slit.sh ")
    mini = (RECIPE / "run.sh").read_text()
    setting_up = [line for line in preamble.splitlines() if line and line[0] != "#"]
    assert setting_up == [line for line in mini.splitlines() if line in setting_up]
    words = shlex.split(command.replace("\\\n", " "))
    assert words.pop() == "$@"  # the caller's options come last, so they win
    assert {word.removeprefix("--") for word in words[::2]} <= known
    assert not any(word.startswith("--") for word in words[1::2])


def test_settings_as_reported_are_those_of_all_corpora_with_other_parts():
    known, _ = script_options(RECIPE / "slit.sh")
    _, _, command = script_options(RECIPE / "run_as_reported.sh")[1].partition("exec ")
    script, *words, rest = shlex.split(command.replace("\\\n", " "))
    assert script == "./run_full.sh" and rest == "$@"  # whose options come last, too
    assert {word.removeprefix("--") for word in words[::2]} <= known


def test_all_corpora_are_prepared_with_one_command(recipe, corpora, tiny_parts):
    out = run(
        *[recipe / "run_full.sh", *tiny_recipe.options(tiny_parts)],
        *["--stop_stage", "1", "--cache_features", "false"],
        **corpora,
    )
    sets = {path.parent.name for path in (recipe / "dump" / "raw").glob("*/wav.scp")}
    assert {"train_caption", "valid_caption", "train_instruction"} < sets
    assert {"audiocaps_test", "clotho_aqa_test", "esc50_all", "vggsound_test"} < sets
    assert "0 of 18 pairs of training and test directories overlap" in out
    assert "left out: blacklisted" in out
    categories = recipe / "dump" / "raw" / "train_instruction" / "category2utt"
    assert "clotho_aqa_question " in categories.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tag", "expected"),
    [
        (
            "run_audiocaps_clotho.sh",
            "audiocaps_clotho",
            {
                "audiocaps_test": {"caption", "retrieval"},
                "clotho_evaluation": {"caption", "retrieval"},
            },
        ),
        (
            "run_full.sh",
            "full",
            {
                "audiocaps_test": {"caption", "retrieval"},
                "clotho_evaluation": {"caption", "retrieval"},
                "clotho_aqa_test": {"question_answering"},
                "audioset_eval": {"classification"},
                "fsd50k_eval": {"classification"},
                "nsynth_test": {"classification"},
                "esc50_all": {"classification"},
                "urbansound8k_all": {"classification"},
                "vggsound_test": {"classification"},
            },
        ),
    ],
)
def test_public_corpora_go_through_all_stages(
    recipe, corpora, tiny_parts, name, tag, expected
):
    words = [recipe / name, *tiny_recipe.options(tiny_parts), "--stop_stage", "6"]
    run(*words, **corpora)
    assert scores(recipe / "exp" / f"{tag}_instruction") == expected
    log = (recipe / "exp" / f"{tag}_instruction" / "train.log").read_text()
    assert "CategoryPowerSampler(" in log
    again = run(*words, **corpora)
    assert "Training" not in again and "Decoding" not in again


@pytest.mark.slow
def test_esc50_goes_by_held_out_fold_to_a_mean_of_the_folds(
    recipe, tmp_path, tiny_parts, tiny_features, train_command
):
    esc50 = trees.esc50(tmp_path / "esc50", folds=3)
    init = tmp_path / "init"  # in place of the mini system's Q-Former
    subprocess.run(
        [sys.executable, "-m", "espnet2_slit.bin.slit_train"]
        + train_command("representation", init),
        env=tiny_recipe.environment(PYTHONPATH=str(ROOT)),
        check=True,
    )
    data = f"--epochs 1 --pairs 64 --valid_clips 2 --init {tiny_parts.beats}"
    words = ["--esc50", esc50, "--folds", "1 2", "--config", "tiny", "--nj", "1"]
    words += ["--init", init / "valid.loss.best.pth", "--data_args", data]
    words += ["--score_args", "--report false --resamples 20 --tokenizer python"]
    run(recipe / "run_esc50.sh", *words)
    for fold, other in ((1, 2), (2, 1)):
        exp = recipe / "exp" / f"esc50_fold{fold}_instruction"
        assert "classification" in scores(exp)[f"test_fold{fold}"]
        data = recipe / "data" / f"esc50_fold{fold}"
        held_out = (data / f"test_fold{fold}" / "wav.scp").read_text()
        assert f"/audio/{fold}-" in held_out and f"/audio/{other}-" not in held_out
        for name in ("train_caption", "train_instruction", "valid_caption"):
            assert f"/audio/{fold}-" not in (data / name / "wav.scp").read_text()
        encoder = recipe / "downloads" / f"esc50_fold{fold}.pt"
        assert encoder.read_bytes() != tiny_parts.beats.read_bytes()
    assert (recipe / "downloads" / "esc50" / "language_model").is_dir()
    rows = json.loads((recipe / "exp" / "esc50" / "scores.json").read_text())["scores"]
    mean = [row for row in rows if row["set"] == "mean_of_2_folds"]
    found = {row["task"] for row in mean if row["value"] is not None}
    assert "classification" in found
    assert (recipe / "exp" / "esc50" / "RESULTS.md").is_file()


# ---------------------------------------------------------------- other ESPnet recipes


@pytest.fixture
def espnet_tree(tmp_path):
    """An ESPnet tree: TEMPLATE's folders, and a run.pl that notes its calls."""
    tree = tmp_path / "espnet"
    template = tree / "egs2" / "TEMPLATE" / "asr1"
    for name in ("utils", "steps", "scripts", "pyscripts"):
        (template / name).mkdir(parents=True)
    (tree / "espnet2").mkdir()
    ours = RECIPE / "utils" / "run.pl"
    theirs = template / "utils" / "run.pl"
    theirs.write_text(f'#!/bin/sh\necho run >>"{tree}/calls"\nexec "{ours}" "$@"\n')
    theirs.chmod(0o755)
    # Kaldi's, which does not know our way of listing options
    (template / "utils" / "parse_options.sh").write_text("exit 99\n")
    return tree


@pytest.fixture
def clotho_recipe(espnet_tree, tiny_parts):
    """slit1 beside that tree's clotho_v2/asr1, and the options that take its data."""
    corpus = espnet_tree / "egs2" / "clotho_v2"
    trees.clotho_recipe(corpus / "asr1" / "data")
    run(RECIPE / "setup.sh", corpus / "slit1")
    tiny_recipe.write_configs(corpus / "slit1" / "conf", epochs=1)
    data = "espnet --from ../asr1/data --train development_clotho"
    data += " --valid validation --test evaluation"
    words = ["--local_data_opts", data, *tiny_recipe.options(tiny_parts)]
    return corpus / "slit1", words


@pytest.mark.slow
def test_captions_of_an_espnet_recipe_train_in_its_tree(espnet_tree, clotho_recipe):
    recipe, words = clotho_recipe
    run(recipe / "run.sh", *words, "--tag", "x", "--stop_stage", "6")
    assert scores(recipe / "exp" / "x_instruction") == {
        "test_evaluation": {"caption", "retrieval"}
    }
    assert len((espnet_tree / "calls").read_text().split()) >= 5  # its run.pl ran it


@pytest.mark.slow
def test_labels_of_an_espnet_recipe_train_anywhere(tmp_path, tiny_parts):
    data = trees.esc50_recipe(tmp_path / "cls1" / "data")
    recipe = tmp_path / "work"
    run(RECIPE / "setup.sh", recipe)
    tiny_recipe.write_configs(recipe / "conf", epochs=1)
    opts = f"espnet --from {data} --train train1 --valid val1 --test val1"
    opts += f" --task classification --label_names {data}/names"
    words = ["--local_data_opts", opts, *tiny_recipe.options(tiny_parts), "--tag", "x"]
    run(recipe / "run.sh", *words, "--stop_stage", "6")
    assert scores(recipe / "exp" / "x_instruction") == {"test_val1": {"classification"}}


def test_an_espnet_recipe_is_prepared_with_one_command(clotho_recipe):
    recipe, words = clotho_recipe
    words += ["--stop_stage", "1", "--cache_features", "false"]
    out = run(recipe / "run.sh", *words)
    assert "data/train_caption: 12 rows read, 12 kept" in out
    assert "data/valid_caption: 60 rows read, 60 kept" in out  # five captions a clip
    assert "data/test_evaluation: 12 rows read, 12 kept" in out
    raw = recipe / "dump" / "raw"
    references = (raw / "test_evaluation" / "references").read_text()
    assert references.count("\n") == 60


def test_other_data_options_prepare_the_test_sets_that_they_make(clotho_recipe):
    recipe, words = clotho_recipe
    words += ["--stop_stage", "1", "--cache_features", "false"]
    run(recipe / "run.sh", *words)
    at = words.index("--local_data_opts") + 1
    words[at] = words[at].replace("--test evaluation", "--test validation")
    out = run(recipe / "run.sh", *words)
    assert "data/test_validation: 12 rows read, 12 kept" in out
    assert "data/test_evaluation" not in out
    assert not (recipe / "data" / "test_evaluation").exists()


def test_captions_that_are_only_references_are_pointed_to_the_espnet_option(
    recipe, tmp_path
):
    data = trees.clotho_recipe(tmp_path / "asr1" / "data")
    words = ["--local_data_dir", data, "--train_set", "development_clotho"]
    words += ["--valid_set", "validation", "--test_sets", "evaluation"]
    out = run(recipe / "run.sh", *words, "--stop_stage", "1", fails=True)
    assert f"{data}/validation has text_spk1, ... and no text" in out
    assert f"espnet --from {data}" in out
    assert not (recipe / "dump").exists()


def test_sets_without_any_text_are_refused_before_work_begins(recipe, tmp_path):
    """asr.sh writes no text beside the references of a test set in dump/raw."""
    data = trees.clotho_recipe(tmp_path / "asr1" / "dump" / "raw")
    for path in data.glob("evaluation/text_spk*"):
        path.unlink()
    words = ["--local_data_dir", data, "--train_set", "development_clotho"]
    words += ["--valid_set", "development_clotho", "--test_sets", "evaluation"]
    words += ["--instruction_train_set=", "--instruction_valid_set="]
    out = run(recipe / "run.sh", *words, "--stop_stage", "1", fails=True)
    assert f"{data}/evaluation has no text and no references" in out
    assert not (recipe / "dump").exists()
