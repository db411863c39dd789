"""What is in a scene: classes of sounds, and the scenes of every split.

An event class is a manner and a source ("rising whistle"); a scene is one or two
events. Held out: `UNSEEN_CLASSES` are in no training audio at all (their words are:
each source and each manner is heard in other pairs); `is_held_out` names combinations
of seen classes (pitch of a class, order of two sources) that only test sets have.
"""

import dataclasses
import json
import random

VERSION = 2  # raise it when a seed gives other sounds; scenes are drawn by "mini-1"
MAX_DURATION_S = 4.0

# Sources with the range of their (centre) frequency in Hz: two octaves each.
SOURCES = {
    "whistle": (700, 2800),
    "buzz": (90, 360),
    "hum": (80, 320),
    "hiss": (1500, 6000),
    "rattle": (700, 2800),
    "chime": (450, 1800),
    "honk": (180, 720),
    "growl": (70, 280),
}
MANNERS = ("rising", "falling", "pulsing", "warbling")
BACKGROUNDS = ("wind", "rain", "static")

# Two blocks of 2 sources x 2 manners: among these eight, knowing only the source or
# only the manner gives at most one half, so a higher score means both are heard.
UNSEEN_CLASSES = tuple(
    (manner, source)
    for sources, manners in (
        (("buzz", "chime"), ("rising", "warbling")),
        (("hiss", "honk"), ("falling", "pulsing")),
    )
    for source in sources
    for manner in manners
)
SEEN_CLASSES = tuple(
    (manner, source)
    for source in SOURCES
    for manner in MANNERS
    if (manner, source) not in UNSEEN_CLASSES
)

# Repetitions per manner: modulated sounds need 0.7 s to show their modulation.
MAX_COUNT = {"rising": 4, "falling": 4, "pulsing": 3, "warbling": 3}


@dataclasses.dataclass(frozen=True)
class Event:
    """One sound, heard `count` times; "" means that an attribute is in between."""

    source: str
    manner: str
    pitch: str  # low, high or ""
    level: str  # loud, quiet or ""
    speed: str  # slow or fast for pulsing and warbling, else ""
    count: int
    spans: tuple  # ((start_s, end_s), ...), `count` of them

    @property
    def label(self):
        """Name of the class."""
        return f"{self.manner} {self.source}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a clip contains; `relation` is single, sequence or overlap."""

    clip: str
    relation: str
    events: tuple
    background: str  # wind, rain, static or ""
    duration_s: float

    @property
    def span(self):
        """First start and last end of a sound, in seconds."""
        spans = [span for event in self.events for span in event.spans]
        return min(start for start, _ in spans), max(end for _, end in spans)

    @property
    def description(self):
        """Everything that words can tell of the scene, as a comparable key."""
        events = [(e.label, e.pitch, e.level, e.speed, e.count) for e in self.events]
        if self.relation == "overlap":
            events.sort()
        return (self.relation, tuple(events), self.background)


def is_held_out(relation, events):
    """True for combinations of seen classes that no training clip may have.

    `events` are (source, manner, pitch) in order.
    """
    sources = list(SOURCES)
    for source, manner, pitch in events:
        place = sources.index(source)
        # One class in three loses one of its two named pitches.
        if pitch == ("low", "high")[place % 2] and not (
            (place + MANNERS.index(manner)) % 3
        ):
            return True
    if relation == "single":
        return False
    first, second = (sources.index(event[0]) for event in events)
    if relation == "overlap":
        first, second = sorted((first, second))
    return (3 * first + second) % 5 == 0


def _plan_times(rng, relation, shapes):
    """(spans of each event, duration in s) for the (manner, count) of each in `shapes`.

    Within the corpus' limits; nothing is cut off at the end of the clip.
    """

    def unit(manner, low, high):
        shortest = 0.7 if manner in ("pulsing", "warbling") else 0.4
        return rng.uniform(max(low, shortest), max(high, shortest + 0.1))

    def repeat(start, manner, count, low, high):
        spans = []
        length = unit(manner, low, high)
        for _ in range(count):
            spans.append((start, start + length))
            start += length + rng.uniform(0.38, 0.45)
        return spans

    lead = rng.uniform(0.1, 0.25)
    if relation == "single":
        ((manner, count),) = shapes
        low, high = {1: (1.0, 2.4), 2: (0.6, 1.2), 3: (0.5, 0.8), 4: (0.4, 0.5)}[count]
        spans = [repeat(lead, manner, count, low, high)]
    elif relation == "sequence":
        spans = [repeat(lead, *shapes[0], 0.55, 0.85)]
        gap = rng.uniform(0.12, 0.3)
        spans.append(repeat(spans[0][-1][1] + gap, *shapes[1], 0.55, 0.85))
    elif relation == "overlap":
        length = rng.uniform(1.4, 2.6)
        spans = []
        for _ in shapes:
            start = lead + rng.uniform(0.0, 0.25)
            spans.append([(start, start + length * rng.uniform(0.85, 1.0))])
    else:
        raise ValueError(f"relation {relation!r}: expected single, sequence, overlap")
    end = max(span[1] for event in spans for span in event)
    duration = max(end + rng.uniform(0.1, 0.3), rng.uniform(2.0, 2.3))
    spans = tuple(tuple((round(a, 4), round(b, 4)) for a, b in one) for one in spans)
    return spans, round(min(duration, MAX_DURATION_S), 4)


