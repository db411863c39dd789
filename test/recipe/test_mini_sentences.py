"""The mini corpus in words: every statement is true of the scene that is heard."""

import collections
import itertools
import random
import re

import pytest
from recipe_local import local

english = local("mini.languages").ENGLISH
scenes = local("mini.scenes")
sentences = local("mini.sentences")
SIZES = local("mini_corpus").SIZES


@pytest.fixture(scope="module")
def splits():
    return scenes.plan_corpus(1, SIZES)


WORD_VALUES = {
    **{
        word: ("manner", m)
        for m, words in english.manner_words.items()
        for word in words
    },
    "rises": ("manner", "rising"),
    "falls": ("manner", "falling"),
    "pulses": ("manner", "pulsing"),
    "warbles": ("manner", "warbling"),
    "loud": ("level", "loud"),
    "quiet": ("level", "quiet"),
    "soft": ("level", "quiet"),
    "faint": ("level", "quiet"),
    "low": ("pitch", "low"),
    "low-pitched": ("pitch", "low"),
    "high": ("pitch", "high"),
    "high-pitched": ("pitch", "high"),
    "slowly": ("speed", "slow"),
    "quickly": ("speed", "fast"),
    "rapidly": ("speed", "fast"),
    "a": ("count", 1),
    "an": ("count", 1),
    "two": ("count", 2),
    "three": ("count", 3),
    "four": ("count", 4),
}
BACKGROUND_WORDS = {
    "wind": "wind",
    "windy": "wind",
    "rain": "rain",
    "rainy": "rain",
    "static": "static",
}
TIMES = {"once": 1, "twice": 2, "three times": 3, "four times": 4}
BACKGROUND_PATTERN = re.compile(
    r"(with (?P<a>wind|rain|static) in the background|in the (?P<b>wind|rain)"
    r"|on a (?P<c>windy|rainy) day|with background (?P<d>static)|through (?P<e>static)"
    r"|with(out| no) (?P<no>background noise)),? ?"
)


def _parse(text):
    """Statements of a caption: (relation or None, events as dicts, background)."""
    text = text.lower()
    background = None
    match = BACKGROUND_PATTERN.search(text)
    if match:
        words = [value for value in match.groupdict().values() if value]
        background = "" if match["no"] else BACKGROUND_WORDS[words[0]]
        text = (text[: match.start()] + text[match.end() :]).strip(" ,")
    relation, parts = "single", [text]
    for pattern, kind, swap in (
        (r"^(?:first )?(.+), then (.+)$", "sequence", False),
        (r"^(.+) followed by (.+)$", "sequence", False),
        (r"^(.+) before (.+)$", "sequence", False),
        (r"^(.+) after (.+)$", "sequence", True),
        (r"^(.+) and (.+) at the same time$", "overlap", False),
        (
            r"^(.+) (?:together with|mixed with|overlapping with) (.+)$",
            "overlap",
            False,
        ),
        (r"^(.+) (?:while|as) (.+)$", "overlap", False),
    ):
        found = re.match(pattern, text)
        if found:
            relation, parts = kind, list(found.groups())
            parts = parts[::-1] if swap else parts
            break
    events = []
    singular = {plural: source for source, (_, plural) in english.nouns.items()}
    for part in parts:
        event = {}
        for times, number in TIMES.items():
            if part.endswith(" " + times):
                event["count"] = number
                part = part[: -len(times)].strip()
        part = re.sub(r"^(the sound of|there (is|are)) ", "", part)
        part = re.sub(r" (is|are) heard$", "", part)
        for word in part.split():
            if word in scenes.SOURCES or word in singular:
                assert "source" not in event, f"two sources in {part!r}"
                event["source"] = singular.get(word, word)
                if word in singular:
                    assert event["count"] > 1, f"plural of one: {part!r}"
            else:
                key, value = WORD_VALUES[word]
                assert key == "count" or key not in event, f"{key} told twice: {part!r}"
                event.setdefault(key, value)
        events.append(event)
    return relation, events, background


def test_every_statement_of_every_caption_is_true(splits):
    number = 0
    for scene in itertools.chain(*splits.values()):
        for text in sentences.captions(scene, 1):
            relation, events, background = _parse(text)
            assert relation == scene.relation, text
            if background is not None:
                assert background == scene.background, text
            expected = list(scene.events)
            if relation == "overlap":  # either may be named first
                expected.sort(key=lambda event: event.source)
                events.sort(key=lambda event: event["source"])
            for told, event in zip(events, expected, strict=True):
                for key, value in told.items():
                    assert value == getattr(event, key), (text, key)
                assert {"source", "manner"} <= set(told), text
            number += 1
    assert number > 10_000


