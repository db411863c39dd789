#!/usr/bin/env python3
"""Captions, candidate ranking and re-ranking per second, against plain loops.

A trained system decodes an evaluation set with cached features, so that all start from
the same frames. They take turns within one process; medians of the rounds are shown,
and their outputs must be equal (greedy and beam search have no chance in them).

    captions   SLIT at several batch sizes; SLIT clip by clip, as ESPnet's *_inference;
               transformers' InstructBlipQFormerModel with the same weights and
               `generate`, clip by clip, as its documentation shows
    ranking    labels scored from one encoding of audio and prompt; a loop that runs the
               language model on audio, prompt and label for each label
    reranking  keys and values projected once per clip; the projection repeated for each
               pair, as LAVIS' evaluation does

    python bench/decoding.py --model egs2/slit/slit1/exp/mini_instruction \
        --data_dir egs2/slit/slit1/dump/mini_beats/test_caption --output decoding.json
"""

import argparse
import contextlib
import tempfile

import numpy as np
import torch
from alternate import alternate, clock, machine, ratio, spread, write

from espnet2_slit.common import templates
from espnet2_slit.common.padded import Padded
from espnet2_slit.inference.evaluation_set import EvaluationSet
from espnet2_slit.inference.generation import generate, prefixes, score_candidates
from espnet2_slit.inference.ranking import top_indices, wanted_pairs
from espnet2_slit.inference.requests import generation_options
from espnet2_slit.inference.retrieval import embed_clips, match_pairs, retrieve
from espnet2_slit.inference.slit import SLIT
from espnet2_slit.model.qformer import sinusoids

PARTS = "captions", "ranking", "reranking"


def get_parser():
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="system with both parts")
    parser.add_argument("--data_dir", required=True, help="set with cached features")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--num_beams", type=int, default=5)
    parser.add_argument("--max_new_tokens", type=int, default=30)
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--rerank", type=int, default=32, help="candidates of a query")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--threads", type=int, help="of torch (default: its own choice)"
    )
    parser.add_argument("--output", help="JSON; a plot goes beside it")
    return parser


class Clips:
    """The first clips of a set, their frames held in memory.

    Args:
        clips: Features.
        count: how many.
    """

    are_frames = True

    def __init__(self, clips, count):
        count = min(count, len(clips))
        self.arrays = [clips.load(i) for i in range(count)]
        self.durations_s = clips.durations_s[:count]

    def __len__(self):
        return len(self.arrays)

    def load(self, i):
        """(T, D_a) float32."""
        return self.arrays[i]


@contextlib.contextmanager
def batch_size(slit, size):
    """The system with another batch size."""
    before, slit.batch_size = slit.batch_size, size
    try:
        yield
    finally:
        slit.batch_size = before


def report(content, title, times, count, unit, reference, key):
    """Print and note rates, and how many times faster than the reference."""
    print(f"\n{title}")
    rows = {}
    for name, taken in times.items():
        rate = spread([count / t[key] for t in taken])
        gain = ratio(times, reference, name, key)
        rows[name] = {f"{unit}_per_second": rate, "times_reference": gain}
        print(
            f"  {name:<34}{rate['median']:>10.1f} {unit}/s{gain['median']:>8.2f} x"
            f"   [{gain['lowest']:.2f}, {gain['highest']:.2f}]"
        )
    content[title] = {"reference": reference, "count": count, "contestants": rows}


# ------------------------------------------------------------------------- captions


