"""Claims about the size of what has to be read: files, functions, and most of them."""

import ast
import io
import math
import tokenize
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "espnet2_slit").rglob("*.py"))
RECIPE_FILES = sorted((ROOT / "egs2").rglob("*.py"))
FILE_LINES = 750
RECIPE_LINES = 3000  # of all its Python together
FUNCTION_LINES = 80  # without docstring, comments and blank lines
NINE_OF_TEN = 32  # functions are no longer than this
# Neither do tokens of layout make a line one of code.
LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT,
    tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip


def code_lines(source):
    """Numbers of the lines with code; a docstring is none."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = set()
    for token in tokens:
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def function_lengths(source):
    """(lines of code, first line, name) of each function."""
    lines = code_lines(source)
    return [
        (
            len(lines & set(range(node.lineno, node.end_lineno + 1))),
            node.lineno,
            node.name,
        )
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


@lru_cache(maxsize=None)
def functions():
    """(lines of code, place) of each function of the package and the recipe."""
    return [
        (length, f"{path.relative_to(ROOT)}:{line} {name}")
        for path in (*FILES, *RECIPE_FILES)
        for length, line, name in function_lengths(path.read_text(encoding="utf-8"))
    ]


def test_code_is_counted_without_what_explains_it():
    source = (
        '"""Module."""\n\n\ndef one():\n    """Two\n    lines."""\n\n'
        "    # why\n    x = [\n        1,\n    ]  # what\n    return x\n"
    )
    assert function_lengths(source) == [(5, 4, "one")]


def test_no_file_is_longer_than_one_can_keep_in_mind():
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in FILES}
    long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > FILE_LINES}
    assert long == {}


def test_the_recipes_python_stays_small():
    lines = sum(len(path.read_text("utf-8").splitlines()) for path in RECIPE_FILES)
    assert lines <= RECIPE_LINES


def test_no_function_is_longer_than_a_screen_or_two():
    assert [(n, place) for n, place in functions() if n > FUNCTION_LINES] == []


def test_nine_of_ten_functions_fit_on_half_a_screen():
    lengths = sorted(length for length, _ in functions())
    assert lengths[math.ceil(0.9 * len(lengths)) - 1] <= NINE_OF_TEN