def test_first_caption_tells_everything(splits):
    for scene in splits["test"]:
        _, events, background = _parse(sentences.captions(scene, 1)[0])
        assert (background or "") == scene.background
        for told, event in zip(
            sorted(events, key=lambda told: told["source"]),
            sorted(scene.events, key=lambda event: event.source),
            strict=True,
        ):
            for key in ("pitch", "level", "speed"):
                assert told.get(key, "") == getattr(event, key)


def test_captions_of_a_clip_are_five_and_different(splits):
    for scene in splits["train"][:600]:
        texts = {text.lower() for text in sentences.captions(scene, 1)}
        assert len(texts) == 5


def test_captions_are_well_formed(splits):
    for scene in splits["train"][:600]:
        for text in sentences.captions(scene, 1):
            assert text[0].isupper() and not text.endswith((".", " "))
            assert "  " not in text and " ," not in text
            assert not re.search(r"\b(a [aeiou]|an [^aeiou])", text.lower())
            assert len(text.split()) <= 26
            for word in (" background ", " background", "heard"):
                assert text.count(word) <= 1


def _answer(question, scene):
    """Answer from the times and attributes of a scene."""
    events = {event.source: event for event in scene.events}
    named = [word for word in re.findall(r"[a-z]+", question.lower())]
    plural = {many: source for source, (_, many) in english.nouns.items()}
    sources = [plural.get(w, w) for w in named if w in scenes.SOURCES or w in plural]
    if question.startswith(("Is there", "Can", "Do you hear")):
        manner = next((m for m in scenes.MANNERS if m in named), None)
        event = events.get(sources[0])
        return "yes" if event and manner in (None, event.manner) else "no"
    start = {source: event.spans[0][0] for source, event in events.items()}
    if "first" in named:
        return min(start, key=start.get)
    if "last" in named:
        return max(start, key=start.get)
    if "background" in named:
        return scene.background or "nothing"
    if "sounds" in named:
        a, b = scene.events
        together = a.spans[0][0] < b.spans[-1][1] and b.spans[0][0] < a.spans[-1][1]
        return "yes" if together else "no"
    event = events[sources[0]]
    if "many" in named or "often" in named:
        return {1: "one", 2: "two", 3: "three", 4: "four"}[len(event.spans)]
    if "rising" in named or "rise" in named:
        return event.manner
    if "loud" in named:
        return event.level
    if "fast" in named:
        return event.speed
    return event.pitch


def test_every_answer_is_true_and_listed(splits):
    rng = random.Random(0)
    asked = 0
    for scene in splits["train"]:
        for _, question, answer in sentences.questions(rng, scene):
            assert _answer(question, scene) == answer, (question, scene)
            assert answer in english.answers.values()
            asked += 1
    assert asked > 10_000
    assert len(set(english.answers.values())) == len(english.answers)


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_balanced_within_each_kind(splits, split):
    counts = collections.defaultdict(collections.Counter)
    for _, kind, _, answer in sentences.balanced_questions(splits[split], 1, 4):
        counts[kind][answer] += 1
    for kind in ("presence", "contour", "pitch", "level", "speed", "overlap"):
        most, least = sorted(counts[kind].values(), reverse=True)
        assert least > 0.8 * most, (kind, counts[kind])
    assert max(counts["count"].values()) < 0.4 * sum(counts["count"].values())
    assert max(counts["background"].values()) < 0.4 * sum(counts["background"].values())


def test_no_clip_is_asked_the_same_twice(splits):
    chosen = sentences.balanced_questions(splits["test"], 1, 4, fixed=True)
    asked = [(scene.clip, question) for scene, _, question, _ in chosen]
    assert len(set(asked)) == len(asked) == 4 * SIZES["test"]


def test_of_four_options_the_answer_alone_is_true(splits):
    chosen = sentences.choice_questions(splits["test"], 1, 50)
    kinds = collections.Counter(kind for _, kind, *_ in chosen)
    assert kinds == dict.fromkeys(english.choices, 50)
    for scene, kind, question, answer, options in chosen:
        assert len(set(options)) == 4 and answer in options
        events = {event.source: event for event in scene.events}
        asked = [event for event in scene.events if event.source in question]
        if kind == "what":
            right = set(events)
        elif kind == "order":
            right = {", then ".join(events)}
        elif kind == "how_many":
            right = {english.number_words[asked[0].count]}
        else:
            right = {asked[0].manner}
        assert right & set(options) == {answer}, (scene, question, options)


def test_answers_and_places_of_options_are_balanced(splits):
    chosen = sentences.choice_questions(splits["test"], 1, 50)
    for kind in ("what", "how_many", "manner"):
        counts = collections.Counter(a for _, k, _, a, _ in chosen if k == kind)
        assert max(counts.values()) <= 50 / len(counts) * 1.7, counts
    places = collections.Counter(options.index(a) for *_, a, options in chosen)
    assert min(places.values()) > 0.7 * len(chosen) / 4
