#!/usr/bin/env python3
"""Train the mini recipe's frozen language model and both tokenizers, from text alone.

Owns a SentencePiece tokenizer, a small T5 and the Q-Former's WordPiece tokenizer.
The text is that of scenes nobody renders, of all classes: the words of classes that
are in no training audio are known from here, as a large language model knows words
that no audio corpus has. With --data-dir it is sentences about the labels found there
instead, for a corpus of recordings whose words ("chainsaw") no scene has. The T5
learns to restore masked captions, to say a description in other words, and to answer
from a description; the description stands where the queries will stand, so that
queries have something to be understood as.
"""

import collections
import functools
import json
import os
import random
import re
import shutil
import tempfile
from pathlib import Path

import sentencepiece
import torch
from mini.languages import ENGLISH, LANGUAGES
from mini.scenes import SEEN_CLASSES, UNSEEN_CLASSES, plan_scene
from mini.sentences import any_instruction, caption, questions
from mini.training import LOGGER, fit, is_there, make_parser, prepare
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch.nn.utils.rnn import pad_sequence

from espnet2_slit.common.files import write_json
from espnet2_slit.common.names import SAMPLE_TASKS
from espnet2_slit.common.precision import choose_precision
from espnet2_slit.common.templates import wordings
from espnet2_slit.data.corpora.instruction import LABEL_CAPTION, PRESENCE
from espnet2_slit.data.kaldi_dir import read_map

VERSION = 2
# T5's embeddings start at 1, its matrices at 0.1 and less. At one rate the model
# answers as well, but queries seem to learn its language worse (validation loss of
# stage 2: 0.945, else 0.892 and 0.917; runs whose stage 1 or texts differ, too).
EMBEDDING_RATE = 20
SETTINGS = dict(seed=1, pairs=45000, batch_size=32, learning_rate=1e-3, vocab_size=400)
ALL_CLASSES = SEEN_CLASSES + UNSEEN_CLASSES
# Every printable ASCII character has a piece, so that no word is unknown.
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()-/&+%"
MASK = "<mask>"
MODEL = {
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 320,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 64,
    "feed_forward_proj": "gated-gelu_pytorch_tanh",  # gated-gelu in one pass
    "dropout_rate": 0.0,
    "tie_word_embeddings": True,
}


# --------------------------------------------------------------------------------- text


def training_text(seed, number, labels=(), language=ENGLISH):
    """(source, target) pairs; the source is description + instruction.

    With `labels` one of them is told of instead of a scene, in English.

    Returns:
        list of `number` times (description, instruction or "", target, task).
    """
    if labels:
        return _label_text(random.Random(f"labels-{VERSION}-{seed}"), number, labels)
    rng = random.Random(f"language-model-{VERSION}-{seed}")
    pairs = []
    for _ in range(number):
        scene = plan_scene(rng, "text", ALL_CLASSES)
        told = caption(rng, scene, True, language)
        draw = rng.random()
        if draw < 0.15:
            pairs.append((told, "", told, "restore"))
        elif draw < 0.5:
            wording = ""
            if rng.random() < 0.8:
                wording = any_instruction(rng, "caption", language=language)
            text = caption(rng, scene, language=language)
            pairs.append((told, wording, text, "caption"))
        elif draw < 0.6 and scene.relation == "single":
            wording = any_instruction(rng, "classification", language=language)
            label = language.label(scene.events[0].manner, scene.events[0].source)
            pairs.append((told, wording, label, "classification"))
        else:
            asked = questions(rng, scene, False, ALL_CLASSES, language)
            kinds = sorted({kind for kind, _, _ in asked})
            kind = rng.choice(kinds)
            _, question, answer = rng.choice([q for q in asked if q[0] == kind])
            wording = any_instruction(rng, "question_answering", question, language)
            pairs.append((told, wording, answer, "question_answering"))
    return pairs


