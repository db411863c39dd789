"""Caption tokenisation for the caption metrics: COCO's Java tokenizer or plain Python.

The COCO caption metrics are defined on lower-cased Penn Treebank tokens with
punctuation removed, as made by Stanford CoreNLP 3.4.1. Without Java, `python` splits by
one regular expression; scores name which of the two was used.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

# What the COCO tokenizer drops after tokenising. Its brackets are in capitals, the
# tokens in lower case, so brackets stay: kept, since published scores have it so.
PUNCTUATION = frozenset(
    "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split()
)
PTB_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
INSTALL = (
    "pip install 'espnet2_slit[score]' and a Java runtime "
    "(apt install default-jre-headless)"
)

# What the Python tokenizer knows of the Treebank rules, in order of precedence:
# abbreviations keep their full stop, clitics are cut off, numbers keep inner points
# and commas, hyphenated words stay whole.
_ABBREVIATIONS = r"(?:mr|mrs|ms|dr|st|vs|etc|jr|sr|prof|inc|ltd|co|corp|no)\.(?=\s+\S)"
_TOKEN = re.compile(
    rf"""
    \b{_ABBREVIATIONS}
    | (?:[a-z]\.){{2,}}                      # a.m.  u.s.
    | [a-z]+(?=n't\b)                        # do|n't
    | n't\b
    | '(?:s|re|ve|ll|d|m)\b
    | \d+(?:[.,:/]\d+)+ (?![\w])             # 3.5  1,000  10:30  1/2
    | \w+(?:[-/]\w+)*                        # high-pitched  and/or
    | [^\w\s]
    """,
    re.VERBOSE,
)
# The Treebank tokenizer rewrites these into names that COCO drops ...
_DROPPED = frozenset('"“”…–—')
# ... and these into others.
_REWRITTEN = {
    "cannot": ["can", "not"],
    "gonna": ["gon", "na"],
    "(": ["-lrb-"],
    ")": ["-rrb-"],
    "[": ["-lsb-"],
    "]": ["-rsb-"],
    "{": ["-lcb-"],
    "}": ["-rcb-"],
}


def package_file(relative: str) -> Path | None:
    """Path of a file of pycocoevalcap, or None; nothing of it is imported."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None:
        return None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder) / relative
        if path.is_file():
            return path
    return None


def java_version(java: str = "java") -> int | None:
    """Major version of the Java runtime, or None where there is none."""
    if shutil.which(java) is None:
        return None
    done = subprocess.run([java, "-version"], capture_output=True, text=True)
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(found.group(1)) if found else None


def choose_tokenizer(java: str = "java") -> str:
    """`ptb_java` where Java and its jar are there, else `python`."""
    if shutil.which(java) is not None and package_file(PTB_JAR) is not None:
        return "ptb_java"
    return "python"


def tokenize(
    captions: Sequence[str], tokenizer: str = "auto", java: str = "java"
) -> tuple[list[list[str]], str]:
    """Tokens of each caption, lower-cased, without punctuation.

    Args:
        captions: list of str; an empty caption has no tokens.
        tokenizer: `ptb_java`, `python`, or `auto` (the first that works here).
        java: the Java executable.

    Returns:
        (list of lists of str, name of the tokenizer used).

    Raises:
        ValueError: unknown tokenizer.
        RuntimeError: `ptb_java` was asked for and cannot run; the message says why.
    """
    if tokenizer == "auto":
        tokenizer = choose_tokenizer(java)
    if tokenizer == "ptb_java":
        return _tokenize_ptb_java(captions, java), tokenizer
    if tokenizer == "python":
        word: dict[str, str] = {}
        return [_tokenize_python(caption, word) for caption in captions], tokenizer
    raise ValueError(
        f"expected tokenizer auto, ptb_java or python, found {tokenizer!r}"
    )


def _tokenize_python(caption: str, word: dict[str, str]) -> list[str]:
    tokens = []
    text = caption.lower().replace("’", "'").replace("`", "'")
    for token in _TOKEN.findall(text):
        tokens += _REWRITTEN.get(token, [token])
    kept = (t for t in tokens if t not in PUNCTUATION and t not in _DROPPED)
    return [word.setdefault(t, t) for t in kept]


def _tokenize_ptb_java(captions: Sequence[str], java: str) -> list[list[str]]:
    jar = package_file(PTB_JAR)
    if jar is None or shutil.which(java) is None:
        raise RuntimeError(
            f"tokenizer ptb_java: expected {PTB_JAR} of pycocoevalcap and `{java}`, "
            f"found {'no' if jar is None else 'a'} jar and "
            f"{'no' if shutil.which(java) is None else 'a'} Java: {INSTALL}, "
            "or use tokenizer=python"
        )
    if not captions:
        return []
    # Through files, not pipes: neither side's text is in memory as a whole.
    with tempfile.TemporaryDirectory(prefix="slit_ptb_") as folder:
        source, result = Path(folder) / "captions.txt", Path(folder) / "tokens.txt"
        with open(source, "w", encoding="utf-8") as f:
            # One line each: whatever else counts as a line break becomes a blank.
            f.writelines(" ".join(caption.split()) + "\n" for caption in captions)
        command = [java, "-Dfile.encoding=UTF-8", "-cp", str(jar)]
        command += ["edu.stanford.nlp.process.PTBTokenizer"]
        command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8", str(source)]
        with open(result, "wb") as f:
            done = subprocess.run(command, stdout=f, stderr=subprocess.PIPE)
        # One str per word, not per occurrence: a tenth of the memory for 100,000
        # captions.
        word: dict[str, str] = {}
        with open(result, encoding="utf-8", newline="\n") as f:
            tokens = [
                [word.setdefault(w, w) for w in line.split() if w not in PUNCTUATION]
                for line in f
            ]
    if done.returncode != 0 or len(tokens) != len(captions):
        errors = done.stderr.decode("utf-8", "replace")[-500:]
        raise RuntimeError(
            f"tokenizer ptb_java: expected {len(captions)} lines, found {len(tokens)} "
            f"(exit {done.returncode}): {errors} Use tokenizer=python."
        )
    return tokens
