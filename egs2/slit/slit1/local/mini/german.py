"""How the mini corpus is told in German: genders, cases, and where the verb stands."""

from typing import NamedTuple

CODE = "de"
NOUNS = {  # gender, singular, plural
    "whistle": ("m", "Pfiff", "Pfiffe"),
    "buzz": ("m", "Summton", "Summtöne"),
    "hum": ("m", "Brummton", "Brummtöne"),
    "hiss": ("m", "Zischlaut", "Zischlaute"),
    "rattle": ("f", "Rassel", "Rasseln"),
    "chime": ("f", "Glocke", "Glocken"),
    "honk": ("n", "Hupsignal", "Hupsignale"),
    "growl": ("m", "Knurrlaut", "Knurrlaute"),
}
SOURCE_OF = {
    word.lower(): source for source, (_, *words) in NOUNS.items() for word in words
}
# Stems; what follows depends on gender, case and number.
MANNER_WORDS = {
    "rising": ("steigend", "steigend", "ansteigend"),
    "falling": ("fallend", "fallend", "absinkend"),
    "pulsing": ("pulsierend", "pulsierend", "pochend"),
    "warbling": ("trillernd", "trillernd", "wabernd"),
}
MANNER_VERBS = {  # present, and perfect as it ends a clause
    "rising": ("steigt", "gestiegen ist"),
    "falling": ("fällt", "gefallen ist"),
    "pulsing": ("pulsiert", "pulsiert hat"),
    "warbling": ("trillert", "getrillert hat"),
}
LEVEL_WORDS = {"loud": ("laut",), "quiet": ("leis", "leis", "schwach")}
PITCH_WORDS = {"low": ("tief",), "high": ("hoh",)}
SPEED_WORDS = {"slow": ("langsam",), "fast": ("schnell", "rasch")}
NUMBER_WORDS = {1: "ein", 2: "zwei", 3: "drei", 4: "vier"}
TIMES_WORDS = {1: "einmal", 2: "zweimal", 3: "dreimal", 4: "viermal"}
SINGLE = (
    "{phrase.nominative}",
    "{phrase.nominative} {be} zu hören",
    "man hört {phrase.accusative}",
    "zu hören {be} {phrase.nominative}",
    "{clause.main}",
    "{once.nominative} ist {times} zu hören",
)
SEQUENCE = (
    "{a.nominative}, gefolgt von {b.dative}",
    "{a.nominative}, dann {b.nominative}",
    "erst {a.nominative}, dann {b.nominative}",
    "{a.nominative} vor {b.dative}",
    "{b.nominative} nach {a.dative}",
    "{clause_a.main}, dann {clause_b.inverted}",
    "{clause_a.main}, bevor {clause_b.verb_last}",
    "{clause_b.main}, nachdem {clause_a.perfect}",
)
OVERLAP = (
    "{a.nominative} und gleichzeitig {b.nominative}",
    "{a.nominative} zusammen mit {b.dative}",
    "{a.nominative}, gemischt mit {b.dative}",
    "{a.nominative}, überlagert von {b.dative}",
    "{clause_a.main}, während {clause_b.verb_last}",
    "{clause_a.main}, zugleich {clause_b.inverted}",
)
BACKGROUND = {
    "wind": ("im Hintergrund Wind", "dazu Wind", "dazu weht Wind"),
    "rain": ("im Hintergrund Regen", "dazu Regen", "dazu regnet es"),
    "static": ("im Hintergrund Rauschen", "dazu Rauschen", "dazu ein Rauschen"),
    "": ("ohne Hintergrundgeräusch", "ohne Geräusche im Hintergrund"),
}
BACKGROUND_FIRST = BACKGROUND_LAST = "{body}, {background}"
QUESTIONS = {
    "presence": (
        "Ist {a.nominative} zu hören?",
        "Hört man {a.accusative}?",
        "Gibt es {a.accusative}?",
    ),
    "first": ("Welcher Klang kommt zuerst?", "Was ist zuerst zu hören?"),
    "last": ("Welcher Klang kommt zuletzt?", "Was ist zuletzt zu hören?"),
    "count": (
        "Wie oft ist {the} zu hören?",
        "Wie oft hört man {the_accusative}?",
        "Wie oft kommt {the} vor?",
    ),
    "contour": ("Steigt oder fällt {the}?", "Ist {the} steigend oder fallend?"),
    "pitch": ("Ist {the} hoch oder tief?", "Klingt {the} hoch oder tief?"),
    "level": ("Ist {the} laut oder leise?", "Wie laut ist {the}?"),
    "speed": ("Ist {the} langsam oder schnell?", "Wie schnell {verb} {the}?"),
    "overlap": (
        "Überlappen sich die Klänge?",
        "Sind die Klänge gleichzeitig zu hören?",
    ),
    "background": (
        "Was ist im Hintergrund zu hören?",
        "Welches Geräusch gibt es im Hintergrund?",
    ),
}
ANSWERS = {
    **{"yes": "ja", "no": "nein"},
    **TIMES_WORDS,
    **{"rising": "steigend", "falling": "fallend", "high": "hoch", "low": "tief"},
    **{"loud": "laut", "quiet": "leise", "slow": "langsam", "fast": "schnell"},
    **{"wind": "Wind", "rain": "Regen", "static": "Rauschen", "": "nichts"},
    **{source: singular for source, (_, singular, _) in NOUNS.items()},
}
CHOICES = {
    "what": "Welcher Klang ist zu hören?",
    "how_many": QUESTIONS["count"][0],
    "order": "Welche Klänge sind zu hören?",
    "manner": "Wie klingt {the}?",
}
ORDER = "{a}, dann {b}"
_ENDINGS = {  # of an adjective after "ein"
    "nominative": {"m": "er", "f": "e", "n": "es"},
    "accusative": {"m": "en", "f": "e", "n": "es"},
    "dative": {"m": "en", "f": "en", "n": "en"},
}
_ARTICLES = {
    "nominative": {"m": "ein", "f": "eine", "n": "ein"},
    "accusative": {"m": "einen", "f": "eine", "n": "ein"},
    "dative": {"m": "einem", "f": "einer", "n": "einem"},
}
_THE = {"m": ("der", "den"), "f": ("die", "die"), "n": ("das", "das")}


