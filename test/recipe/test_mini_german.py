"""The mini corpus in German: its grammar, its tokenizers, a system trained on it."""

import itertools
import json
import random
import re

import pytest
import tiny
from recipe_local import local

from espnet2_slit.bin import slit_data, slit_inference, slit_score, slit_train
from espnet2_slit.data.kaldi_dir import read_map

scenes = local("mini.scenes")
sentences = local("mini.sentences")
languages = local("mini.languages")
english, german = languages.ENGLISH, languages.GERMAN
SIZES = {
    "train": 16,
    "valid": 4,
    "test": 6,
    "test_unseen": 1,
    "test_class": 1,
    "test_class_unseen": 1,
    "test_moments": 1,
}


@pytest.fixture(scope="module")
def some_scenes():
    splits = scenes.plan_corpus(1, {**dict.fromkeys(SIZES, 1), "train": 800})
    return splits["train"]


# -------------------------------------------------------------------------- sentences

GENDER = {word: noun[2] for noun in german.nouns.values() for word in noun[:2]}
ENDING = {  # of adjectives after the article, by the noun's gender
    ("ein", "m"): "er",
    ("ein", "n"): "es",
    ("eine", "f"): "e",
    ("einen", "m"): "en",
    ("einem", "m"): "en",
    ("einem", "n"): "en",
    ("einer", "f"): "en",
}
STEMS = {
    **{w: ("manner", m) for m, words in german.manner_words.items() for w in words},
    **{w: ("level", v) for v, words in german.level_words.items() for w in words},
    **{w: ("pitch", v) for v, words in german.pitch_words.items() for w in words},
}
ADVERBS = {w: ("speed", v) for v, words in german.speed_words.items() for w in words}
VERBS = {
    verb: ("manner", name)
    for name, (present, perfect) in german.manner_verbs.items()
    for verb in (present, perfect.split()[0])
}
NUMBERS = {"zwei": 2, "drei": 3, "vier": 4}
TIMES = {word: number for number, word in german.times_words.items()}
DATIVE = r"\b(von|vor|mit|nach) $"


def _phrases(text):
    """(place, source, attributes) of each noun phrase; asserts its endings."""
    article = "ein|eine|einen|einem|einer|zwei|drei|vier"
    for match in re.finditer(rf"\b({article}) ([a-zäöü ]*)([A-Z]\w+)", text):
        first, adjectives, noun = match.groups()
        before = text[: match.start()]
        told = {"count": NUMBERS.get(first, 1)}
        if first in NUMBERS:
            is_dative = re.search(DATIVE, before)
            ending = "en" if is_dative else "e"
            nouns = {plural: s for s, (_, plural, _) in german.nouns.items()}
            if is_dative and noun not in nouns:
                assert noun.endswith("n") and noun[:-1] in nouns, match[0]
                noun = noun[:-1]
            assert noun in nouns, match[0]
        else:
            gender = GENDER.get(noun)
            if gender is None:
                assert noun == "Rauschen"
                continue
            assert (first, gender) in ENDING, match[0]
            ending = ENDING[first, gender]
            assert bool(re.search(DATIVE, before)) == (first in ("einem", "einer"))
            assert (first == "einen") <= ("man hört" in before)
        for word in adjectives.split():
            key, value = ADVERBS.get(word) or STEMS[word.removesuffix(ending)]
            assert key not in told and (word in ADVERBS or word.endswith(ending))
            told[key] = value
        yield match.start(), german.source_of[noun.lower()], told


def test_every_german_caption_is_true_and_its_endings_agree(some_scenes):
    for scene in some_scenes:
        for text in sentences.captions(scene, 1, language=german):
            assert text[0].isupper() and "  " not in text
            text = text[0].lower() + text[1:]
            background = [
                w for w in ("Wind", "Regen|regnet", "Rauschen") if re.search(w, text)
            ]
            known = {"wind": "Wind", "rain": "Regen|regnet", "static": "Rauschen"}
            if background:
                assert background == [known[scene.background]], text
            elif "Hintergrund" in text:
                assert scene.background == "", text
            found = list(_phrases(text))
            assert len(found) == len(scene.events), text
            if " nach " in text or " nachdem " in text:
                found.reverse()
            if scene.relation == "overlap":
                told_of = {source: told for _, source, told in found}
                ordered = [(e.source, told_of[e.source]) for e in scene.events]
            else:
                ordered = [(source, told) for _, source, told in found]
            is_sequence = re.search(r"gefolgt|dann|\bvor\b|bevor|\bnach|nachdem", text)
            assert bool(is_sequence) == (scene.relation == "sequence"), text
            times = [TIMES[w] for w in re.findall(r"\w+", text) if w in TIMES]
            for (source, told), event in zip(ordered, scene.events, strict=True):
                assert source == event.source, text
                count = told.pop("count")
                assert count in (1, event.count)
                if count == 1 and event.count > 1:
                    assert event.count in times, text
                for key, value in told.items():
                    assert value == getattr(event, key), (text, key)
            verbs = {VERBS[w][1] for w in re.findall(r"\w+", text) if w in VERBS}
            assert verbs <= {event.manner for event in scene.events}, text


def test_subordinate_clauses_end_with_their_verb():
    event = scenes.Event("rattle", "falling", "high", "", "", 2, ())
    clause = german.clause(random.Random(0), event, {"pitch"})
    assert clause.main == "eine hohe Rassel fällt zweimal"
    assert clause.inverted == "fällt eine hohe Rassel zweimal"
    assert clause.verb_last == "eine hohe Rassel zweimal fällt"
    assert clause.perfect == "eine hohe Rassel zweimal gefallen ist"
    phrase = german.phrase(random.Random(0), event, {"pitch"})
    assert phrase.nominative == "zwei hohe fallende Rasseln"
    assert phrase.dative == "zwei hohen fallenden Rasseln"