def plan_scene(rng, clip, classes, relation=None, counts=None):
    """Draw one Scene.

    Args:
        rng: random.Random.
        clip: its id.
        classes: allowed (manner, source) pairs.
        relation: single, sequence or overlap; None draws 9 : 6 : 5.
        counts: allowed counts for a single event; None allows all.
    """
    if relation is None:
        relation = rng.choices(("single", "sequence", "overlap"), (9, 6, 5))[0]
    number = 1 if relation == "single" else 2
    pairs = []
    while len({source for _, source in pairs}) < number:
        pairs = [rng.choice(classes) for _ in range(number)]
    if relation == "single":
        allowed = [n for n in counts or (1, 2, 3, 4) if n <= MAX_COUNT[pairs[0][0]]]
        numbers = [rng.choice(allowed)]
    elif relation == "sequence":
        numbers = rng.choice(([1, 1], [1, 1], [2, 1], [1, 2]))
    else:
        numbers = [1, 1]
    manners = [manner for manner, _ in pairs]
    shapes = list(zip(manners, numbers, strict=True))
    spans, duration = _plan_times(rng, relation, shapes)
    events = []
    for (manner, source), count, span in zip(pairs, numbers, spans, strict=True):
        modulated = manner in ("pulsing", "warbling")
        events.append(
            Event(
                source=source,
                manner=manner,
                pitch=rng.choice(("low", "high", "")),
                level=rng.choice(("loud", "quiet", "")),
                speed=rng.choice(("slow", "fast")) if modulated else "",
                count=count,
                spans=span,
            )
        )
    background = rng.choice(("", "") + BACKGROUNDS)
    return Scene(clip, relation, tuple(events), background, duration)


def _held_out(scene):
    return is_held_out(
        scene.relation, [(e.source, e.manner, e.pitch) for e in scene.events]
    )


def plan_corpus(seed, sizes):
    """Scenes of every split.

    Args:
        seed: of all draws.
        sizes: clips of train, valid, test, test_unseen; clips per class of
            test_class and test_class_unseen.

    Returns:
        dict split -> list of Scene. Descriptions repeat in training only.
    """
    splits = {}
    for split in ("train", "valid", "test", "test_unseen"):
        rng = random.Random(f"mini-1-{seed}-{split}")
        scenes, known = [], set()
        while len(scenes) < sizes[split]:
            scene = plan_scene(rng, f"mini_{split}_{len(scenes):05d}", SEEN_CLASSES)
            is_new = split == "train" or scene.description not in known
            if is_new and _held_out(scene) == (split == "test_unseen"):
                known.add(scene.description)
                scenes.append(scene)
        splits[split] = scenes
    for split, classes in (
        ("test_class", SEEN_CLASSES),
        ("test_class_unseen", UNSEEN_CLASSES),
    ):
        rng = random.Random(f"mini-1-{seed}-{split}")
        scenes = []
        for pair in classes:
            wanted = len(scenes) + sizes[split]
            while len(scenes) < wanted:
                clip = f"mini_{split}_{len(scenes):05d}"
                scene = plan_scene(rng, clip, (pair,), "single", (1, 2))
                if not _held_out(scene):
                    scenes.append(scene)
        splits[split] = scenes
    return splits


@dataclasses.dataclass(frozen=True)
class Recording:
    """Scenes of one background in a row; `parts` are (start in s, scene)."""

    clip: str
    parts: tuple
    background: str
    duration_s: float


def plan_recordings(seed, number):
    """`number` Recordings of 30 to 60 s, in which no class of sound comes twice.

    Their combinations are those that training clips may have.
    """
    rng = random.Random(f"mini-1-{seed}-test_moments")
    recordings = []
    for index in range(number):
        clip = f"mini_test_moments_{index:05d}"
        background = rng.choice(("", "", *BACKGROUNDS))
        duration = round(rng.uniform(30.0, 60.0), 2)
        parts, heard, time_s = [], set(), rng.uniform(0.5, 5.0)
        while True:
            scene = plan_scene(rng, f"{clip}_{len(parts)}", SEEN_CLASSES)
            labels = {event.label for event in scene.events}
            if _held_out(scene) or labels & heard:
                continue
            if time_s + scene.duration_s > duration:
                break
            heard |= labels
            scene = dataclasses.replace(scene, background=background)
            parts.append((round(time_s, 2), scene))
            time_s += scene.duration_s + rng.uniform(0.5, 5.0)
        recordings.append(Recording(clip, tuple(parts), background, duration))
    return recordings


def scene_to_json(scene):
    """One line of scenes.jsonl."""
    return json.dumps(dataclasses.asdict(scene))


def scene_from_json(line):
    """Inverse of scene_to_json."""
    fields = json.loads(line)
    fields["events"] = tuple(
        Event(**{**event, "spans": tuple(map(tuple, event["spans"]))})
        for event in fields["events"]
    )
    return Scene(**fields)
