"""Caption tokenisation for the caption metrics: COCO's Java tokenizer or plain Python.

The COCO caption metrics are defined on lower-cased Penn Treebank tokens with
punctuation removed, as made by Stanford CoreNLP 3.4.1. Without Java, `python` splits by
one regular expression; scores name which of the two was used. Both read NFC.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from espnet2_slit.common.texts import compose

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
# and commas, hyphenated words stay whole. Beyond English a word is a run of letters and
# marks; an ideograph or kana, written without blanks, is one by itself.
_LETTER = r"[\w\u0080-\U0010ffff]"
_IDEOGRAPH = r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_ABBREVIATIONS = r"(?:mr|mrs|ms|dr|st|vs|etc|jr|sr|prof|inc|ltd|co|corp|no)\.(?=\s+\S)"
_TOKEN = re.compile(
    rf"""
    \b{_ABBREVIATIONS}
    | (?:[a-z]\.){{2,}}                      # a.m.  u.s.
    | [a-z]+(?=n't\b)                        # do|n't
    | n't\b
    | '(?:s|re|ve|ll|d|m)\b
    | (?<!\S)-\d+ (?![-\w.,:/])              # -5
    | (?:(?<!\S)-)? \d+(?:[.,:/]\d+)+ (?![\w]) # 3.5  1,000  10:30  1/2  -0.5
    | {_IDEOGRAPH}
    | (?:(?!{_IDEOGRAPH}){_LETTER})+ (?:[-/](?:(?!{_IDEOGRAPH}){_LETTER})+)*
    | [^\w\s]
    """,
    re.VERBOSE,
)
# The Treebank tokenizer rewrites these into others, and '"' into one that COCO drops.
_ONE_SIGN = str.maketrans("’`−", "''-")
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
    text = compose(caption).lower().translate(_ONE_SIGN)
    # The pattern takes for letters what is not ASCII.
    text = "".join(c if c.isascii() else _apart(c) for c in text)
    for token in _TOKEN.findall(text):
        tokens += _REWRITTEN.get(token, [token])
    kept = (t for t in tokens if t not in PUNCTUATION and t != '"')
    return [word.setdefault(t, t) for t in kept]


def _apart(character: str) -> str:
    """A letter or mark as it is, punctuation as a blank, another sign by itself."""
    kind = unicodedata.category(character)[0]
    return {"P": " ", "Z": " ", "S": f" {character} "}.get(kind, character)


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
            f.writelines(" ".join(compose(c).split()) + "\n" for c in captions)
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
