"""Caption metrics over one set: BLEU, ROUGE-L, METEOR, CIDEr-D, SPICE, SPIDEr, FENSE.

BLEU, ROUGE-L and CIDEr-D are computed here, on arrays of n-gram numbers; METEOR and
SPICE run their Java programs, FENSE its models. What cannot run on the machine comes
back as `NotComputed`, never as 0.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from espnet2_slit.scoring.metrics.bootstrap import (
    Items,
    NotComputed,
    Score,
    mean_items,
    meteor_items,
)
from espnet2_slit.scoring.metrics.fluency import FluencyModels
from espnet2_slit.scoring.metrics.java_scorers import MeteorScorer, spice_scores
from espnet2_slit.scoring.metrics.tokenization import tokenize

MAX_ORDER = 4
CIDER_SIGMA = 6.0
ROUGE_BETA = 1.2
SPIDER_FL_PENALTY = 0.9
# Scores by models and word lists of English, beside METEOR.
ENGLISH_ONLY = ("spice", "spider", "spider_fl", "fense", "fluency_error_rate")
Tokens = Sequence[str]
MAX_NUMBER = np.iinfo(np.int64).max


@dataclass
class CaptionOptions:
    """How the caption metrics are computed.

    Attributes:
        tokenizer: `auto`, `ptb_java` or `python`.
        java: the Java executable.
        meteor: compute METEOR, 7 s to start and 2.4 s per 1,000 captions.
        spice: compute SPICE where its files are there.
        spice_jar: path of spice-1.0.jar; "": the one of pycocoevalcap.
        sbert_model: folder of the sentence encoder of FENSE; "": no FENSE.
        fluency_model: checkpoint of FENSE's fluency error detector.
        fluency_base: folder or hub name of the detector's BERT; "": the name that the
            checkpoint gives.
        device: for FENSE's models.
    """

    tokenizer: str = "auto"
    java: str = "java"
    meteor: bool = True
    spice: bool = True
    spice_jar: str = ""
    sbert_model: str = ""
    fluency_model: str = ""
    fluency_base: str = ""
    device: str = "cpu"
    _meteor: MeteorScorer | None = field(default=None, repr=False)
    _fluency: FluencyModels | None = field(default=None, repr=False)

    def meteor_scorer(self) -> MeteorScorer:
        """The one METEOR process, started at its first use and kept for later sets."""
        if self._meteor is None:
            self._meteor = MeteorScorer(self.java)
        return self._meteor

    def fluency_models(self) -> FluencyModels:
        """FENSE's two models, loaded at their first use."""
        if self._fluency is None:
            self._fluency = FluencyModels(
                self.sbert_model, self.fluency_model, self.fluency_base, self.device
            )
        return self._fluency

    def quick(self) -> CaptionOptions:
        """A copy without SPICE and FENSE that shares this one's METEOR process."""
        if self.meteor and not MeteorScorer.needs(self.java):
            self.meteor_scorer()
        return replace(self, spice=False, sbert_model="", fluency_model="")

    def close(self) -> None:
        """End the METEOR process, if one was started."""
        if self._meteor is not None:
            self._meteor.close()
            self._meteor = None


@dataclass(frozen=True)
class CaptionScores:
    """Scores of one set of captions.

    Attributes:
        scores: metric name -> Items or NotComputed; `vocabulary_size` is an int.
        tokenizer: name of the tokenizer used.
        empty: number of hypotheses without a token.
    """

    scores: dict[str, Score]
    tokenizer: str
    empty: int


@dataclass(frozen=True)
class NgramCounts:
    """The n-gram `gram[k]` is `count[k]` times in `sentence[k]`.

    Attributes:
        sentence: (K,) int, ascending.
        gram: (K,) int below `num_grams`, ascending within a sentence.
        count: (K,) int.
        num_grams: different n-grams, at least 1.
    """

    sentence: np.ndarray
    gram: np.ndarray
    count: np.ndarray
    num_grams: int


