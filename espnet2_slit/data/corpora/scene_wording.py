"""What is said of a composed scene: true captions in several wordings, and questions.

Owns sentences. They speak of sounds by their labels alone, so that any corpus' labels
fit, and say nothing that the plan of the scene does not make true.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

NUMBERS = ("no", "one", "two", "three")
AT_ONCE, IN_TURN = "at the same time", "one after the other"
ONE = (
    "The sound of {a}.",
    "{a} can be heard.",
    "A recording of {a}.",
    "Only one sound is heard: {a}.",
    "Nothing but {a}.",
)
TOGETHER = ("{a} together with {b}", "{a} and {b} at the same time", "{a} over {b}")
CHAINS = (
    ("{x}, then {y}.", ", then "),
    ("First {x}, after that {y}.", ", after that "),
    ("{x} followed by {y}.", ", followed by "),
    ("The sound of {x}, and later {y}.", ", and later "),
    ("To begin with {x}, next {y}.", ", next "),
)
PAIRS = (
    "{a} and {b} at the same time.",
    "{a} together with {b}.",
    "{a}, and over it {b}.",
    "Two sounds at once: {a} and {b}.",
    "A mixture of {a} and {b}.",
)


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes:
        kind: what, count, order, simultaneity, loudness or presence.
        text: the question.
        answer: the right one.
        choices: what to choose from, the answer among them.
    """

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...]


def captions(slots: Sequence[Sequence[str]], rng: random.Random, number: int = 5):
    """Different sentences that are true of a scene.

    Args:
        slots: labels that sound at once, in order of time; a label in two slots is
            heard again.
        rng: draws the order of wordings, and of names where it has no meaning.
        number: of sentences.

    Returns:
        `number` sentences, or fewer where the scene has no more wordings.
    """
    found: dict[str, None] = {}
    if len(slots) > 1:
        forms = list(CHAINS)
    else:
        forms = [(form, "") for form in (ONE if len(slots[0]) == 1 else PAIRS)]
    rng.shuffle(forms)
    for form, joint in forms * 2:  # pairs may turn round the second time
        if len(slots) == 1:
            names = rng.sample(list(slots[0]), len(slots[0]))
            sentence = form.format(**dict(zip("ab", names, strict=False)))
        else:
            said = _phrases(slots, rng)
            sentence = form.format(x=said[0], y=joint.join(said[1:]))
        found.setdefault(sentence[:1].upper() + sentence[1:])
        if len(found) == number:
            break
    return list(found)


def _phrases(slots, rng):
    before: set[str] = set()
    said = []
    for slot in slots:
        names = [f"{name} again" if name in before else name for name in slot]
        before.update(slot)
        if len(names) == 2:
            a, b = rng.sample(names, 2)
            said.append(rng.choice(TOGETHER).format(a=a, b=b))
        else:
            said.append(names[0])
    return said


def questions(
    slots: Sequence[Sequence[str]],
    louder: tuple[str, str] | None,
    labels: Sequence[str],
    rng: random.Random,
) -> list[Question]:
    """All questions that a scene answers, one of a kind.

    Args:
        slots: as for `captions`.
        louder: (louder label, quieter label) where two differ clearly.
        labels: all of the corpus, for wrong answers.
        rng: draws who is asked about, and the order of choices.
    """
    names = list(dict.fromkeys(name for slot in slots for name in slot))
    absent = [label for label in labels if label not in names]
    found = [
        _ask(
            "count",
            "How many different sounds are heard?",
            NUMBERS[len(names)],
            NUMBERS[1:],
        )
    ]
    if len(names) == 1:
        wrong = rng.sample(absent, min(3, len(absent)))
        found.append(_ask("what", "Which sound is heard?", names[0], wrong, rng))
    elif len(names) == 2:
        known, asked = rng.sample(names, 2)
        wrong = rng.sample(absent, min(3, len(absent)))
        text = f"Which sound is heard besides {known}?"
        found.append(_ask("what", text, asked, wrong, rng))
    if len(slots) > 1:
        found.append(_order(slots, rng))
    if len(names) > 1:
        a, b = rng.sample(names, 2)
        text = f"Are {a} and {b} heard at the same time or one after the other?"
        once = any(a in slot and b in slot for slot in slots)
        answer = AT_ONCE if once else IN_TURN
        found.append(_ask("simultaneity", text, answer, (AT_ONCE, IN_TURN)))
    if louder:
        a, b = rng.sample(louder, 2)
        found.append(
            _ask("loudness", f"Which is louder, {a} or {b}?", louder[0], (a, b))
        )
    if absent and rng.random() < 0.5:
        text = f"Can {rng.choice(absent)} be heard?"
        found.append(_ask("presence", text, "no", ("yes", "no")))
    else:
        text = f"Can {rng.choice(names)} be heard?"
        found.append(_ask("presence", text, "yes", ("yes", "no")))
    return found


def _order(slots, rng):
    """Which of two comes first, or last; the two are never in one slot."""
    first = [name for name in slots[0] if name not in slots[-1]]
    last = [name for name in slots[-1] if name not in slots[0]]
    if first and last:
        a, b = rng.choice(first), rng.choice(last)
        word, answer = rng.choice((("first", a), ("last", b)))
    else:  # a, b, a: only the first one is asked about
        a, b = slots[0][0], slots[1][0]
        word, answer = "first", a
    a, b = rng.sample((a, b), 2)
    return _ask("order", f"Which is heard {word}, {a} or {b}?", answer, (a, b))


def _ask(kind, text, answer, others, rng=None):
    choices = list(dict.fromkeys([*others] if answer in others else [answer, *others]))
    if rng is not None:
        rng.shuffle(choices)
    return Question(kind, text, answer, tuple(choices))