def _label_text(rng, number, labels):
    """training_text of labels: the tasks that the corpora's instruction sets have."""
    pairs = []
    for _ in range(number):
        label = rng.choice(labels)
        told = LABEL_CAPTION.replace("{label}", label)
        draw = rng.random()
        if draw < 0.1:
            pairs.append((told, "", told, "restore"))
        elif draw < 0.35:
            wording = any_instruction(rng, "caption") if rng.random() < 0.5 else ""
            pairs.append((told, wording, told, "caption"))
        elif draw < 0.7:
            wording = any_instruction(rng, "classification")
            pairs.append((told, wording, label, "classification"))
        else:
            right = rng.random() < 0.5
            others = [other for other in labels if other != label]
            asked = label if right or not others else rng.choice(others)
            question = rng.choice(PRESENCE).replace("{label}", asked)
            wording = any_instruction(rng, "question_answering", question)
            answer = "yes" if asked == label else "no"
            pairs.append((told, wording, answer, "question_answering"))
    return pairs


def read_labels(directories: list[Path]) -> list[str]:
    """Labels of the samples to classify in data directories, sorted, each once.

    Raises:
        ValueError: there is none.
    """
    labels = set()
    for directory in directories:
        tasks = read_map(directory / "utt2task")
        text = read_map(directory / "text")
        labels |= {text[key] for key in text if tasks[key] == "classification"}
    if not labels:
        raise ValueError(
            f"{', '.join(map(str, directories))}: expected samples with a label "
            "(utt2task classification), found none"
        )
    return sorted(labels)


def tokenizer_text(pairs, language=ENGLISH):
    """Lines the tokenizers are trained on, by the pairs of training_text."""
    lines = [text for pair in pairs for text in pair[:3] if text]
    for task in SAMPLE_TASKS:
        known = wordings(language.code)[task]
        lines += [wording.replace("{question}", "") for wording in known]
    for known in language.questions.values():
        lines += [wording.format(**language.example) for wording in known]
    lines += language.answers.values()
    return lines


# --------------------------------------------------------------------------- tokenizers


