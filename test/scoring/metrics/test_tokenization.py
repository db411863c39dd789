import shutil

import pytest
from caption_case import hypotheses, references

from espnet2_slit.scoring.metrics import tokenization
from espnet2_slit.scoring.metrics.tokenization import PTB_JAR, package_file, tokenize

needs_java = pytest.mark.skipif(
    shutil.which("java") is None or package_file(PTB_JAR) is None,
    reason="needs Java and pycocoevalcap",
)
# Java's tokens and ours differ here, by design of the simpler one.
DIFFERENT = "Mr. Smith"


def test_python_tokenizer_lower_cases_and_drops_punctuation():
    captions = ["A dog, barking LOUDLY! Don't... a high-pitched 3.5 kHz tone.", ""]
    tokens, name = tokenize(captions, "python")
    assert name == "python"
    assert tokens[0] == (
        "a dog barking loudly do n't a high-pitched 3.5 khz tone".split()
    )
    assert tokens[1] == []


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("कुत्ता भौंक रहा है।", "कुत्ता भौंक रहा है"),
        ("Ein Müller läßt “ÄÖÜ” los – laut", "ein müller läßt äöü los laut"),
        ("يَنبح الكلب، بصوت عالٍ", "يَنبح الكلب بصوت عالٍ"),
        ("狗在叫，很大声。", "狗 在 叫 很 大 声"),
        ("from -5 to −0.5, pre-5", "from -5 to -0.5 pre-5"),
    ],
)
def test_python_tokenizer_splits_every_script_by_words(caption, words):
    assert tokenize([caption], "python")[0] == [words.split()]


def test_two_spellings_of_a_letter_are_one_token():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for tokenizer in ("python", "auto"):
        found = tokenize([composed, decomposed], tokenizer)[0]
        assert found[0] == found[1] == [composed]


@needs_java
def test_java_tokenizer_matches_coco(tmp_path):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = hypotheses + [r for refs in references for r in refs]
    captions = [c for c in captions if c]  # COCO's own loses an empty line at the end
    tokens, name = tokenize(captions, "ptb_java")
    theirs = PTBTokenizer().tokenize({0: [{"caption": c} for c in captions]})[0]
    assert name == "ptb_java"
    assert [" ".join(t) for t in tokens] == theirs


@needs_java
def test_python_tokenizer_agrees_with_java_on_ordinary_captions():
    captions = [r for refs in references for r in refs if DIFFERENT not in r]
    assert tokenize(captions, "python")[0] == tokenize(captions, "ptb_java")[0]


@needs_java
def test_line_breaks_inside_a_caption_do_not_shift_the_others():
    captions = ["a dog\nbarks", "", "rain\u2028falls\r\n", "a \x0b bell", "", ""]
    tokens, _ = tokenize(captions, "ptb_java")
    assert tokens == [
        ["a", "dog", "barks"],
        [],
        ["rain", "falls"],
        ["a", "bell"],
        [],
        [],
    ]


def test_without_java_auto_falls_back_and_ptb_java_says_what_to_install():
    assert tokenize(["a dog"], "auto", java="no-such-java") == (
        [["a", "dog"]],
        "python",
    )
    with pytest.raises(RuntimeError, match="no Java.*tokenizer=python"):
        tokenize(["a dog"], "ptb_java", java="no-such-java")


def test_unknown_tokenizer_is_named():
    with pytest.raises(ValueError, match="ptb_java or python, found 'spacy'"):
        tokenize(["a"], "spacy")


def test_no_package_no_jar(monkeypatch):
    monkeypatch.setattr(tokenization.importlib.util, "find_spec", lambda name: None)
    assert package_file(PTB_JAR) is None
