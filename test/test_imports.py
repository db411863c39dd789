"""Claims about the house: imports go one way, importing is light, loading is safe."""

import ast
import importlib.util
import subprocess
import sys
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "espnet2_slit"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
RECIPE_FILES = sorted((ROOT / "egs2").rglob("*.py"))

# The rooms, from the ground up: a module imports its own room and the rooms before it.
ROOMS = ["common", "data", "train", "model", "scoring", "task", "inference", "bin"]
# Rooms inside rooms that import less than their room may.
DOORS = {
    "scoring": {"scoring", "data", "common"},
    "scoring.metrics": {"scoring", "common"},
    "model.audio_encoder": {"model", "common"},
}


def module_name(path):
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_code(code):
    """In a Python of its own, which has imported nothing."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )


@lru_cache(maxsize=None)
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@lru_cache(maxsize=None)
def imports():
    """Module -> our modules that it imports anywhere, also inside functions."""
    names = {module_name(path) for path in FILES}
    graph = {}
    for path in FILES:
        module, found = module_name(path), set()
        here = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    up = here.split(".")[: len(here.split(".")) - node.level + 1]
                    base = ".".join(up + ([base] if base else []))
                found.add(base)
                found.update(f"{base}.{alias.name}" for alias in node.names)
        graph[module] = (found & names) - {PACKAGE, module}
    return graph


def room(module):
    return module.split(".")[1] if "." in module else module


def test_imports_have_no_cycle():
    try:
        tuple(TopologicalSorter(imports()).static_order())
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' -> '.join(error.args[1])}")


def test_every_module_lives_in_a_room():
    assert {room(module_name(path)) for path in FILES} == {PACKAGE, *ROOMS}


def test_rooms_import_only_rooms_below_them():
    wrong = []
    for module, others in imports().items():
        if module == PACKAGE:
            continue
        below = set(ROOMS[: ROOMS.index(room(module)) + 1])
        for name, allowed in DOORS.items():
            if f"{module}.".startswith(f"{PACKAGE}.{name}."):
                below = allowed
        wrong += [f"{module} imports {o}" for o in others if room(o) not in below]
    assert wrong == []


def test_metrics_import_only_metrics_and_the_ground_floor():
    inside = f"{PACKAGE}.scoring.metrics"
    wrong = [
        f"{module} imports {other}"
        for module, others in imports().items()
        if module.startswith(inside)
        for other in others
        if other != f"{PACKAGE}.scoring"
        and not other.startswith((inside, f"{PACKAGE}.common"))
    ]
    assert wrong == []


def test_only_commands_print_and_parse_arguments():
    wrong = []
    for path in FILES:
        if path.parent.name == "bin":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id == "print":
                    wrong.append(f"{path.name}:{node.lineno} prints")
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("ArgumentParser", "parse_args", "parse_known_args")
            ):
                wrong.append(f"{path.name}:{node.lineno} parses arguments")
    assert wrong == []


def keyword(call, name):
    for item in call.keywords:
        if item.arg == name:
            return getattr(item.value, "value", item.value)
    return None


def unsafe(call):
    """Why a call could run or leak what a file or a name says; None if it cannot."""
    target = ast.unparse(call.func)
    if target == "torch.load" and keyword(call, "weights_only") is not True:
        return "torch.load without weights_only=True"
    if target in ("np.load", "numpy.load") and keyword(call, "allow_pickle"):
        return "numpy.load with allow_pickle"
    if target == "yaml.load":
        loader = ast.unparse(call.args[1] if len(call.args) > 1 else call.keywords[0])
        return None if "Safe" in loader else "yaml.load without a safe loader"
    if target in ("yaml.unsafe_load", "pickle.load", "pickle.loads"):
        return target
    if target in ("eval", "exec", "os.system", "os.popen"):
        return target
    if target.startswith("subprocess.") and keyword(call, "shell"):
        return f"{target} with a shell"
    if target.endswith(".extractall") and keyword(call, "filter") is None:
        return "extractall of an archive"
    return None


def test_files_are_loaded_safely_and_no_shell_is_given_names():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {unsafe(node)}"
        for path in [*FILES, *RECIPE_FILES]
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and unsafe(node)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "module", [PACKAGE, f"{PACKAGE}.common.compat", f"{PACKAGE}.common.templates"]
)
def test_import_is_light(module):
    code = (
        f"import sys, {module}; "
        "print(sorted({n.split('.')[0] for n in sys.modules} & {'torch', 'numpy', "
        "'transformers', 'espnet2', 'espnet', 'scipy', 'matplotlib', 'nltk'}))"
    )
    done = run_code(code)
    assert done.stdout.strip() == "[]", done.stderr


def test_what_espnet_would_import_for_speech_synthesis_waits_until_asked_for():
    for module in ("g2p_en", "tacotron_cleaner"):
        if importlib.util.find_spec(module) is None:  # an extra of ESPnet 202611
            pytest.skip(f"needs {module}")
    code = (
        "import sys, espnet2_slit.task; before = 'inflect' in sys.modules;"
        "from espnet2.text.cleaner import TextCleaner;"
        "from espnet2.text import phoneme_tokenizer;"
        "print(before, TextCleaner('tacotron')('Dr. 12'), phoneme_tokenizer.g2p_en.G2p)"
    )
    done = run_code(code)
    assert "False DOCTOR TWELVE <class 'g2p_en.g2p.G2p'>" in done.stdout, done.stderr


def test_typeguard_compiles_nothing_of_espnet_and_is_itself_afterwards():
    code = (
        "import typeguard, typeguard._decorators as own;"
        "typechecked, instrument, seen = typeguard.typechecked, own.instrument, set();"
        "own.instrument = lambda f: (seen.add(f.__module__), instrument(f))[1];"
        "import espnet2_slit.task;"
        "print(sorted(m.split('.')[0] for m in seen if not m.startswith('torch')),"
        " typeguard.typechecked is typechecked)"
    )
    done = run_code(code)
    assert "espnet2'" not in done.stdout and "espnet2_slit" in done.stdout, done.stderr
    assert done.stdout.strip().endswith("True")