def plain_transformers(slit, clips, options, folder):
    """Caption clip by clip with transformers' own classes and the same weights."""
    from transformers import InstructBlipQFormerModel

    from espnet2_slit.model.qformer_weights import export_to_transformers

    part = slit.generator
    ours = part.model.qformer
    export_to_transformers(ours, folder)
    qformer = InstructBlipQFormerModel.from_pretrained(folder).to(slit.device).eval()
    language_model = part.model.language_model
    network = language_model.frozen.module
    config = language_model._generation_config(options)
    prompt = part.prompt(templates.instruction("caption"))
    ids = {k: torch.from_numpy(v)[None].to(slit.device) for k, v in prompt.items()}
    queries = ours.query_tokens[None]
    head = torch.tensor([language_model.text.head], device=slit.device, dtype=int)

    def embed(tokens):
        return network.get_input_embeddings()(tokens)

    @torch.inference_mode()
    def run():
        texts = []
        for i in range(len(clips)):
            frames = torch.from_numpy(clips.load(i))[None].to(slit.device)
            normed = ours.frame_norm(frames)
            if ours.frame_position is not None:
                places = sinusoids(*frames.shape[1:], frames.device)
                normed = normed + ours.frame_position * places * ours.frame_norm.weight
            if ours.window_position is not None:
                window = torch.arange(frames.shape[1]) // ours.frames_per_window
                normed = normed + ours.window_position[window.to(slit.device)]
            reads = ids.get("qformer_instruction", head[:, :0])
            seen = torch.ones(1, queries.shape[1] + reads.shape[1], device=slit.device)
            output = qformer(
                input_ids=reads,
                attention_mask=seen,
                query_embeds=queries,
                encoder_hidden_states=normed,
                encoder_attention_mask=torch.ones(frames.shape[:2], device=slit.device),
            ).last_hidden_state[:, : queries.shape[1]]
            prefix = part.model.language_projection(output)
            embedded = torch.cat([embed(head), prefix, embed(ids["llm_prompt"])], dim=1)
            written = network.generate(
                inputs_embeds=embedded,
                attention_mask=torch.ones(
                    embedded.shape[:2], device=slit.device
                ).long(),
                generation_config=config,
            )
            text = language_model.tokenizer.decode(written[0], skip_special_tokens=True)
            texts.append(text.strip())
        return texts

    return run


def bench_captions(slit, clips, args, content):
    """Captions per second."""
    fields = {"num_beams": args.num_beams, "max_new_tokens": args.max_new_tokens}
    options = generation_options(fields)
    wording = templates.instruction("caption")

    def ours(size):
        def run():
            with batch_size(slit, size):
                requests = [(i, wording) for i in range(len(clips))]
                return generate(slit, clips, requests, options)

        return run

    contestants = {f"slit, batch {b}": ours(b) for b in args.batch_sizes}
    with tempfile.TemporaryDirectory() as folder:
        name = "transformers, clip by clip"
        contestants[name] = plain_transformers(slit, clips, options, folder)
        times, results = alternate(contestants, args.rounds, args.device)
    title = f"captions, {args.num_beams} beams, {args.max_new_tokens} tokens at most"
    report(content, title, times, len(clips), "captions", name, clock(args.device))
    expected = results[name]
    for other, texts in results.items():
        equal = sum(a == b for a, b in zip(texts, expected, strict=True))
        print(f"  {other}: {equal} of {len(expected)} captions equal to the reference")
        content[title]["contestants"][other]["equal"] = equal


# -------------------------------------------------------------------------- ranking


def bench_ranking(slit, clips, args, content):
    """Candidates per second."""
    words = ["low", "high", "loud", "soft", "short", "long", "rising", "falling"]
    things = ["tone", "bell", "dog", "rain", "engine", "whistle", "drum"]
    labels = [f"{a} {b}" for b in things for a in words][: args.labels]
    wording = templates.instruction("classification")
    requests = [(i, wording) for i in range(len(clips))]
    part = slit.generator

    def shared():
        return score_candidates(slit, clips, requests, labels)

    @torch.inference_mode()
    def plain():
        model = part.model.language_model
        scores = np.empty((len(clips), len(labels)), np.float32)
        for (i,), *inputs in one_by_one():
            for c, label in enumerate(labels):
                ids = torch.tensor([model.encode_target(label)], device=slit.device)
                scores[i, c] = -model.loss(*inputs, Padded(ids))[0].item()
        return scores

    def one_by_one():
        with batch_size(slit, 1):
            yield from prefixes(slit, part, clips, requests)

    name = "a forward pass for each label"
    contestants = {"slit, batch 16": shared, name: plain}
    times, results = alternate(contestants, args.rounds, args.device)
    title = f"ranking of {len(labels)} labels"
    count = len(clips) * len(labels)
    report(content, title, times, count, "candidates", name, clock(args.device))
    difference = float(np.abs(results["slit, batch 16"] - results[name]).max())
    content[title]["largest_difference"] = difference
    print(f"  largest difference of the log-likelihoods: {difference:.2g}")


