"""How the mini corpus is told in a language: words of a YAML file, and their grammar.

To add a language: its words, sentences and questions in a file beside this one, with
the keys of `en.yaml`, and a `Language` here that puts the phrase of a sound together.
"""

from pathlib import Path
from typing import NamedTuple

from espnet2_slit.common.files import read_yaml


class Language:
    """Words as attributes, by the keys of the file, and the phrases made of them.

    A language itself has `code`; `noun_phrase`, a noun with article or number and words
    as of `adjectives`; `clause`, where it has a verb; `label`, the name of a class; and
    `names`, what the questions about an event call it.

    Attributes:
        source_of: source of sound, by its singular and plural in lower case.
        example: names that a question may have.
    """

    def __init__(self):
        path = Path(__file__).with_name(f"{self.code}.yaml")
        vars(self).update(read_yaml(path, "en.yaml shows what it has."))
        self.source_of = {
            word.lower(): source
            for source, (one, many, *_) in self.nouns.items()
            for word in (one, many)
        }
        self.answers |= {source: one for source, (one, *_) in self.nouns.items()}
        self.example["a"] = self.indefinite("whistle")

    def adjectives(self, rng, event, mention, manner=True):
        """(word, whether it is declined) for the attributes of an event to mention."""
        words = []
        if "level" in mention and event.level:
            words.append((rng.choice(self.level_words[event.level]), True))
        if "pitch" in mention and event.pitch:
            words.append((rng.choice(self.pitch_words[event.pitch]), True))
        if manner:
            words += [(word, False) for word in self.speed(rng, event, mention)]
            words.append((rng.choice(self.manner_words[event.manner]), True))
        return words

    def speed(self, rng, event, mention):
        """['slowly'], or [] where it is not to mention."""
        told = "speed" in mention and event.speed
        return [rng.choice(self.speed_words[event.speed])] if told else []

    def phrase(self, rng, event, mention):
        """'a loud rising whistle', 'three whistles' with their adjectives."""
        words = self.adjectives(rng, event, mention)
        return self.noun_phrase(event.source, words, event.count)

    def once(self, rng, event, mention):
        """The phrase of one repetition."""
        return self.noun_phrase(event.source, self.adjectives(rng, event, mention))

    def indefinite(self, source, manner=""):
        """'a whistle', 'a rising whistle'."""
        words = [(self.manner(manner), True)] if manner else []
        return self.noun_phrase(source, words)

    def manner(self, name):
        """How something sounds: 'rising'."""
        return self.manner_words[name][0]


class English(Language):
    """Phrases and clauses are str."""

    code = "en"

    def noun_phrase(self, source, words, count=1):
        one, many = self.nouns[source]
        words = [word for word, _ in words]
        if count > 1:
            return " ".join([self.number_words[count], *words, many])
        phrase = " ".join([*words, one])
        return ("an " if phrase[0] in "aeiou" else "a ") + phrase

    def clause(self, rng, event, mention):
        """'a loud whistle rises twice'."""
        words = self.adjectives(rng, event, mention, manner=False)
        verb, _ = self.manner_verbs[event.manner]
        told = [self.noun_phrase(event.source, words), verb]
        told += self.speed(rng, event, mention)
        return " ".join(told + [self.times_words[event.count]] * (event.count > 1))

    def label(self, manner, source):
        """'rising whistle'."""
        return f"{self.manner(manner)} {self.nouns[source][0]}"

    def names(self, event):
        one, many = self.nouns[event.source]
        return {"s": one, "p": many, "v": self.manner_verbs[event.manner][1]}


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


class German(Language):
    """Genders, cases, and where the verb stands."""

    code = "de"
    # by gender, in the order of Phrase: endings of an adjective after "ein", articles
    endings = {"m": ("er", "en", "en"), "f": ("e", "e", "en"), "n": ("es", "es", "en")}
    articles = {
        "m": ("ein", "einen", "einem"),
        "f": ("eine", "eine", "einer"),
        "n": ("ein", "ein", "einem"),
    }
    the = {"m": ("der", "den"), "f": ("die", "die"), "n": ("das", "das")}

    def noun_phrase(self, source, words, count=1):
        one, many, gender = self.nouns[source]
        befores, endings, nouns = self.articles[gender], self.endings[gender], [one] * 3
        if count > 1:
            befores, endings = [self.number_words[count]] * 3, ("e", "e", "en")
            nouns = [many, many, many if many[-1] == "n" else many + "n"]
        return Phrase(
            *(
                " ".join([before, *(w + ending * declined for w, declined in words), n])
                for before, ending, n in zip(befores, endings, nouns, strict=True)
            )
        )

    def clause(self, rng, event, mention):
        """'ein lauter Pfiff steigt zweimal'."""
        words = self.adjectives(rng, event, mention, manner=False)
        subject = self.noun_phrase(event.source, words).nominative
        verb, perfect = self.manner_verbs[event.manner]
        how = [self.times_words[event.count]] * (event.count > 1)
        how += self.speed(rng, event, mention)
        return Clause(
            main=" ".join([subject, verb, *how]),
            inverted=" ".join([verb, subject, *how]),
            verb_last=" ".join([subject, *how, verb]),
            perfect=" ".join([subject, *how, perfect]),
        )

    def label(self, manner, source):
        """'steigender Pfiff'."""
        one, _, gender = self.nouns[source]
        return f"{self.manner(manner)}{self.endings[gender][0]} {one}"

    def names(self, event):
        one, _, gender = self.nouns[event.source]
        the, the_accusative = (f"{article} {one}" for article in self.the[gender])
        verb, _ = self.manner_verbs[event.manner]
        return {"the": the, "the_accusative": the_accusative, "verb": verb}


ENGLISH, GERMAN = English(), German()
LANGUAGES = {language.code: language for language in (ENGLISH, GERMAN)}