class Phrase(NamedTuple):
    """'ein lauter Pfiff' in the cases that the sentences need."""

    nominative: str
    accusative: str
    dative: str


class Clause(NamedTuple):
    """'ein Pfiff steigt' with its verb second, first, last, and last in the perfect."""

    main: str
    inverted: str
    verb_last: str
    perfect: str


def _phrase(source, words, count=1):
    """`words` are (word, whether it is declined)."""
    gender, singular, plural = NOUNS[source]
    forms = []
    for case, endings in _ENDINGS.items():
        if count == 1:
            before, ending, noun = _ARTICLES[case][gender], endings[gender], singular
        else:
            is_dative = case == "dative"
            before, ending = NUMBER_WORDS[count], "en" if is_dative else "e"
            noun = plural + "n" if is_dative and plural[-1] != "n" else plural
        declined = [word + ending if declines else word for word, declines in words]
        forms.append(" ".join([before, *declined, noun]))
    return Phrase(*forms)


def _adjectives(rng, event, mention, manner=True):
    words = []
    if "level" in mention and event.level:
        words.append((rng.choice(LEVEL_WORDS[event.level]), True))
    if "pitch" in mention and event.pitch:
        words.append((rng.choice(PITCH_WORDS[event.pitch]), True))
    if manner:
        if "speed" in mention and event.speed:
            words.append((rng.choice(SPEED_WORDS[event.speed]), False))
        words.append((rng.choice(MANNER_WORDS[event.manner]), True))
    return words


def label(manner, source):
    """Name of a class: 'steigender Pfiff'."""
    gender, singular, _ = NOUNS[source]
    return f"{MANNER_WORDS[manner][0]}{_ENDINGS['nominative'][gender]} {singular}"


def manner(name):
    """How something sounds: 'steigend'."""
    return MANNER_WORDS[name][0]


def indefinite(source, manner=""):
    """'ein Pfiff', 'ein steigender Pfiff'."""
    return _phrase(source, [(MANNER_WORDS[manner][0], True)] if manner else [])


def names(event):
    """What the questions about an event call it."""
    gender, singular, _ = NOUNS[event.source]
    the, the_accusative = (f"{article} {singular}" for article in _THE[gender])
    verb, _ = MANNER_VERBS[event.manner]
    return {"the": the, "the_accusative": the_accusative, "verb": verb}


def phrase(rng, event, mention):
    """'ein lauter steigender Pfiff', 'drei Pfiffe' with their adjectives."""
    return _phrase(event.source, _adjectives(rng, event, mention), event.count)


def once(rng, event, mention):
    """The phrase of one repetition."""
    return _phrase(event.source, _adjectives(rng, event, mention))


def clause(rng, event, mention):
    """'ein lauter Pfiff steigt zweimal'."""
    words = _adjectives(rng, event, mention, manner=False)
    subject = _phrase(event.source, words).nominative
    verb, perfect = MANNER_VERBS[event.manner]
    how = [TIMES_WORDS[event.count]] if event.count > 1 else []
    if "speed" in mention and event.speed:
        how.append(rng.choice(SPEED_WORDS[event.speed]))
    return Clause(
        main=" ".join([subject, verb, *how]),
        inverted=" ".join([verb, subject, *how]),
        verb_last=" ".join([subject, *how, verb]),
        perfect=" ".join([subject, *how, perfect]),
    )


def be(count):
    """The verb of so many sounds."""
    return "ist" if count == 1 else "sind"


EXAMPLE = {
    "a": indefinite("whistle"),
    "the": "der Pfiff",
    "the_accusative": "den Pfiff",
    "verb": "pulsiert",
}