# ------------------------------------------------------------------------ reranking


def bench_reranking(slit, clips, texts, args, content):
    """Pairs of text and clip per second."""
    audio = embed_clips(slit, clips)
    scores = retrieve(slit, clips, texts, 0, audio_embeddings=audio)["contrastive"]
    best = top_indices(scores, args.rerank)  # (M,k)
    wanted = wanted_pairs({"text_to_audio": best}, len(clips))
    part = slit.representation
    model = part.model

    def shared():
        logits = match_pairs(slit, clips, texts, wanted)
        table = np.full(scores.shape, np.nan, np.float32)
        for clip, (rows, values) in enumerate(zip(wanted, logits, strict=True)):
            table[rows, clip] = values
        return np.take_along_axis(table, best, axis=1)

    @torch.inference_mode()
    def plain():
        found = []
        for text, row in zip(texts, best, strict=True):
            arrays = [clips.load(i) for i in row]
            lengths = torch.tensor([len(array) for array in arrays])
            frames = torch.nn.utils.rnn.pad_sequence(
                [torch.from_numpy(array) for array in arrays], batch_first=True
            )
            frames, lengths = frames.to(slit.device), lengths.to(slit.device)
            ids = torch.from_numpy(part.text_ids(text))[None].to(slit.device)
            every = torch.arange(len(row), device=slit.device)
            memory = model.qformer.encode_frames(Padded(frames, lengths))
            same = Padded(ids, torch.full((1,), ids.size(1), device=slit.device))
            logits = model.match(memory, same, every, torch.zeros_like(every))
            found.append(logits.cpu().numpy())
        return np.stack(found)

    name = "keys and values anew for each pair"
    times, results = alternate({"slit": shared, name: plain}, args.rounds, args.device)
    title = f"re-ranking, {len(texts)} texts x {best.shape[1]} of {len(clips)} clips"
    report(content, title, times, best.size, "pairs", name, clock(args.device))
    difference = float(np.abs(results["slit"] - results[name]).max())
    content[title]["largest_difference"] = difference
    print(f"  largest difference of the logits: {difference:.2g}")


def main():
    """Run all, print, write JSON."""
    args = get_parser().parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    slit = SLIT.from_pretrained(args.model, device=args.device)
    data = EvaluationSet(args.data_dir, slit, "features")
    clips = Clips(data.clips, args.clips)
    kept = set(data.clip_ids[: len(clips)])
    texts = list(dict.fromkeys(text for clip, text in data.texts() if clip in kept))
    content = {
        "machine": machine(args.device),
        "model": slit.describe(),
        "clips": len(clips),
        "seconds_of_audio": sum(clips.durations_s),
    }
    print(f"{len(clips)} clips, {content['seconds_of_audio']:.0f} s of audio")
    if "captions" in args.only:
        bench_captions(slit, clips, args, content)
    if "ranking" in args.only:
        bench_ranking(slit, clips, args, content)
    if "reranking" in args.only:
        bench_reranking(slit, clips, texts, args, content)
    if args.output:
        bars = {
            f"{title.split(',')[0]}: {name}": row["times_reference"]
            for title, part in content.items()
            if isinstance(part, dict) and "contestants" in part
            for name, row in part["contestants"].items()
        }
        write(content, args.output, bars, f"rate, as multiple ({clock(args.device)})")


if __name__ == "__main__":
    main()