def train_sentencepiece(lines, folder, vocab_size, letters=""):
    """Train and save the language model's tokenizer; it folds case.

    Args:
        lines: list of str.
        folder: Path that gets spiece.model.
        vocab_size: most pieces.
        letters: with a piece of their own, beside CHARACTERS.

    Raises:
        RuntimeError: the tokenizer of transformers gives other ids.
    """
    from transformers import T5Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    # Pieces to choose from are strings that two different words share, however often
    # one word comes. "mixed." beside "mixed" makes one of it, not m-i-x-e-d.
    words = sorted({word.strip(".,:?!") for line in lines for word in line.split()})
    words += [f"{word}." for word in words]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines + words),
        model_prefix=str(folder / "spiece"),
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        required_chars=CHARACTERS + letters,
        normalization_rule_name="nmt_nfkc_cf",
        user_defined_symbols=[MASK],
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    # From the folder, not T5Tokenizer(vocab_file=...): transformers 5 ignores that
    # argument and gives a tokenizer of four tokens without a word of warning.
    tokenizer = T5Tokenizer.from_pretrained(folder, extra_ids=0)
    model = str(folder / "spiece.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    for line in lines[:200]:
        expected, found = processor.encode(line), tokenizer(line).input_ids[:-1]
        if expected != found:
            raise RuntimeError(
                f"tokenizer of {folder}: SentencePiece encodes {line!r} as {expected}, "
                f"transformers as {found}; install another transformers release"
            )
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_wordpiece(lines, folder, letters=""):
    """Save the Q-Former's BERT-style tokenizer: whole words, and letters for others.

    The corpus has a closed vocabulary, so its words by frequency are the WordPiece
    vocabulary; CHARACTERS and `letters` (also with ##) spell what it does not have.
    """
    from transformers import BertTokenizer

    characters = CHARACTERS + letters
    kept = {"strip_accents": False} if letters else {}  # BERT's reads "ö" as "o"
    normalizer = BertNormalizer(lowercase=True, **kept)
    counts = collections.Counter()
    for line in lines:
        normal = normalizer.normalize_str(line)
        counts.update(word for word, _ in BertPreTokenizer().pre_tokenize_str(normal))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    tokens += list(characters) + [f"##{letter}" for letter in characters]
    tokens += [word for word in words if word not in characters]
    with tempfile.TemporaryDirectory() as beside:
        (Path(beside) / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
        config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        (Path(beside) / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = BertTokenizer.from_pretrained(beside, bos_token="[DEC]", **kept)
    tokenizer.save_pretrained(folder)
    return tokenizer


# -------------------------------------------------------------------------------- model


def build_model(tokenizer, seed):
    """A small T5 for the tokenizer of train_sentencepiece, untrained."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        **MODEL,
    )
    model = T5ForConditionalGeneration(config)
    # In bfloat16 on a CPU a step takes 0.78 of that with PyTorch's own attention.
    model.set_attn_implementation("eager")
    return model


def encode_pairs(pairs, tokenizer, seed):
    """(source ids, target ids, task) of the pairs of training_text.

    The seed draws what is masked.
    """
    rng = random.Random(f"mask-{seed}")
    mask_id = tokenizer.convert_tokens_to_ids(MASK)

    @functools.cache
    def ids(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    eos = [tokenizer.eos_token_id]
    encoded = []
    for told, instruction, target, task in pairs:
        source = list(ids(told))
        if task == "restore":  # a third of the tokens is hidden, runs become one mask
            hidden = [rng.random() < 0.3 for _ in source]
            source = [
                mask_id if hidden[i] else token
                for i, token in enumerate(source)
                if not (hidden[i] and i and hidden[i - 1])
            ]
        source += ids(instruction) if instruction else []
        encoded.append((source + eos, ids(target) + eos, task))
    return encoded


def _batch(rows, pad):
    """Keywords of a T5 for (source ids, target ids, task) rows."""
    source, labels = (
        pad_sequence([torch.tensor(row[i]) for row in rows], True, filler)
        for i, filler in ((0, pad), (1, -100))
    )
    mask = (source != pad).long()
    return {"input_ids": source, "attention_mask": mask, "labels": labels}


def train(model, encoded, batch_size, learning_rate, seed, precision="auto"):
    """One pass over the pairs of encode_pairs, with the longest sources together.

    `learning_rate` is the highest, of the word embeddings EMBEDDING_RATE times that.
    """
    rng = random.Random(f"order-{seed}")
    pad = model.config.pad_token_id
    batches = []
    # Sort within windows: little padding, and still a random order.
    window = 16 * batch_size
    for start in range(0, len(encoded), window):
        rows = sorted(encoded[start : start + window], key=lambda row: len(row[0]))
        parts = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        rng.shuffle(parts)
        batches += parts
    words = model.get_input_embeddings().weight
    others = [p for p in model.parameters() if p is not words]
    faster = {"params": [words], "lr": learning_rate * EMBEDDING_RATE}
    how = {"lr": learning_rate, "weight_decay": 0.0, "betas": (0.9, 0.98)}
    how["groups"] = [faster, {"params": others}]

    def loss_of(rows):
        return model(**_batch(rows, pad)).loss

    name, steps = "Language model", len(batches)
    fit(name, [model], batches, steps, loss_of, precision, 0.06, 100, **how)


@torch.no_grad()
def evaluate(model, encoded):
    """{task: {"loss", "exact"}} of the pairs of encode_pairs, with the right history.

    "exact" is the share of targets that are right from first to last token.
    """
    totals = collections.defaultdict(lambda: torch.zeros(4, dtype=torch.float64))
    for start in range(0, len(encoded), 64):
        rows = encoded[start : start + 64]
        batch = _batch(rows, model.config.pad_token_id)
        labels, logits = batch["labels"], model(**batch).logits
        loss = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, reduction="none", ignore_index=-100
        )
        right = ((logits.argmax(-1) == labels) | (labels == -100)).all(1)
        for row, one, good in zip(rows, loss.sum(1), right, strict=True):
            totals[row[2]] += torch.tensor([one, len(row[1]), good, 1])
    return {
        task: {"loss": round(loss / tokens, 4), "exact": round(good / count, 4)}
        for task, total in sorted(totals.items())
        for loss, tokens, good, count in [total.tolist()]
    }


@torch.no_grad()
def names_both(model, tokenizer, seed, number=100, language=ENGLISH):
    """How often the model names the two sources of a description it shall restate.

    What it can't do with words it won't do with queries, so this bounds the captions.
    `number` descriptions of two events with different sources are asked; 0 to 1.
    """
    rng = random.Random(f"names-{seed}")
    sources, told = [], []
    while len(told) < number:
        relation = rng.choice(("sequence", "overlap"))
        scene = plan_scene(rng, "text", ALL_CLASSES, relation)
        named = {event.source for event in scene.events}
        if len(named) == 2:
            sources.append(named)
            text = caption(rng, scene, True, language)
            asked = any_instruction(rng, "caption", language=language)
            told.append(f"{text} {asked}")
    batch = tokenizer(told, padding=True, return_tensors="pt")
    asked = {name: batch[name] for name in ("input_ids", "attention_mask")}
    written = model.generate(**asked, max_new_tokens=40)
    written = tokenizer.batch_decode(written, skip_special_tokens=True)
    source_of = language.source_of
    found = [
        {source_of[word] for word in re.findall(r"\w+", text) if word in source_of}
        for text in written
    ]
    return sum(a == b for a, b in zip(sources, found, strict=True)) / number


# ---------------------------------------------------------------------------- all of it


def make(folder, labels=(), precision="auto", language=ENGLISH, **settings):
    """Train and save language_model/ and qformer_tokenizer/ below `folder`.

    Args:
        folder: Path.
        labels: to tell of these instead of scenes.
        precision: of the products: auto, float32 or bfloat16.
        language: Language, of the text.
        **settings: those that differ from SETTINGS.

    Returns:
        dict: how it was made and how well it does.
    """
    if unknown := sorted(settings.keys() - SETTINGS):
        raise TypeError(f"expected settings of {', '.join(SETTINGS)}, found {unknown}")
    settings = {**SETTINGS, **settings}
    seed = settings["seed"]
    about = {"version": VERSION, **settings, "embedding_rate": EMBEDDING_RATE}
    about |= {"model": MODEL, "labels": list(labels)}
    if language is not ENGLISH:
        about["language"] = language.code
    stamp = folder / "language_model" / "about.json"
    if stamp.exists() and (folder / "qformer_tokenizer").is_dir():
        found = {"labels": [], **json.loads(stamp.read_text())}
        if is_there(stamp.parent, found, about, precision):
            return found
    about["precision"] = choose_precision(precision)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".language_model.", dir=folder) as made:
        made = Path(made)
        text = training_text(seed, settings["pairs"], labels, language)
        lines = tokenizer_text(text, language)
        tokenizer = train_sentencepiece(
            lines, made / "language_model", settings["vocab_size"], language.letters
        )
        wordpiece = make_wordpiece(lines, made / "qformer_tokenizer", language.letters)
        model = build_model(tokenizer, seed)
        sizes = model.num_parameters(), len(tokenizer), len(wordpiece)
        LOGGER.info("Language model: %d parameters, %d and %d tokens", *sizes)
        encoded = encode_pairs(text, tokenizer, seed)
        rate = settings["learning_rate"]
        train(model, encoded, settings["batch_size"], rate, seed, about["precision"])
        held_out = training_text(f"{seed}-held-out", 2000, labels, language)
        about["held_out"] = evaluate(model, encode_pairs(held_out, tokenizer, seed))
        if not labels:
            about["names_both"] = names_both(model, tokenizer, seed, language=language)
        scores = f"{about['held_out']}, both sources named: {about.get('names_both')}"
        LOGGER.info("Language model: held-out text: %s", scores)
        model.save_pretrained(made / "language_model")
        write_json(made / "language_model" / "about.json", about)
        for name in ("qformer_tokenizer", "language_model"):  # the stamp comes last
            shutil.rmtree(folder / name, ignore_errors=True)
            os.replace(made / name, folder / name)
    LOGGER.info("Language model: %s", stamp.parent)
    return about


def main():
    """Command line."""
    parser = make_parser(__doc__, output_dir=Path("downloads/mini"), **SETTINGS)
    which = "data directories whose labels the text is about, instead of scenes"
    parser.add_argument("--data-dir", type=Path, nargs="*", default=[], help=which)
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="of the text")
    args = parser.parse_args()
    prepare(args.threads)
    labels = read_labels(args.data_dir) if args.data_dir else ()
    settings = {name: getattr(args, name) for name in SETTINGS}
    make(args.output_dir, labels, args.precision, LANGUAGES[args.lang], **settings)


if __name__ == "__main__":
    main()
