"""How scenes are put into words: captions, questions and their answers.

Every sentence is made from the scene that is rendered, so it is true of the audio; the
test suite parses the sentences back and compares. Words and grammar are a `Language`'s.
"""

import itertools
import random
from collections import Counter

from mini.languages import ENGLISH
from mini.scenes import BACKGROUNDS, MANNERS, SEEN_CLASSES, SOURCES

from espnet2_slit.common.templates import instruction, wordings


def any_instruction(rng, task, question="", language=ENGLISH):
    """One of the wordings of a task, drawn by random.Random `rng`."""
    variant = rng.randrange(len(wordings(language.code)[task]))
    return instruction(task, question, variant, language.code)


def caption(rng, scene, complete=False, language=ENGLISH):
    """One sentence that is true of the scene; `complete` tells all attributes.

    Its first letter is a capital, it has no full stop (as the public caption corpora).
    """
    mention = {
        name for name in ("level", "pitch", "speed") if complete or rng.random() < 0.85
    }
    tell = _tell_one if scene.relation == "single" else _tell_two
    body = tell(rng, scene, mention, language)
    chance = 0.9 if scene.background else 0.1
    if (complete and scene.background) or rng.random() < chance:
        background = rng.choice(language.background[scene.background])
        is_first = rng.random() < 0.25
        form = language.background_first if is_first else language.background_last
        body = form.format(background=background, body=body)
    return body[0].upper() + body[1:]


def _tell_one(rng, scene, mention, language):
    (event,) = scene.events
    words = {
        "phrase": language.phrase(rng, event, mention),
        "once": language.once(rng, event, mention),
        "clause": language.clause(rng, event, mention),
        "be": language.be[event.count > 1],
        "times": language.times_words[event.count],
    }
    return rng.choice(language.single).format(**words)


def _tell_two(rng, scene, mention, language):
    a, b = (language.phrase(rng, event, mention) for event in scene.events)
    clause_a, clause_b = (language.clause(rng, e, mention) for e in scene.events)
    forms = language.sequence
    if scene.relation == "overlap":
        forms = language.overlap
        if rng.random() < 0.5:
            a, b, clause_a, clause_b = b, a, clause_b, clause_a
    return rng.choice(forms).format(a=a, b=b, clause_a=clause_a, clause_b=clause_b)


def captions(scene, seed, number=5, language=ENGLISH):
    """`number` different captions of a scene; the first tells everything."""
    rng = random.Random(f"captions-{seed}-{scene.clip}")
    texts = [caption(rng, scene, True, language)]
    while len(texts) < number:
        text = caption(rng, scene, False, language)
        if text.lower() not in (known.lower() for known in texts):
            texts.append(text)
    return texts


def questions(rng, scene, fixed=False, classes=SEEN_CLASSES, language=ENGLISH):
    """Everything that may be asked of a scene: list of (kind, question, answer).

    Presence comes with both answers; questions about absent sounds name `classes`. A
    `fixed` wording is always the first (evaluation).
    """
    found = []

    def ask(kind, answer, **names):
        known = language.questions[kind]
        question = (known[0] if fixed else rng.choice(known)).format(**names)
        found.append((kind, question, language.answers[answer]))

    present = {event.source for event in scene.events}
    event = rng.choice(scene.events)
    absent = rng.choice([source for source in SOURCES if source not in present])
    others = [m for m, s in classes if s == event.source and m != event.manner]
    other = rng.choice(others) if others else None
    ask("presence", "yes", a=language.indefinite(event.source))
    ask("presence", "no", a=language.indefinite(absent))
    ask("presence", "yes", a=language.indefinite(event.source, event.manner))
    if other:
        ask("presence", "no", a=language.indefinite(event.source, other))
    if scene.relation == "sequence":
        ask("first", scene.events[0].source)
        ask("last", scene.events[1].source)
    if len(scene.events) == 2:
        ask("overlap", "yes" if scene.relation == "overlap" else "no")
    for event in scene.events:
        names = language.names(event)
        ask("count", event.count, **names)
        if event.manner in ("rising", "falling"):
            ask("contour", event.manner, **names)
        for kind in ("pitch", "level", "speed"):
            if getattr(event, kind):
                ask(kind, getattr(event, kind), **names)
    ask("background", scene.background)
    return found


def balanced_questions(scenes, seed, per_scene, fixed=False, language=ENGLISH):
    """Questions in which, within a kind, all answers are about equally frequent.

    Each scene, in turn, gets `per_scene` questions whose (kind, answer) was asked
    least; `fixed` is one wording per kind.

    Returns:
        list of (scene, kind, question, answer).
    """
    rng = random.Random(f"questions-{seed}-{scenes[0].clip}")
    # A kind with many possible answers is asked more often, but not that much more.
    number = {"first": len(SOURCES), "last": len(SOURCES)}
    number |= {"count": len(language.number_words), "background": len(BACKGROUNDS) + 1}
    kinds, answers, chosen = Counter(), Counter(), []
    for scene in scenes:
        candidates = questions(rng, scene, fixed, language=language)
        rng.shuffle(candidates)
        for _ in range(min(per_scene, len(candidates))):
            candidates.sort(
                key=lambda item: (
                    kinds[item[0]] / number.get(item[0], 2) ** 0.5
                    + 3 * answers[item[0], item[2]]
                )
            )
            kind, question, answer = candidates.pop(0)
            kinds[kind] += 1
            answers[kind, answer] += 1
            chosen.append((scene, kind, question, answer))
            candidates = [item for item in candidates if item[1] != question]
    return chosen


def choice_questions(scenes, seed, per_kind, language=ENGLISH):
    """Questions with four options, of which within a kind all are right equally often.

    There are `per_kind` of each kind of `language.choices`, fewer where scenes end.

    Returns:
        list of (scene, kind, question, answer, options).
    """
    rng = random.Random(f"choices-{seed}-{scenes[0].clip}")
    chosen = []
    for kind, wording in language.choices.items():
        waiting = {}  # answer -> questions
        for scene in rng.sample(scenes, len(scenes)):
            for names, answer, options in _choices(rng, kind, scene, language):
                question = wording.format(**names)
                item = (scene, kind, question, answer, rng.sample(options, 4))
                waiting.setdefault(answer, []).append(item)
        rows = itertools.chain(*itertools.zip_longest(*waiting.values()))
        chosen += [item for item in rows if item][:per_kind]
    return chosen


def _choices(rng, kind, scene, language):
    """(names in the question, right answer, four options) of a scene."""
    present = [event.source for event in scene.events]
    names = {source: language.answers[source] for source in SOURCES}
    absent = rng.sample([source for source in SOURCES if source not in present], 3)
    if kind == "order":
        if scene.relation == "sequence":
            a, b = present
            pairs = [(a, b), (b, a), (a, absent[0]), (absent[0], b)]
            told = [language.order.format(a=names[x], b=names[y]) for x, y in pairs]
            yield {}, told[0], told
        return
    for event in scene.events:
        if kind == "what":
            yield {}, names[event.source], [names[s] for s in (event.source, *absent)]
        elif kind == "how_many":
            numbers = [language.answers[number] for number in language.number_words]
            yield language.names(event), language.answers[event.count], numbers
        else:
            manners = {m: language.manner(m) for m in MANNERS}
            yield language.names(event), manners[event.manner], [*manners.values()]
