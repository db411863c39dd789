"""The forms in which two texts are compared, in any script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

# A minus, not a hyphen: before a number, after a blank or an opening sign.
_SIGN = re.compile(r"(?<![^\s(\[=<>~:])[-−](?=\d)")
_KEPT_SIGN = "\0"  # stands for it while signs are removed


def compose(text: str) -> str:
    """One spelling of equal letters: Unicode's NFC; é is one character, not e and ´."""
    return unicodedata.normalize("NFC", text)


def bare(text: str) -> str:
    """Lower case, punctuation and symbols to blanks, blanks collapsed, NFC.

    Letters of every script keep their marks and vowel signs, a number its minus.

    >>> bare("Five knocks -- twice!")
    'five knocks twice'
    >>> bare("-5, not 5")
    '-5 not 5'
    """
    text = compose(text).lower().replace(_KEPT_SIGN, " ")
    text = _SIGN.sub(_KEPT_SIGN, text)
    kept = (" " if unicodedata.category(c)[0] in "PS" else c for c in text)
    return compose(" ".join("".join(kept).replace(_KEPT_SIGN, "-").split()))


def normalize_caption(text: str) -> str:
    """What equal captions have in common: `bare`, or the text where that is empty."""
    return bare(text) or text.strip()


def named_labels(text: str, labels: Iterable[str]) -> set[str]:
    """Labels that stand in a text as whole words; the longest where they overlap.

    >>> named_labels("A crying baby.", ["baby", "crying baby", "rain"])
    {'crying baby'}
    """
    rest, found = _words(text), set()
    for label in sorted(labels, key=len, reverse=True):
        words = _words(label)
        if words in rest and words.strip():
            found.add(label)
            rest = rest.replace(words, "  ")
    return found


@lru_cache(maxsize=10_000)  # each label is looked for in each caption
def _words(text: str) -> str:
    return f" {bare(text)} "