def test_german_questions_have_the_answers_of_the_english_ones(some_scenes):
    same = {english.answers[key]: german.answers[key] for key in english.answers}
    assert list(english.answers) == list(german.answers)
    for scene in some_scenes:
        asked = [
            sentences.questions(random.Random(0), scene, True, language=language)
            for language in (english, german)
        ]
        for (kind, _, answer), (other, question, answered) in zip(*asked, strict=True):
            assert (kind, same[answer]) == (other, answered), question
            assert "{" not in question and question.endswith("?")


# ----------------------------------------------------------------------------- system


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data directories, language model and tokenizers, all in German, all small."""
    folder = tmp_path_factory.mktemp("german")
    make = local("mini_corpus").make_corpus
    make(folder / "data", folder / "audio", 1, SIZES, 1, german)
    make = local("mini_language_model").make
    make(folder, language=german, pairs=640, learning_rate=3e-3)
    return folder


def test_german_sets_have_the_audio_of_the_english_ones_and_say_their_language(
    made, tmp_path
):
    make = local("mini_corpus").make_corpus
    make(tmp_path, made / "audio", 1, SIZES, 1)
    names = sorted(path.name for path in (made / "data").iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        ours, theirs = made / "data" / name, tmp_path / name
        if "instruction" not in name and name != "test_qa":
            assert (ours / "wav.scp").read_bytes() == (theirs / "wav.scp").read_bytes()
        assert json.loads((ours / "set.json").read_text())["language"] == "de"
        assert "language" not in json.loads((theirs / "set.json").read_text())


def test_tokenizers_keep_umlauts(made):
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(made / "qformer_tokenizer")
    assert words.tokenize("Zwei Summtöne fällt") == ["zwei", "summtöne", "fällt"]
    pieces = AutoTokenizer.from_pretrained(made / "language_model")
    text = "erst zwei hohe summtöne, während eine rassel fällt"
    ids = pieces(text, add_special_tokens=False).input_ids
    assert pieces.unk_token_id not in ids and pieces.decode(ids) == text
    for letter in "äöü":
        assert pieces.unk_token_id not in pieces(letter * 2).input_ids


def test_a_german_system_is_trained_decoded_and_scored(made, tmp_path):
    beats = tiny.beats_checkpoint(tmp_path / "beats")
    names = ("train_instruction", "valid_instruction", "test_caption", "test_choices")
    raw = tmp_path / "raw"
    wanted = [made / "data" / name for name in names]
    slit_data.main(list(map(str, ["prepare", *wanted, "--out", raw, "--nj", 1])))
    command = [
        *["--output_dir", tmp_path / "exp", "--model", "instruction"],
        *["--train_dir", raw / names[0]],
        *["--valid_dir", raw / names[1]],
        *["--audio_encoder", "beats", "--audio_encoder_conf", f"path={beats}"],
        *["--language_model", made / "language_model"],
        *["--qformer_tokenizer", made / "qformer_tokenizer"],
        "--qformer_conf",
        "{width: 16, layers: 2, heads: 2, feed_forward: 32, num_queries: 3,"
        " max_text_length: 64}",
        *["--preprocessor_conf", "{language: de, max_prompt_length: 48}"],
        *["--inference_conf", "language=de", "--num_workers", "0"],
        *["--batch_type", "unsorted", "--batch_size", "24", "--max_epoch", "1"],
        *["--use_matplotlib", "false", "--use_tensorboard", "false"],
    ]
    slit_train.main([str(word) for word in command])
    sets = [raw / name for name in names[2:]]
    decoded = [tmp_path / "decode" / path.name for path in sets]
    facts = json.loads((sets[0] / "set.json").read_text())
    facts["tasks"] = ["caption"]  # this system has no part for retrieval
    (sets[0] / "set.json").write_text(json.dumps(facts))
    words = ["--model", tmp_path / "exp", "--data_dir", *sets, "--output_dir", *decoded]
    assert not slit_inference.main(list(map(str, words)))
    slit_score.main(
        [
            *["--decode_dir", str(tmp_path / "decode")],
            *["--data_dir", str(raw), "--report", "false"],
            *["--test_sets", "test_caption test_choices", "--resamples", "20"],
            *["--tokenizer", "python"],
        ]
    )
    answers = read_map(decoded[1] / "question_answering" / "ranked")
    options = read_map(raw / "test_choices" / "choices")
    assert all(text in json.loads(options[key]) for key, text in answers.items())
    rows = json.loads((tmp_path / "decode" / "scores.json").read_text())["scores"]
    found = {row["metric"]: row for row in rows if row["task"] == "caption"}
    assert found["cider_d"]["value"] is not None
    for metric in ("meteor", "spice", "fense"):
        assert "English" in found[metric]["note"], found[metric]


def test_no_german_word_is_spelled_by_letters(made):
    from transformers import AutoTokenizer

    pieces = AutoTokenizer.from_pretrained(made / "language_model")
    whole = {
        piece.strip("\u2581") for piece in pieces.get_vocab() if piece[0] == "\u2581"
    }
    nouns = itertools.chain(*(noun[:2] for noun in german.nouns.values()))
    missing = [noun for noun in nouns if noun.lower() not in whole]
    assert not missing
