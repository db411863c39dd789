"""Forty captions with three to five references each: ordinary ones and tricky ones."""

import random

_WORDS = (
    "a the dog cat bird rain wind engine man woman child crowd car train bell drum "
    "barks sings falls blows runs speaks laughs rings loudly softly twice slowly in "
    "on near while and then with background distance room street high-pitched"
).split()


def _sentence(generator):
    words = generator.choices(_WORDS, k=generator.randint(4, 12))
    return " ".join(words).capitalize() + generator.choice(("", ".", " ."))


def _near(generator, sentence):
    """The sentence with about a quarter of its words changed."""
    return " ".join(
        generator.choice(_WORDS) if generator.random() < 0.25 else w
        for w in sentence.split()
    )


def _make():
    generator = random.Random(2402)
    hypotheses, references = [], []
    for _ in range(40):
        base = _sentence(generator)
        references.append(
            [_near(generator, base) for _ in range(generator.randint(3, 5))]
        )
        hypotheses.append(_near(generator, base))
    hypotheses[3] = ""
    hypotheses[4] = "rain"
    hypotheses[5] = "..."
    hypotheses[6] = references[6][1]
    hypotheses[7] = "dog dog dog dog dog dog"
    hypotheses[8] = 'Mr. Smith doesn\'t like the (loud) "noise", at 3.5 kHz & more!'
    references[8][0] = "Mr. Smith does not like the loud noise at 3.5 kHz"
    hypotheses[9] = "un café à côté; it's 10:30 a.m."
    return hypotheses, references


hypotheses, references = _make()
