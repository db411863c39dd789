#!/usr/bin/env python3
"""Time and memory of scoring: captions, retrieval, bootstrap.

    python bench/scoring.py --captions 100000
    python bench/scoring.py --captions 20000 --peers true --output scoring.json

With --peers, our caption metrics take turns with pycocoevalcap's on the same tokens.
"""

import argparse
import itertools
import random
import resource
import time

import numpy as np

from espnet2_slit.scoring.metrics.bootstrap import Items, intervals, mean_items
from espnet2_slit.scoring.metrics.captioning import ngram_scores, rouge_l
from espnet2_slit.scoring.metrics.retrieval import audio_to_text, text_to_audio
from espnet2_slit.scoring.metrics.tokenization import choose_tokenizer, tokenize

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


def bench_captions(results, clips):
    """Tokenise, BLEU, CIDEr-D, ROUGE-L, intervals. Returns the tokens."""
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
    return hyp, refs


def bench_peers(results, hyp, refs, rounds):
    """Our metrics against pycocoevalcap's: values must agree; CPU seconds of each.

    Returns:
        {name: spread} of what each took.
    """
    from alternate import alternate, ratio, spread
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    hyp_text = {i: [" ".join(t)] for i, t in enumerate(hyp)}
    ref_text = {i: [" ".join(t) for t in r] for i, r in enumerate(refs)}

    def their_ngrams():
        bleu = Bleu(4).compute_score(ref_text, hyp_text, verbose=0)[0][3]
        return bleu, Cider().compute_score(ref_text, hyp_text)[0]

    racers = {
        "slit: BLEU and CIDEr-D": lambda: ngram_scores(hyp, refs),
        "pycocoevalcap: BLEU and CIDEr-D": their_ngrams,
        "slit: ROUGE-L": lambda: rouge_l(hyp, refs),
        "pycocoevalcap: ROUGE-L": lambda: Rouge().compute_score(ref_text, hyp_text)[0],
    }
    times, found = alternate(racers, rounds)
    names = list(racers)
    bleu = Items("bleu_4", found[names[0]]["bleu"]).value
    ours = (bleu, found[names[0]]["cider_d"].mean(), found[names[2]].mean())
    theirs = (*found[names[1]], found[names[3]])
    gap = float(np.abs(np.subtract(ours, theirs)).max())
    ratios = {
        f"{ours}/{theirs}": ratio(times, ours, theirs)
        for ours, theirs in (names[:2], names[2:])
    }
    results |= {"times": times, "time_ratios": ratios, "largest_difference": gap}
    for name, value in ratios.items():
        print(name, {k: round(v, 3) for k, v in value.items()})
    print(f"largest difference of BLEU-4, CIDEr-D, ROUGE-L: {gap:.1e}")
    return {name: spread([t["cpu_s"] for t in times[name]]) for name in names}


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
    parser.add_argument("--rounds", type=int, default=3, help="against the peers")
    parser.add_argument(
        "--output",
        default="",
        help="Write the figures as JSON; with --peers, plot them",
    )
    args = parser.parse_args()
    results: dict = {}
    bench_retrieval(results, args.audios, args.texts)
    hyp, refs = bench_captions(results, args.captions)
    bars = bench_peers(results, hyp, refs, args.rounds) if args.peers == "true" else {}
    if args.output:  # imported this late, as torch would count in the memory above
        from alternate import machine, write

        results["machine"] = machine()
        write(results, args.output, bars, f"CPU s for {args.captions:,} captions")


if __name__ == "__main__":
    main()
