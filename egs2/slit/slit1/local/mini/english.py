"""How the mini corpus is told in English; see `sentences` for what a language has."""

from mini.scenes import BACKGROUNDS, SOURCES

CODE = "en"
PLURAL = {source: source + "s" for source in SOURCES} | {
    "buzz": "buzzes",
    "hiss": "hisses",
}
SOURCE_OF = {word: one for one, many in PLURAL.items() for word in (one, many)}
MANNER_WORDS = {
    "rising": ("rising", "rising", "ascending"),
    "falling": ("falling", "falling", "descending"),
    "pulsing": ("pulsing", "pulsing", "throbbing"),
    "warbling": ("warbling", "warbling", "wavering"),
}
MANNER_VERBS = {
    "rising": "rises",
    "falling": "falls",
    "pulsing": "pulses",
    "warbling": "warbles",
}
LEVEL_WORDS = {"loud": ("loud",), "quiet": ("quiet", "soft", "faint")}
PITCH_WORDS = {"low": ("low", "low-pitched"), "high": ("high", "high-pitched")}
SPEED_WORDS = {"slow": ("slowly",), "fast": ("quickly", "rapidly")}
NUMBER_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}
TIMES_WORDS = {1: "once", 2: "twice", 3: "three times", 4: "four times"}
SINGLE = (
    "{phrase}",
    "{phrase} {be} heard",
    "there {be} {phrase}",
    "the sound of {phrase}",
    "{clause}",
    "{once} is heard {times}",
)
SEQUENCE = (
    "{a} followed by {b}",
    "{a}, then {b}",
    "first {a}, then {b}",
    "{a} before {b}",
    "{b} after {a}",
    "{clause_a}, then {clause_b}",
    "{clause_a} before {clause_b}",
    "{clause_b} after {clause_a}",
)
OVERLAP = (
    "{a} and {b} at the same time",
    "{a} together with {b}",
    "{a} mixed with {b}",
    "{a} overlapping with {b}",
    "{clause_a} while {clause_b}",
    "{clause_a} as {clause_b}",
)
BACKGROUND = {
    "wind": ("with wind in the background", "in the wind", "on a windy day"),
    "rain": ("with rain in the background", "in the rain", "on a rainy day"),
    "static": (
        "with static in the background",
        "with background static",
        "through static",
    ),
    "": ("without background noise", "with no background noise"),
}
BACKGROUND_FIRST, BACKGROUND_LAST = "{background}, {body}", "{body} {background}"
QUESTIONS = {
    "presence": ("Is there {a}?", "Can {a} be heard?", "Do you hear {a}?"),
    "first": ("Which sound comes first?", "What is heard first?"),
    "last": ("Which sound comes last?", "What is heard last?"),
    "count": (
        "How many times is the {s} heard?",
        "How many {p} are there?",
        "How often is the {s} heard?",
    ),
    "contour": ("Is the {s} rising or falling?", "Does the {s} rise or fall?"),
    "pitch": ("Is the {s} high or low?", "Is the pitch of the {s} high or low?"),
    "level": ("Is the {s} loud or quiet?", "How loud is the {s}?"),
    "speed": ("Is the {s} slow or fast?", "How fast does the {s} {v}?"),
    "overlap": ("Do the sounds overlap?", "Are the sounds heard at the same time?"),
    "background": ("What is in the background?", "Which background noise is there?"),
}
ANSWERS = {
    **{word: word for word in ("yes", "no")},
    **NUMBER_WORDS,
    **{word: word for word in ("rising", "falling", "high", "low", "loud", "quiet")},
    **{word: word for word in ("slow", "fast", *BACKGROUNDS)},
    "": "nothing",  # in the background
    **{source: source for source in SOURCES},
}
# Multiple choice; the options of "order" are made by ORDER.
CHOICES = {
    "what": "Which sound is heard?",
    "how_many": QUESTIONS["count"][0],
    "order": "Which sounds are heard?",
    "manner": "How does the {s} sound?",
}
ORDER = "{a}, then {b}"
EXAMPLE = {"a": "a whistle", "s": "whistle", "p": "buzzes", "v": "pulse"}  # of names
_INFINITIVE = {"pulsing": "pulse", "warbling": "warble"}


def _article(phrase):
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _adjectives(rng, event, mention, manner=True):
    words = []
    if "level" in mention and event.level:
        words.append(rng.choice(LEVEL_WORDS[event.level]))
    if "pitch" in mention and event.pitch:
        words.append(rng.choice(PITCH_WORDS[event.pitch]))
    if manner:
        if "speed" in mention and event.speed:
            words.append(rng.choice(SPEED_WORDS[event.speed]))
        words.append(rng.choice(MANNER_WORDS[event.manner]))
    return words


def label(manner, source):
    """Name of a class."""
    return f"{manner} {source}"


def manner(name):
    """How something sounds: 'rising'."""
    return MANNER_WORDS[name][0]


def indefinite(source, manner=""):
    """'a whistle', 'a rising whistle'."""
    return _article(f"{manner} {source}".strip())


def names(event):
    """What the questions about an event call it."""
    return {
        "s": event.source,
        "p": PLURAL[event.source],
        "v": _INFINITIVE.get(event.manner, ""),
    }


def phrase(rng, event, mention):
    """'a loud rising whistle', 'three whistles' with their adjectives."""
    words = _adjectives(rng, event, mention)
    if event.count > 1:
        return " ".join([NUMBER_WORDS[event.count], *words, PLURAL[event.source]])
    return _article(" ".join([*words, event.source]))


def once(rng, event, mention):
    """The phrase of one repetition."""
    return _article(" ".join([*_adjectives(rng, event, mention), event.source]))


def clause(rng, event, mention):
    """'a loud whistle rises twice'."""
    subject = _article(
        " ".join([*_adjectives(rng, event, mention, manner=False), event.source])
    )
    words = [subject, MANNER_VERBS[event.manner]]
    if "speed" in mention and event.speed:
        words.append(rng.choice(SPEED_WORDS[event.speed]))
    if event.count > 1:
        words.append(TIMES_WORDS[event.count])
    return " ".join(words)


def be(count):
    """The verb of so many sounds."""
    return "is" if count == 1 else "are"
