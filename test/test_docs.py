"""Tests of what the documentation says: its code runs, its commands and files exist."""

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_system

from espnet2_slit.bin import shared
from espnet2_slit.bin import slit as command

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "egs2" / "slit" / "slit1"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md",
         ROOT / "CONTRIBUTING.md"]  # fmt: skip
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(page, language):
    """Code of a language on a page."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [code for name, code in found if name == language]


def commands(page):
    """Command lines of a page, and those within its text."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
    plain = BLOCK.sub("", page.read_text(encoding="utf-8"))
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", plain)]
    return [line for line in [*lines, *inline] if line]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_parts):
    """A folder with what quick_start names: exp/mini_instruction, a.wav, sounds/."""
    folder = tmp_path_factory.mktemp("docs")
    made = tiny_system.system(folder / "exp", tiny_parts)
    (folder / "exp" / "mini_instruction").symlink_to(made.name)
    (folder / "sounds").mkdir()
    for i, name in enumerate(("a.wav", "b.wav", "sounds/c.wav", "sounds/d.wav")):
        audio = 0.3 * np.sin(np.arange(9000 + 1000 * i) * 0.04 * (i + 1))
        soundfile.write(folder / name, audio.astype(np.float32), 16000)
    mini = folder / "downloads" / "mini" / "audio" / "mini_test"
    mini.mkdir(parents=True)
    for i in range(9):  # what README's own command makes
        audio = 0.3 * np.sin(np.arange(9000 + 900 * i) * 0.03 * (i + 1))
        soundfile.write(mini / f"mini_test_0000{i}.flac", audio, 16000)
    return folder


def test_python_of_quick_start_and_readme_runs(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    for page in (ROOT / "docs" / "quick_start.md", ROOT / "README.md"):
        names = {}
        code = blocks(page, "python")
        assert code, page
        for number, block in enumerate(code):
            exec(compile(block, f"{page.name} block {number}", "exec"), names)
    assert names["slit"] is not None
    assert "sounds" not in capsys.readouterr().err


def test_commands_of_quick_start_run(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("SLIT_MODEL", "exp/mini_instruction")
    from espnet2_slit.inference.slit import SLIT

    opened = lru_cache(SLIT.from_pretrained)
    monkeypatch.setattr(shared, "load", lambda args: opened(args.model))
    count = 0
    for block in blocks(ROOT / "docs" / "quick_start.md", "sh"):
        for line in block.splitlines():
            # demo serves until it is stopped, doctor looks at the machine
            if line.startswith("slit ") and "demo" not in line and "doctor" not in line:
                assert command.main(shlex.split(line)[1:]) == 0, line
                assert capsys.readouterr().out, line
                count += 1
    assert count >= 9


# ----------------------------------------------------------- options that are named


@lru_cache(maxsize=None)
def help_of(*words):
    """--help of a slit command."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as stop:
        command.main([*words, "--help"])
    assert stop.value.code == 0, words
    return shown.getvalue()


def shell_options(*scripts):
    """Options that the scripts list in their heads."""
    names = set()
    for script in scripts:
        text = (RECIPE / script).read_text(encoding="utf-8")
        inside = text.partition("# Options")[2].partition("# End of options")[0]
        names.update(re.findall(r"^([a-z][a-z0-9_]*)=", inside, re.M))
    return names


def options_in(words):
    """Long options of a command line, written with underscores."""
    return {
        word[2:].partition("=")[0].replace("-", "_")
        for word in words
        if re.fullmatch(r"--[a-z][\w-]*(=.*)?", word)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_of_recipe_scripts_exist(page):
    for line in commands(page):
        found = re.match(r"(?:\w+=\S+ )*(?:cd \S+ && )?\./(\w+\.sh)(.*)", line)
        if not found:
            continue
        assert (RECIPE / found[1]).is_file(), line
        words = shlex.split(found[2])
        known = shell_options("slit.sh", found[1]) | {"help"}
        assert options_in(words) <= known, line
        for word in ("train_args", "inference_args"):
            if f"--{word}" in words:
                inner = shlex.split(words[words.index(f"--{word}") + 1])
                program = {"train_args": "train", "inference_args": "decode"}[word]
                text = help_of(program)
                assert all(f"--{name}" in text for name in options_in(inner)), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_of_slit_exist(page):
    for line in commands(page):
        if not re.match(r"slit [a-z]", line):
            continue
        if "..." in line or "<" in line:
            line = re.sub(r"\.\.\.|<\w+>", "x", line)
        words = shlex.split(line)[1:]
        name = words[0]
        assert re.search(rf"^    {name}\b", help_of(), re.M), line
        deeper = []
        if name in ("data", "corpus") and len(words) > 1 and words[1].isidentifier():
            deeper = [words[1]] if words[1] != "x" else []
        text = help_of(name, *deeper).replace("-", "_")
        for option in options_in(words) - {"help"}:
            assert f"__{option}" in text, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(
        r"(?<![\w/.])((?:espnet2_slit|egs2|tools|test|docs|bench)/[\w./-]*\w)", text
    )
    made = ("docs/_build",)
    for name in named:
        assert name in made or (ROOT / name).exists(), f"{page.name} names {name}"
    for name in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / name).exists(), f"{page.name} links to {name}"


def test_tree_of_the_readme_names_every_room():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.rpartition("## What lies where")[2]
    folders, named = [], set()
    for line in tree.splitlines():
        found = re.match(r"( *)(\S+)(?:\s|$)", line)
        if not found or found[2].startswith("```"):
            continue
        depth = len(found[1]) // 2
        path = "/".join([*folders[:depth], found[2].rstrip("/")])
        folders[depth:] = [found[2].rstrip("/")]
        named.add(path)
        assert (ROOT / path).exists(), f"README's tree names {path}"
    rooms = {path.parent for path in (ROOT / "espnet2_slit").glob("*/__init__.py")}
    assert {f"espnet2_slit/{room.name}" for room in rooms} <= named


def test_every_page_is_in_the_table_of_contents():
    toctree = blocks_of_toctree((ROOT / "docs" / "index.md").read_text("utf-8"))
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert toctree == pages


def blocks_of_toctree(text):
    """Names in the toctree."""
    inside = re.search(r"```\{toctree\}\n(.*?)```", text, re.S)[1]
    return {line for line in inside.split() if re.fullmatch(r"[a-z_]+", line)}


def test_learning_curve_page_names_values_that_training_reports():
    page = (ROOT / "docs" / "learning_curves.md").read_text(encoding="utf-8")
    modules = sorted((ROOT / "espnet2_slit" / "model").glob("*.py"))
    source = "".join(path.read_text(encoding="utf-8") for path in modules)
    for name in set(re.findall(r"`((?:accuracy|query|similarity)_\w+)`", page)):
        assert f'"{name}"' in source, name
    for name in set(re.findall(r"`loss_(\w+)`", page)) - {"spike"}:
        assert f'"{name}"' in source, name


@pytest.mark.slow
def test_documentation_is_built_without_a_warning(tmp_path):
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module, reason="extra docs")
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "docs", copy / "docs")
    (copy / "espnet2_slit").mkdir()
    shutil.copy(ROOT / "espnet2_slit" / "__init__.py", copy / "espnet2_slit")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-b", "html", copy / "docs",
         tmp_path / "html"], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
