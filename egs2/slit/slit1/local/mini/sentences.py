"""How scenes are put into words: captions, questions and their answers.

Every sentence is made from the scene that is rendered, so it is true of the audio; the
test suite parses the sentences back and compares. A language is a module of word lists,
forms of sentences and the phrases of one event, as `english` and `german`.
"""

import itertools
import random

from mini import english, german
from mini.scenes import BACKGROUNDS, MANNERS, SEEN_CLASSES, SOURCES

from espnet2_slit.common.templates import instruction, wordings

LANGUAGES = {language.CODE: language for language in (english, german)}


def any_instruction(rng, task, question="", language=english):
    """One of the wordings of a task, drawn by random.Random `rng`."""
    variant = rng.randrange(len(wordings(language.CODE)[task]))
    return instruction(task, question, variant, language.CODE)


def caption(rng, scene, complete=False, language=english):
    """One sentence that is true of the scene; not every attribute is always told.

    Args:
        rng: random.Random.
        scene: Scene.
        complete: tell all attributes.
        language: module.

    Returns:
        str, first letter capital, no full stop (as the public caption corpora).
    """
    mention = {
        name for name in ("level", "pitch", "speed") if complete or rng.random() < 0.85
    }
    tell = _tell_one if scene.relation == "single" else _tell_two
    body = tell(rng, scene, mention, language)
    chance = 0.9 if scene.background else 0.1
    if (complete and scene.background) or rng.random() < chance:
        background = rng.choice(language.BACKGROUND[scene.background])
        is_first = rng.random() < 0.25
        form = language.BACKGROUND_FIRST if is_first else language.BACKGROUND_LAST
        body = form.format(background=background, body=body)
    return body[0].upper() + body[1:]


def _tell_one(rng, scene, mention, language):
    (event,) = scene.events
    words = {
        "phrase": language.phrase(rng, event, mention),
        "once": language.once(rng, event, mention),
        "clause": language.clause(rng, event, mention),
        "be": language.be(event.count),
        "times": language.TIMES_WORDS[event.count],
    }
    return rng.choice(language.SINGLE).format(**words)


def _tell_two(rng, scene, mention, language):
    a, b = (language.phrase(rng, event, mention) for event in scene.events)
    clause_a, clause_b = (language.clause(rng, e, mention) for e in scene.events)
    forms = language.SEQUENCE
    if scene.relation == "overlap":
        forms = language.OVERLAP
        if rng.random() < 0.5:
            a, b, clause_a, clause_b = b, a, clause_b, clause_a
    return rng.choice(forms).format(a=a, b=b, clause_a=clause_a, clause_b=clause_b)


def captions(scene, seed, number=5, language=english):
    """Different captions of a scene; the first tells everything.

    Args:
        scene: Scene.
        seed: int.
        number: how many.
        language: module.

    Returns:
        list of `number` different str.
    """
    rng = random.Random(f"captions-{seed}-{scene.clip}")
    texts = [caption(rng, scene, True, language)]
    while len(texts) < number:
        text = caption(rng, scene, False, language)
        if text.lower() not in (known.lower() for known in texts):
            texts.append(text)
    return texts


def questions(rng, scene, fixed=False, classes=SEEN_CLASSES, language=english):
    """Everything that may be asked of a scene.

    Args:
        rng: random.Random.
        scene: Scene.
        fixed: always the first wording (evaluation).
        classes: classes that questions about absent sounds may name.
        language: module.

    Returns:
        list of (kind, question, answer). Presence comes with both answers.
    """
    found = []

    def ask(kind, answer, **names):
        known = language.QUESTIONS[kind]
        question = (known[0] if fixed else rng.choice(known)).format(**names)
        found.append((kind, question, language.ANSWERS[answer]))

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


def balanced_questions(scenes, seed, per_scene, fixed=False, language=english):
    """Questions in which, within a kind, all answers are about equally frequent.

    Each scene, in turn, gets the questions whose (kind, answer) was asked least.

    Args:
        scenes: list of Scene.
        seed: int.
        per_scene: questions per scene.
        fixed: one wording per kind.
        language: module.

    Returns:
        list of (scene, kind, question, answer).
    """
    rng = random.Random(f"questions-{seed}-{scenes[0].clip}")
    # A kind with many possible answers is asked more often, but not that much more.
    number = {"first": len(SOURCES), "last": len(SOURCES)}
    number |= {"count": len(language.NUMBER_WORDS), "background": len(BACKGROUNDS) + 1}
    kinds, answers, chosen = {}, {}, []
    for scene in scenes:
        candidates = questions(rng, scene, fixed, language=language)
        rng.shuffle(candidates)
        for _ in range(min(per_scene, len(candidates))):
            candidates.sort(
                key=lambda item: (
                    kinds.get(item[0], 0) / number.get(item[0], 2) ** 0.5
                    + 3 * answers.get((item[0], item[2]), 0)
                )
            )
            kind, question, answer = candidates.pop(0)
            kinds[kind] = kinds.get(kind, 0) + 1
            answers[kind, answer] = answers.get((kind, answer), 0) + 1
            chosen.append((scene, kind, question, answer))
            candidates = [item for item in candidates if item[1] != question]
    return chosen


def choice_questions(scenes, seed, per_kind, language=english):
    """Questions with four options, of which within a kind all are right equally often.

    Args:
        scenes: list of Scene.
        seed: int.
        per_kind: questions of each kind of `language.CHOICES`, fewer where scenes end.
        language: module.

    Returns:
        list of (scene, kind, question, answer, options).
    """
    rng = random.Random(f"choices-{seed}-{scenes[0].clip}")
    chosen = []
    for kind, wording in language.CHOICES.items():
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
    names = {source: language.ANSWERS[source] for source in SOURCES}
    absent = rng.sample([source for source in SOURCES if source not in present], 3)
    if kind == "order":
        if scene.relation == "sequence":
            a, b = present
            pairs = [(a, b), (b, a), (a, absent[0]), (absent[0], b)]
            told = [language.ORDER.format(a=names[x], b=names[y]) for x, y in pairs]
            yield {}, told[0], told
        return
    for event in scene.events:
        if kind == "what":
            yield {}, names[event.source], [names[s] for s in (event.source, *absent)]
        elif kind == "how_many":
            numbers = [language.ANSWERS[number] for number in language.NUMBER_WORDS]
            yield language.names(event), language.ANSWERS[event.count], numbers
        else:
            manners = {m: language.manner(m) for m in MANNERS}
            yield language.names(event), manners[event.manner], [*manners.values()]