class NgramTable:
    """n-grams of many sentences as numbers, counted per sentence.

    Args:
        sentences: lists of tokens; token numbers are shared by all of them.

    Attributes:
        lengths: (S,) tokens of each sentence.
    """

    def __init__(self, sentences: Sequence[Tokens]) -> None:
        vocabulary: dict[str, int] = {}
        number = vocabulary.setdefault
        self.lengths = np.array([len(s) for s in sentences], dtype=np.int64)
        self._tokens = np.fromiter(
            (number(word, len(vocabulary)) for s in sentences for word in s),
            dtype=np.int32,
            count=int(self.lengths.sum()),
        )
        self._sentence = np.repeat(np.arange(len(sentences)), self.lengths)
        self._num_words = max(1, len(vocabulary))

    def count(self, n: int) -> NgramCounts:
        """Counts of the n-grams of n tokens."""
        places = max(0, len(self._tokens) - n + 1)
        # An n-gram ends in the sentence in which it begins.
        start = np.flatnonzero(
            self._sentence[:places] == self._sentence[n - 1 : n - 1 + places]
        )
        grams, bound = self._tokens[start].astype(np.int64), self._num_words
        for i in range(1, n):
            if bound > MAX_NUMBER // self._num_words:  # renumbered where 63 bits end
                grams, bound = _renumbered(grams)
            grams = grams * self._num_words + self._tokens[start + i]
            bound *= self._num_words
        grams, num_grams = _renumbered(grams)
        keys, counts = np.unique(
            self._sentence[start] * num_grams + grams, return_counts=True
        )
        return NgramCounts(keys // num_grams, keys % num_grams, counts, num_grams)


def _renumbered(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers without gaps in their place, and how many there are (at least 1)."""
    unique, numbers = np.unique(values, return_inverse=True)
    return numbers, max(1, len(unique))


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[where keys == wanted], 0 where there is none; keys ascending."""
    if len(keys) == 0:
        return np.zeros(len(wanted), dtype=values.dtype)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def _check(hypotheses: Sequence[Any], references: Sequence[Sequence[Any]]) -> None:
    if len(hypotheses) != len(references):
        raise ValueError(
            f"expected as many hypotheses as clips with references, found "
            f"{len(hypotheses)} and {len(references)}"
        )
    without = [i for i, r in enumerate(references) if not r]
    if without:
        raise ValueError(
            f"expected at least one reference a clip, found none for {len(without)} "
            f"clips, first at position {without[0]}"
        )


def ngram_scores(
    hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> dict[str, np.ndarray]:
    """BLEU-1..4 and CIDEr-D of tokenised captions.

    Args:
        hypotheses: N token lists.
        references: N lists of token lists, at least one each.

    Returns:
        {"bleu": (N, 10) statistics (columns as the aggregate `bleu_n` wants them),
        "cider_d": (N,) scores}. CIDEr-D takes its document frequencies from these
        references, so scores of different sets, or of subsets, do not compare.

    Raises:
        ValueError: numbers differ, or a clip has no reference.

    Source: Papineni 2002 and Vedantam 2015 as computed by pycocoevalcap 1.2
        (closest reference length; clipped and length-penalised CIDEr with n = 4,
        sigma = 6). Differs: array operations.
    """
    _check(hypotheses, references)
    clips = len(hypotheses)
    references_of = np.array([len(r) for r in references])
    clip_of = np.repeat(np.arange(clips), references_of)  # of each reference
    sentences = list(hypotheses) + [r for refs in references for r in refs]
    table = NgramTable(sentences)
    length, reference_length = table.lengths[:clips], table.lengths[clips:]

    # Closest length; of two equally close the shorter, as the COCO scorer.
    gap = np.abs(reference_length - length[clip_of]) * 2 + (
        reference_length > length[clip_of]
    )
    order = np.lexsort((gap, clip_of))
    first = np.searchsorted(clip_of[order], np.arange(clips))
    bleu = np.zeros((clips, 10))
    bleu[:, 8], bleu[:, 9] = length, reference_length[order[first]]

    # The length of CIDEr-D's penalty is the number of bigrams, as in its code.
    bigrams = np.maximum(table.lengths - 1, 0)
    delta = (bigrams[:clips][clip_of] - bigrams[clips:]).astype(np.float64)
    penalty = np.exp(-(delta**2) / (2 * CIDER_SIGMA**2))
    cider = np.zeros(len(clip_of))  # summed over n, one per reference
    for n in range(MAX_ORDER):
        bleu[:, 4 + n] = np.maximum(length - n, 0)
        sums = _order_sums(table.count(n + 1), clip_of, clips)
        bleu[:, n] = sums["matched"]
        product = sums["product"].astype(np.float64)  # counts where there is nothing
        norm = np.sqrt(sums["ref_square"])
        norm *= np.sqrt(sums["hyp_square"])[clip_of]
        cider += penalty * np.divide(product, norm, where=norm != 0, out=product)
    per_clip = np.bincount(clip_of, weights=cider, minlength=clips)
    return {"bleu": bleu, "cider_d": 10 * per_clip / MAX_ORDER / references_of}


def _order_sums(
    found: NgramCounts, clip_of: np.ndarray, clips: int
) -> dict[str, np.ndarray]:
    """What the n-grams of one order give to BLEU and to CIDEr-D.

    Args:
        found: the hypotheses are sentences 0..clips-1, then come the references.
        clip_of: (R,) clip of each reference.
        clips: N.

    Returns:
        {"matched": (N,) clipped counts, "hyp_square": (N,) and "ref_square": (R,)
        squared lengths of the TF-IDF vectors, "product": (R,) of the clipped ones}.
    """
    sentence, gram, count = found.sentence, found.gram, found.count
    num_grams = found.num_grams
    is_hypothesis = sentence < clips
    hyp_clip, hyp_gram = sentence[is_hypothesis], gram[is_hypothesis]
    hyp_count = count[is_hypothesis]
    hyp_key = hyp_clip * num_grams + hyp_gram  # ascending
    ref = sentence[~is_hypothesis] - clips
    ref_gram, ref_count = gram[~is_hypothesis], count[~is_hypothesis]
    ref_key = clip_of[ref] * num_grams + ref_gram

    # In how many clips does an n-gram occur, and its largest count in one.
    # Sorting key and count as one number puts the largest count last.
    base = int(ref_count.max(initial=0)) + 1
    ordered = np.sort(ref_key * base + ref_count)
    is_last = np.ones(len(ordered), dtype=bool)
    is_last[:-1] = ordered[1:] // base != ordered[:-1] // base
    unique_key, most = np.divmod(ordered[is_last], base)
    document_frequency = np.bincount(unique_key % num_grams, minlength=num_grams)
    idf = np.log(max(clips, 1)) - np.log(np.maximum(document_frequency, 1))

    matched = np.minimum(hyp_count, _lookup(unique_key, most, hyp_key))
    hyp_weight, ref_weight = hyp_count * idf[hyp_gram], ref_count * idf[ref_gram]
    both = np.minimum(_lookup(hyp_key, hyp_weight, ref_key), ref_weight)
    return {
        "matched": np.bincount(hyp_clip, matched, clips),
        "hyp_square": np.bincount(hyp_clip, hyp_weight**2, clips),
        "ref_square": np.bincount(ref, ref_weight**2, len(clip_of)),
        "product": np.bincount(ref, both * ref_weight, len(clip_of)),
    }


def longest_common_subsequence(first: Tokens, second: Tokens) -> int:
    """Length of the longest common subsequence of two token lists.

    Bit-parallel (Hyyro 2004): one integer holds a row of the table.
    """
    masks: dict[str, int] = {}
    for i, word in enumerate(first):
        masks[word] = masks.get(word, 0) | (1 << i)
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        common = row & masks.get(word, 0)
        row = ((row + common) | (row - common)) & full
    return len(first) - row.bit_count()


def rouge_l(
    hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> np.ndarray:
    """ROUGE-L as COCO computes it: best precision and best recall, beta 1.2.

    Args:
        hypotheses: N token lists.
        references: N lists of token lists.

    Returns:
        (N,) scores. Precision and recall may come from different references.
    """
    _check(hypotheses, references)
    scores = np.zeros(len(hypotheses))
    for i, (hypothesis, refs) in enumerate(zip(hypotheses, references, strict=True)):
        common = [longest_common_subsequence(hypothesis, r) for r in refs]
        precision = max(common) / max(1, len(hypothesis))
        recall = max(c / max(1, len(r)) for c, r in zip(common, refs, strict=True))
        if precision and recall:
            squared = ROUGE_BETA**2
            scores[i] = (1 + squared) * precision * recall
            scores[i] /= recall + squared * precision
    return scores


def score_captions(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    options: CaptionOptions | None = None,
    language: str = "en",
) -> CaptionScores:
    """Every caption metric of one set.

    Args:
        hypotheses: N captions as the system wrote them.
        references: N lists of captions.
        options: CaptionOptions; keep one object for several sets, so that METEOR's
            process and FENSE's models start once, and `close()` it at the end.
        language: of the captions; METEOR, SPICE and FENSE know English alone.

    Returns:
        CaptionScores: bleu_1..4, rouge_l, meteor, cider_d, spice, spider, spider_fl,
        fense, fluency_error_rate, vocabulary_size.

    Raises:
        ValueError: numbers differ, a clip has no reference, or every hypothesis is
            empty.
    """
    options = options or CaptionOptions()
    _check(hypotheses, references)
    english = language == "en"
    flat = [r for refs in references for r in refs]
    tokens, tokenizer = tokenize(
        list(hypotheses) + flat, options.tokenizer, options.java
    )
    clips = len(hypotheses)
    hyp_tokens = tokens[:clips]
    iterator = iter(tokens[clips:])
    ref_tokens = [[next(iterator) for _ in refs] for refs in references]
    empty = sum(not t for t in hyp_tokens)
    if clips and empty == clips:
        raise ValueError(
            f"expected captions, found {clips} of {clips} hypotheses empty after "
            f"tokenising (first: {hypotheses[0]!r}): decode again"
        )
    if empty:
        logging.warning("%d of %d hypotheses are empty: they score 0", empty, clips)

    grams = ngram_scores(hyp_tokens, ref_tokens)
    scores: dict[str, Score] = {
        f"bleu_{n}": Items(f"bleu_{n}", grams["bleu"]) for n in range(1, 5)
    }
    scores["rouge_l"] = mean_items(rouge_l(hyp_tokens, ref_tokens))
    hyp_text = [" ".join(t) for t in hyp_tokens]
    ref_text = [[" ".join(t) for t in refs] for refs in ref_tokens]
    needs_english = NotComputed(f"English captions (these are in {language!r})")
    scores["meteor"] = (
        _meteor(hyp_text, ref_text, options) if english else needs_english
    )
    scores["cider_d"] = (
        mean_items(grams["cider_d"])
        if clips > 1
        else NotComputed("two or more clips (document frequencies come from the set)")
    )
    spice = (
        spice_scores(hyp_text, ref_text, options.spice_jar, options.java)
        if options.spice and english
        else NotComputed("SPICE switched on (remove --skip_spice true)")
    )
    if english:
        scores |= _spice_family(spice, scores["cider_d"], grams["cider_d"])
        scores |= _fense_family(hypotheses, references, scores["spider"], options)
    else:
        scores |= dict.fromkeys(ENGLISH_ONLY, needs_english)
    scores["vocabulary_size"] = len({word for t in hyp_tokens for word in t})
    return CaptionScores(scores, tokenizer, empty)


def _meteor(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    options: CaptionOptions,
) -> Score:
    if not options.meteor:
        return NotComputed("METEOR switched on (remove --skip_meteor true)")
    needs = MeteorScorer.needs(options.java)
    if needs:
        return NotComputed(needs)
    return meteor_items(options.meteor_scorer().stats(hypotheses, references))


def _spice_family(
    spice: np.ndarray | NotComputed, cider_score: Score, cider_d: np.ndarray
) -> dict[str, Score]:
    if isinstance(spice, NotComputed):
        return {"spice": spice, "spider": NotComputed(f"SPICE: {spice.needs}")}
    if isinstance(cider_score, NotComputed):
        return {"spice": mean_items(spice), "spider": cider_score}
    return {"spice": mean_items(spice), "spider": mean_items((cider_d + spice) / 2)}


def _fense_family(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    spider: Score,
    options: CaptionOptions,
) -> dict[str, Score]:
    names = ("fense", "fluency_error_rate", "spider_fl")
    needs = FluencyModels.needs(options.sbert_model, options.fluency_model)
    models = None if needs["fluency_error_rate"] else options.fluency_models()
    scores: dict[str, Score] = {
        name: NotComputed(needs[name]) for name in names if needs[name]
    }
    if needs["spider_fl"] and isinstance(spider, NotComputed):
        both = f"{needs['spider_fl']}; {spider.needs}"
        scores["spider_fl"] = NotComputed(both)
    if models is None:
        return scores
    errors = models.fluency_errors(hypotheses)
    scores["fluency_error_rate"] = mean_items(errors)
    if not needs["fense"]:
        similarity = models.similarity(hypotheses, references)
        scores["fense"] = mean_items(similarity * (1 - SPIDER_FL_PENALTY * errors))
    if isinstance(spider, Items):
        fluent = 1 - SPIDER_FL_PENALTY * errors
        scores["spider_fl"] = mean_items(spider.stats[:, 0] * fluent)
    else:
        scores["spider_fl"] = spider
    return scores
