#!/usr/bin/env python3
"""Time and memory of scoring: captions, retrieval, bootstrap.

python bench/scoring.py --captions 100000 --peers true
"""

import argparse
import itertools
import json
import random
import resource
import time

import numpy as np

from espnet2_slit.metrics.bootstrap import Items, intervals, mean_items
from espnet2_slit.metrics.captioning import ngram_scores, rouge_l
from espnet2_slit.metrics.retrieval import audio_to_text, text_to_audio
from espnet2_slit.metrics.tokenization import choose_tokenizer, tokenize

REFERENCES = 5


def peak_mb():
    """Largest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(results, name, function):
    """Run a function; note seconds and the memory that it added to the peak."""
    before, start = peak_mb(), time.perf_counter()
    value = function()
    seconds = time.perf_counter() - start
    results[name] = {
        "seconds": round(seconds, 3),
        "peak_mb": round(peak_mb()),
        "added_mb": round(peak_mb() - before),
    }
    print(f"{name:<42}{seconds:>9.2f} s{peak_mb():>9.0f} MB peak", flush=True)
    return value


def make_captions(clips, words=6000, seed=0):
    """Captions of 6 to 16 words, Zipf-distributed like text."""
    generator = random.Random(seed)
    vocabulary = [f"word{i}" for i in range(words)]
    weights = list(itertools.accumulate(1 / (i + 10) for i in range(words)))

    def sentence():
        return " ".join(
            generator.choices(
                vocabulary, cum_weights=weights, k=generator.randint(6, 16)
            )
        )

    hypotheses = [sentence() for _ in range(clips)]
    references = []
    for hypothesis in hypotheses:
        half = " ".join(hypothesis.split()[: len(hypothesis.split()) // 2])
        references.append([f"{half} {sentence()}" for _ in range(REFERENCES)])
    return hypotheses, references


def bench_captions(results, clips, peers):
    """Tokenise, BLEU, CIDEr-D, ROUGE-L, intervals; then pycocoevalcap's on the same."""
    label = f"{clips:,} captions x {REFERENCES}"
    hypotheses, references = timed(
        results, f"{label}: make them", lambda: make_captions(clips)
    )
    flat = hypotheses + [r for refs in references for r in refs]
    for tokenizer in dict.fromkeys(("python", choose_tokenizer())):
        name = f"{label}: tokenize, {tokenizer}"
        tokens, _ = timed(results, name, lambda t=tokenizer: tokenize(flat, t))
    hyp, rest = tokens[:clips], iter(tokens[clips:])
    refs = [[next(rest) for _ in r] for r in references]
    found = timed(
        results, f"{label}: BLEU and CIDEr-D", lambda: ngram_scores(hyp, refs)
    )
    rouge = timed(results, f"{label}: ROUGE-L", lambda: rouge_l(hyp, refs))
    scores = [Items(f"bleu_{n}", found["bleu"]) for n in (1, 2, 3, 4)]
    scores += [mean_items(found["cider_d"]), mean_items(rouge)]
    timed(results, f"{label}: 1,000 resamples", lambda: intervals(scores))
    if peers:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge

        theirs_hyp = {i: [" ".join(t)] for i, t in enumerate(hyp)}
        theirs_ref = {i: [" ".join(t) for t in r] for i, r in enumerate(refs)}

        def both():
            bleu = Bleu(4).compute_score(theirs_ref, theirs_hyp, verbose=0)
            return bleu, Cider().compute_score(theirs_ref, theirs_hyp)

        name = f"{label}: pycocoevalcap BLEU and CIDEr-D"
        (bleu, _), (cider, _) = timed(results, name, both)
        name = f"{label}: pycocoevalcap ROUGE-L"
        theirs, _ = timed(
            results, name, lambda: Rouge().compute_score(theirs_ref, theirs_hyp)
        )
        values = [s.value for s in scores[3:]]
        gap = float(np.abs(np.subtract(values, [bleu[3], cider, theirs])).max())
        results[f"{label}: largest difference"] = gap
        print(f"largest difference of BLEU-4, CIDEr-D, ROUGE-L: {gap:.1e}")


def bench_retrieval(results, audios, texts):
    """Both directions of a similarity matrix, and their intervals."""
    owner = np.arange(texts) % audios
    generator = np.random.RandomState(0)
    similarity = generator.rand(texts, audios).astype(np.float32)
    similarity[np.arange(texts), owner] += 0.3
    label = f"{audios:,} audios x {texts:,} texts"
    for score in (text_to_audio, audio_to_text):
        name = f"{label}: {score.__name__}"
        result = timed(results, name, lambda f=score: f(similarity, owner))
        values = list(result.scores.values())
        timed(results, f"{name}, 1,000 resamples", lambda v=values: intervals(v))


def main():
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=100_000)
    parser.add_argument("--audios", type=int, default=1_000)
    parser.add_argument("--texts", type=int, default=5_000)
    parser.add_argument("--peers", choices=("true", "false"), default="false")
    parser.add_argument("--output", default="", help="Write the figures as JSON")
    args = parser.parse_args()
    results: dict = {}
    bench_retrieval(results, args.audios, args.texts)
    bench_captions(results, args.captions, args.peers == "true")
    if args.output:
        with open(args.output, "w", encoding="utf-8") as f:
            json.dump(results, f, indent=1)


if __name__ == "__main__":
    main()
