#!/usr/bin/env python3
"""The mini corpus: synthesised sound scenes with true captions, questions and labels.

Owns what is in a scene, how it sounds and how it is put into words; writes audio,
`scenes.jsonl` (what is heard when) and the data directories of the recipe. Knows
nothing of models. A scene is one or two sound events; an event class is a manner and
a source ("rising whistle"). Every sentence is made from the scene that is rendered,
so it is true of the audio; the test suite parses the sentences back and compares.

Held out: `UNSEEN_CLASSES` are in no training audio at all (their words are: each
source and each manner is heard in other pairs); `is_held_out` names combinations of
seen classes (pitch of a class, order of two sources) that only test sets have.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import scipy.fft
import soundfile

from espnet2_slit.common.templates import TEMPLATES, instruction

LOGGER = logging.getLogger("mini")
VERSION = 1  # of the audio: raise it when the same seed would give other sounds
# Samples of a clip in the instruction sets, beside its class name.
INSTRUCTION_MIX = {"questions_per_scene": 3, "captions_per_scene": 2}
SAMPLE_RATE = 16000
MAX_DURATION_S = 4.0
MIN_DURATION_S = 2.0

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
PLURAL = {source: source + "s" for source in SOURCES} | {
    "buzz": "buzzes",
    "hiss": "hisses",
}

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
LEVEL_DBFS = {"loud": -17.0, "": -25.0, "quiet": -33.0}  # RMS while sounding
# Part of the source's range in octaves/2, with gaps between the three.
PITCH_RANGE = {"low": (0.0, 0.25), "": (0.4, 0.6), "high": (0.75, 1.0)}
RATE_HZ = {
    ("pulsing", "slow"): (3.6, 4.8),
    ("pulsing", "fast"): (9.0, 12.0),
    ("warbling", "slow"): (2.6, 3.8),
    ("warbling", "fast"): (8.0, 11.0),
}


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
    def description(self):
        """Everything that words can tell of the scene, as a comparable key."""
        events = [(e.label, e.pitch, e.level, e.speed, e.count) for e in self.events]
        if self.relation == "overlap":
            events.sort()
        return (self.relation, tuple(events), self.background)


# ---------------------------------------------------------------------------------
# Which scenes there are
# ---------------------------------------------------------------------------------


def is_held_out(relation, events):
    """True for combinations of seen classes that no training clip may have.

    Args:
        relation: single, sequence or overlap.
        events: (source, manner, pitch) of each event, in order.
    """
    sources = list(SOURCES)
    for source, manner, pitch in events:
        held_pitch = ("low", "high")[sources.index(source) % 2]
        # One class in three loses one of its two named pitches.
        if pitch == held_pitch and (
            (sources.index(source) + MANNERS.index(manner)) % 3 == 0
        ):
            return True
    if relation == "single":
        return False
    first, second = (sources.index(event[0]) for event in events)
    if relation == "overlap":
        first, second = sorted((first, second))
    return (3 * first + second) % 5 == 0


def _plan_times(rng, relation, shapes):
    """Start and end of each repetition; nothing is cut off at the end of the clip.

    Args:
        rng: random.Random.
        relation: single, sequence or overlap.
        shapes: (manner, count) of each event.

    Returns:
        (spans of each event, duration in s), within the corpus' limits.
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
    rounded = tuple(
        tuple((round(a, 4), round(b, 4)) for a, b in event) for event in spans
    )
    return rounded, round(min(duration, MAX_DURATION_S), 4)


def plan_scene(rng, clip, classes, relation=None, counts=None):
    """Draw one scene.

    Args:
        rng: random.Random.
        clip: clip id.
        classes: allowed (manner, source) pairs.
        relation: single, sequence or overlap; None draws 9 : 6 : 5.
        counts: allowed counts for a single event; None allows all.

    Returns:
        Scene.
    """
    if relation is None:
        relation = rng.choices(("single", "sequence", "overlap"), (9, 6, 5))[0]
    number = 1 if relation == "single" else 2
    while True:
        pairs = [rng.choice(classes) for _ in range(number)]
        if len({source for _, source in pairs}) == number:
            break
    if relation == "single":
        allowed = [n for n in counts or (1, 2, 3, 4) if n <= MAX_COUNT[pairs[0][0]]]
        numbers = [rng.choice(allowed)]
    elif relation == "sequence":
        numbers = rng.choice(([1, 1], [1, 1], [2, 1], [1, 2]))
    else:
        numbers = [1, 1]
    spans, duration = _plan_times(
        rng, relation, [(pair[0], n) for pair, n in zip(pairs, numbers, strict=False)]
    )
    events = []
    for (manner, source), count, span in zip(
        pairs, numbers, spans, strict=False  # a sound alone has one pair
    ):
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
        seed: int.
        sizes: clips of train, valid, test, test_unseen; clips per class of
            test_class and test_class_unseen.

    Returns:
        dict split -> list of Scene. Descriptions repeat in training only.
    """
    splits = {}
    for split in ("train", "valid", "test", "test_unseen"):
        rng = random.Random(f"mini-{VERSION}-{seed}-{split}")
        scenes, known = [], set()
        while len(scenes) < sizes[split]:
            clip = f"mini_{split}_{len(scenes):05d}"
            scene = plan_scene(rng, clip, SEEN_CLASSES)
            if _held_out(scene) != (split == "test_unseen"):
                continue
            if split != "train" and scene.description in known:
                continue
            known.add(scene.description)
            scenes.append(scene)
        splits[split] = scenes
    for split, classes in (
        ("test_class", SEEN_CLASSES),
        ("test_class_unseen", UNSEEN_CLASSES),
    ):
        rng = random.Random(f"mini-{VERSION}-{seed}-{split}")
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


# ---------------------------------------------------------------------------------
# How they sound
# ---------------------------------------------------------------------------------


def _contour(rng, event, samples):
    """Frequency (Hz) and gain of one repetition, each (samples,)."""
    low, high = SOURCES[event.source]
    place = rng.uniform(*PITCH_RANGE[event.pitch])
    time_s = np.arange(samples) / SAMPLE_RATE
    position = np.linspace(-0.5, 0.5, samples)
    octaves = rng.uniform(-0.04, 0.04) * np.sin(
        2 * np.pi * (rng.uniform(0.3, 1.5) * time_s + rng.uniform())
    )
    gain = np.ones(samples)
    if event.manner in ("rising", "falling"):
        sweep = rng.uniform(0.9, 1.4) * (1 if event.manner == "rising" else -1)
        bend = rng.uniform(0.8, 1.3)  # not every slide is straight
        octaves = octaves + sweep * np.sign(position) * 0.5 * (
            np.abs(2 * position) ** bend
        )
    else:
        rate = rng.uniform(*RATE_HZ[event.manner, event.speed])
        phase = rate * time_s
        if event.manner == "pulsing":
            duty = rng.uniform(0.45, 0.6)
            edge = 0.004 * rate  # 4 ms ramps, in periods
            cycle = phase % 1.0
            gain = np.clip(np.minimum(cycle, duty - cycle) / edge, 0.0, 1.0)
        else:
            octaves = octaves + rng.uniform(0.16, 0.28) * np.sin(
                2 * np.pi * (phase + rng.uniform())
            )
    return low * (high / low) ** place * 2.0**octaves, gain


def _harmonics(phase, frequency, amplitudes, ratios=None):
    """Sum of partials that stay below 7.6 kHz; phase (samples,) in cycles."""
    out = np.zeros_like(phase)
    top = frequency.max()
    for number, amplitude in enumerate(amplitudes, start=1):
        ratio = number if ratios is None else ratios[number - 1]
        if amplitude > 1e-3 and top * ratio < 7600:
            out += amplitude * np.sin(2 * np.pi * ratio * phase)
    return out


def _render_source(rng, source, frequency):
    """One repetition of a source following `frequency` (samples,), any level."""
    samples = len(frequency)
    phase = np.cumsum(frequency) / SAMPLE_RATE + rng.uniform()
    noise = rng.standard_normal(samples)
    time_s = np.arange(samples) / SAMPLE_RATE
    if source == "whistle":
        tone = _harmonics(phase, frequency, [1.0, rng.uniform(0.0, 0.12)])
        return tone + rng.uniform(0.01, 0.06) * noise
    if source == "buzz":
        tilt = rng.uniform(0.5, 0.9)
        return _harmonics(phase, frequency, np.arange(1, 33) ** -tilt)
    if source == "hum":
        weights = [1.0, rng.uniform(0.3, 0.7), rng.uniform(0.1, 0.3), 0.05]
        beat = 1 + rng.uniform(0.0, 0.2) * np.sin(2 * np.pi * 1.7 * time_s)
        return _harmonics(phase, frequency, weights) * beat
    if source == "hiss":
        # Low-pass noise moved up to the centre frequency: a band that can glide.
        width = int(SAMPLE_RATE / rng.uniform(500, 1100))
        window = np.hanning(width + 2)[1:-1]
        band = np.fft.irfft(
            np.fft.rfft(np.stack([noise, rng.standard_normal(samples)]))
            * np.fft.rfft(window, samples),
            samples,
        )
        angle = 2 * np.pi * phase
        return band[0] * np.cos(angle) - band[1] * np.sin(angle)
    if source == "rattle":
        out = np.zeros(samples + 512)
        grain_s = np.arange(512) / SAMPLE_RATE
        rate = rng.uniform(24, 34)
        start = 0.0
        decay = np.exp(-grain_s / rng.uniform(0.003, 0.006))
        while start < samples:
            at = int(start)
            knock = np.sin(2 * np.pi * frequency[at] * grain_s + rng.uniform(0, 6.3))
            out[at : at + 512] += rng.uniform(0.5, 1.0) * knock * decay
            start += SAMPLE_RATE / rate * rng.uniform(0.6, 1.4)
        return out[:samples]
    if source == "chime":
        ratios = np.array([1.0, 2.0, 2.76, 4.1, 5.4]) * rng.uniform(0.985, 1.015, 5)
        weights = [1.0, 0.5, 0.6, 0.3, 0.25] * rng.uniform(0.6, 1.4, 5)
        ring = np.exp(-time_s / (rng.uniform(0.6, 1.2) * time_s[-1]))
        return _harmonics(phase, frequency, weights, ratios) * ring
    if source == "honk":
        # Odd harmonics under a formant, as a horn's.
        numbers = np.arange(1, 16)
        peak = rng.uniform(2.5, 4.5)
        weights = np.exp(-(((numbers - peak) / 2.5) ** 2)) * np.where(
            numbers % 2 == 1, 1.0, rng.uniform(0.1, 0.3)
        )
        return _harmonics(phase, frequency, weights)
    if source == "growl":
        # A harmonic tone made rough by noise that multiplies it.
        smooth = int(SAMPLE_RATE / rng.uniform(35, 70))
        rough = np.convolve(noise, np.ones(smooth) / np.sqrt(smooth), mode="same")
        tone = _harmonics(phase, frequency, np.arange(1, 17) ** -0.7)
        return tone * (0.35 + rough) + 0.15 * noise
    raise ValueError(f"source {source!r}: expected one of {', '.join(SOURCES)}")


def _render_background(rng, kind, samples):
    """Noise (samples,) with RMS 1."""
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    time_s = np.arange(samples) / SAMPLE_RATE
    if kind == "wind":
        spectrum *= 1 / (1 + (frequency / rng.uniform(150, 350)) ** 2)
        gust = 1 + 0.6 * np.sin(
            2 * np.pi * (rng.uniform(0.2, 0.6) * time_s + rng.uniform())
        )
        noise = np.fft.irfft(spectrum, samples) * gust
    elif kind == "rain":
        spectrum *= (frequency / 4000) ** 2 / (1 + (frequency / 4000) ** 4)
        noise = np.fft.irfft(spectrum, samples)
        noise /= np.sqrt(np.mean(noise**2))
        drops = rng.integers(0, samples - 64, int(40 * samples / SAMPLE_RATE))
        splash = np.exp(-np.arange(64) / 12.0)
        for at in drops:
            noise[at : at + 64] += rng.normal(0.0, 5.0) * splash
    else:
        noise = np.fft.irfft(spectrum, samples)
    return noise / np.sqrt(np.mean(noise**2))


def render(scene, seed):
    """Waveform of a scene.

    Args:
        scene: Scene.
        seed: int; with the clip id it fixes every random number.

    Returns:
        (S,) int16 at 16 kHz.
    """
    digest = hashlib.blake2b(f"{seed}-{scene.clip}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    samples = round(scene.duration_s * SAMPLE_RATE)
    size = scipy.fft.next_fast_len(samples + 4000, real=True)  # room for the tail
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    # One room per clip: exponential noise tail after the direct sound.
    room_s = rng.uniform(0.05, 0.22)
    tail_s = np.arange(int(room_s * SAMPLE_RATE)) / SAMPLE_RATE
    impulse = rng.standard_normal(len(tail_s)) * np.exp(-6.9 * tail_s / room_s)
    impulse *= rng.uniform(0.0, 0.35) / np.sqrt(np.sum(impulse**2))
    impulse[0] = 1.0
    room = np.fft.rfft(impulse, size)
    log_frequency = np.log2(np.maximum(frequency, 20.0))
    mix = np.zeros(samples)
    for event in scene.events:
        layer = np.zeros(samples)
        active = np.zeros(samples, dtype=bool)
        for start_s, end_s in event.spans:
            start, end = int(start_s * SAMPLE_RATE), int(end_s * SAMPLE_RATE)
            trajectory, gain = _contour(rng, event, end - start)
            sound = _render_source(rng, event.source, trajectory) * gain
            ramp = int(rng.uniform(0.008, 0.04) * SAMPLE_RATE)
            edge = np.sin(np.linspace(0, np.pi / 2, ramp)) ** 2
            sound[:ramp] *= edge
            sound[-ramp:] *= edge[::-1]
            layer[start:end] += sound
            active[start:end] = True
        # Each layer gets its own gentle random colour.
        colour_db = sum(
            rng.normal(0.0, 2.5)
            * np.exp(-(((log_frequency - rng.uniform(6, 13)) / 1.2) ** 2))
            for _ in range(3)
        )
        spectrum = np.fft.rfft(layer, size) * room * 10 ** (colour_db / 20)
        layer = np.fft.irfft(spectrum, size)[:samples]
        level = LEVEL_DBFS[event.level] + rng.uniform(-1.5, 1.5)
        # Round off rare peaks (of rattles), so that loud sounds fit into 16 bits.
        layer /= 3 * np.sqrt(np.mean(layer[active] ** 2))
        layer = np.tanh(layer)
        rms = np.sqrt(np.mean(layer[active] ** 2))
        mix += layer * (10 ** (level / 20) / rms)
    if scene.background:
        level = rng.uniform(-46.0, -41.0)
        mix += 10 ** (level / 20) * _render_background(rng, scene.background, samples)
    mix += 10 ** (rng.uniform(-73, -65) / 20) * rng.standard_normal(samples)
    peak = np.abs(mix).max()
    if peak > 0.98:  # two loud sounds at the same time, by a decibel or two
        mix *= 0.98 / peak
    return np.round(mix * 32767).astype(np.int16)


# ---------------------------------------------------------------------------------
# How they are put into words
# ---------------------------------------------------------------------------------

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
BACKGROUND_PHRASES = {
    "wind": ("with wind in the background", "in the wind", "on a windy day"),
    "rain": ("with rain in the background", "in the rain", "on a rainy day"),
    "static": (
        "with static in the background",
        "with background static",
        "through static",
    ),
    "": ("without background noise", "with no background noise"),
}


def any_instruction(rng, task, question=""):
    """One of the wordings of a task, drawn by random.Random `rng`."""
    return instruction(task, question, rng.randrange(len(TEMPLATES[task])))


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


def _noun_phrase(rng, event, mention):
    """'a loud rising whistle', 'three whistles' with their adjectives."""
    words = _adjectives(rng, event, mention)
    if event.count > 1:
        return " ".join([NUMBER_WORDS[event.count], *words, PLURAL[event.source]])
    return _article(" ".join([*words, event.source]))


def _clause(rng, event, mention):
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


def _single_sentence(rng, event, mention):
    phrase = _noun_phrase(rng, event, mention)
    be = "is" if event.count == 1 else "are"
    once = _article(" ".join([*_adjectives(rng, event, mention), event.source]))
    return rng.choice(
        (
            phrase,
            f"{phrase} {be} heard",
            f"there {be} {phrase}",
            f"the sound of {phrase}",
            _clause(rng, event, mention),
            f"{once} is heard {TIMES_WORDS[event.count]}",
        )
    )


def _pair_sentence(rng, relation, events, mention):
    first, second = events
    a, b = (_noun_phrase(rng, event, mention) for event in events)
    clause_a, clause_b = (_clause(rng, event, mention) for event in events)
    if relation == "sequence":
        return rng.choice(
            (
                f"{a} followed by {b}",
                f"{a}, then {b}",
                f"first {a}, then {b}",
                f"{a} before {b}",
                f"{b} after {a}",
                f"{clause_a}, then {clause_b}",
                f"{clause_a} before {clause_b}",
                f"{clause_b} after {clause_a}",
            )
        )
    if rng.random() < 0.5:
        a, b, clause_a, clause_b = b, a, clause_b, clause_a
    return rng.choice(
        (
            f"{a} and {b} at the same time",
            f"{a} together with {b}",
            f"{a} mixed with {b}",
            f"{a} overlapping with {b}",
            f"{clause_a} while {clause_b}",
            f"{clause_a} as {clause_b}",
        )
    )


def caption(rng, scene, complete=False):
    """One sentence that is true of the scene; not every attribute is always told.

    Args:
        rng: random.Random.
        scene: Scene.
        complete: tell all attributes.

    Returns:
        str, first letter capital, no full stop (as the public caption corpora).
    """
    mention = {
        name for name in ("level", "pitch", "speed") if complete or rng.random() < 0.85
    }
    if scene.relation == "single":
        body = _single_sentence(rng, scene.events[0], mention)
    else:
        body = _pair_sentence(rng, scene.relation, scene.events, mention)
    chance = 0.9 if scene.background else 0.1
    if (complete and scene.background) or rng.random() < chance:
        phrase = rng.choice(BACKGROUND_PHRASES[scene.background])
        if rng.random() < 0.25:
            body = f"{phrase}, {body}"
        else:
            body = f"{body} {phrase}"
    return body[0].upper() + body[1:]


def captions(scene, seed, number=5):
    """Different captions of a scene; the first tells everything.

    Args:
        scene: Scene.
        seed: int.
        number: how many.

    Returns:
        list of `number` different str.
    """
    rng = random.Random(f"captions-{seed}-{scene.clip}")
    texts = [caption(rng, scene, complete=True)]
    while len(texts) < number:
        text = caption(rng, scene)
        if text.lower() not in (known.lower() for known in texts):
            texts.append(text)
    return texts


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
ANSWERS = (
    ["yes", "no"]
    + list(NUMBER_WORDS.values())
    + ["rising", "falling", "high", "low", "loud", "quiet", "slow", "fast"]
    + [*BACKGROUNDS, "nothing"]
    + list(SOURCES)
)
MANNER_INFINITIVE = {"pulsing": "pulse", "warbling": "warble"}


def questions(rng, scene, fixed=False, classes=SEEN_CLASSES):
    """Everything that may be asked of a scene.

    Args:
        rng: random.Random.
        scene: Scene.
        fixed: always the first wording (evaluation).
        classes: classes that questions about absent sounds may name.

    Returns:
        list of (kind, question, answer). Presence comes with both answers.
    """

    def word(kind, **names):
        wording = QUESTIONS[kind][0] if fixed else rng.choice(QUESTIONS[kind])
        return wording.format(**names)

    found = []
    present = {event.source for event in scene.events}
    event = rng.choice(scene.events)
    absent = rng.choice([source for source in SOURCES if source not in present])
    others = [m for m, s in classes if s == event.source and m != event.manner]
    yes, no = (event.source, absent), (event.label, None)
    if others:
        no = (event.label, f"{rng.choice(others)} {event.source}")
    for true, false in (yes, no):
        found.append(("presence", word("presence", a=_article(true)), "yes"))
        if false:
            found.append(("presence", word("presence", a=_article(false)), "no"))
    if scene.relation == "sequence":
        found.append(("first", word("first"), scene.events[0].source))
        found.append(("last", word("last"), scene.events[1].source))
    if len(scene.events) == 2:
        answer = "yes" if scene.relation == "overlap" else "no"
        found.append(("overlap", word("overlap"), answer))
    for event in scene.events:
        names = {
            "s": event.source,
            "p": PLURAL[event.source],
            "v": MANNER_INFINITIVE.get(event.manner, ""),
        }
        found.append(("count", word("count", **names), NUMBER_WORDS[event.count]))
        if event.manner in ("rising", "falling"):
            found.append(("contour", word("contour", **names), event.manner))
        for kind in ("pitch", "level", "speed"):
            if getattr(event, kind):
                found.append((kind, word(kind, **names), getattr(event, kind)))
    found.append(("background", word("background"), scene.background or "nothing"))
    return found


def balanced_questions(scenes, seed, per_scene, fixed=False):
    """Questions in which, within a kind, all answers are about equally frequent.

    Each scene, in turn, gets the questions whose (kind, answer) was asked least.

    Args:
        scenes: list of Scene.
        seed: int.
        per_scene: questions per scene.
        fixed: one wording per kind.

    Returns:
        list of (scene, kind, question, answer).
    """
    rng = random.Random(f"questions-{seed}-{scenes[0].clip}")
    # A kind with many possible answers is asked more often, but not that much more.
    share = {
        kind: max(2, len(answers)) ** 0.5
        for kind, answers in (
            ("first", SOURCES),
            ("last", SOURCES),
            ("count", NUMBER_WORDS),
            ("background", (*BACKGROUNDS, "")),
        )
    }
    kinds, answers, chosen = {}, {}, []
    for scene in scenes:
        candidates = questions(rng, scene, fixed)
        rng.shuffle(candidates)
        for _ in range(min(per_scene, len(candidates))):
            candidates.sort(
                key=lambda item: (
                    kinds.get(item[0], 0) / share.get(item[0], 2**0.5)
                    + 3 * answers.get((item[0], item[2]), 0)
                )
            )
            kind, question, answer = candidates.pop(0)
            kinds[kind] = kinds.get(kind, 0) + 1
            answers[kind, answer] = answers.get((kind, answer), 0) + 1
            chosen.append((scene, kind, question, answer))
            candidates = [item for item in candidates if item[1] != question]
    return chosen


# ---------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------


def _write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_data_dir(directory, samples, audio, info, references=None, lists=None):
    """Write one Kaldi-style directory; it appears whole or not at all.

    Args:
        directory: Path.
        samples: dict sample id -> dict with clip, text and optionally instruction,
            task, category.
        audio: dict clip id -> path as it is to stand in wav.scp.
        info: content of set.json.
        references: list of (clip id, caption) or None.
        lists: dict file name -> list of lines without key, or None.
    """
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    keys = sorted(samples, key=lambda key: key.encode())
    columns = {
        "wav.scp": lambda key: audio[samples[key]["clip"]],
        "text": lambda key: samples[key]["text"],
        "utt2spk": lambda key: "dummy",
        "utt2audio": lambda key: samples[key]["clip"],
    }
    for name, field in (
        ("instruction", "instruction"),
        ("utt2task", "task"),
        ("utt2category", "category"),
    ):
        if field in samples[keys[0]]:
            columns[name] = lambda key, field=field: samples[key][field]
    for name, value in columns.items():
        _write_lines(temporary / name, (f"{key} {value(key)}" for key in keys))
    _write_lines(temporary / "spk2utt", [" ".join(["dummy", *keys])])
    if references is not None:
        lines = sorted(
            (f"{clip} {text}" for clip, text in references),
            key=lambda line: line.encode(),
        )
        _write_lines(temporary / "references", lines)
    for name, lines in (lists or {}).items():
        _write_lines(temporary / name, lines)
    text = json.dumps(info, indent=2) + "\n"
    (temporary / "set.json").write_text(text, encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(directory)


def _info(name, split, variant, tasks, zero_shot=False, notes=""):
    return {
        "schema": 1,
        "name": name,
        "corpus": "mini",
        "split": split,
        "variant": variant,
        "tasks": tasks,
        "zero_shot": zero_shot,
        "sample_rate": SAMPLE_RATE,
        "notes": notes,
    }


def _caption_samples(scenes, seed):
    return {
        f"{scene.clip}_c{index}": {"clip": scene.clip, "text": text}
        for scene in scenes
        for index, text in enumerate(captions(scene, seed))
    }


def _instruction_samples(scenes, seed, questions_per_scene, captions_per_scene):
    """Captioning, questions and class names with varied instructions."""
    rng = random.Random(f"instructions-{seed}-{scenes[0].clip}")
    samples = {}

    def add(key, scene, task, question, text):
        samples[key] = {
            "clip": scene.clip,
            "text": text,
            "instruction": any_instruction(rng, task, question),
            "task": task,
            "category": f"mini_{task}",
        }

    for scene in scenes:
        texts = captions(scene, seed)
        for index, text in enumerate(rng.sample(texts, captions_per_scene)):
            add(f"{scene.clip}_c{index}", scene, "caption", "", text)
        if scene.relation == "single":
            label = scene.events[0].label
            add(f"{scene.clip}_l0", scene, "classification", "", label)
    numbers = {}
    for scene, _, question, answer in balanced_questions(
        scenes, seed, questions_per_scene
    ):
        number = numbers[scene.clip] = numbers.get(scene.clip, -1) + 1
        key = f"{scene.clip}_q{number}"
        add(key, scene, "question_answering", question, answer)
    return samples


def _priors(chosen):
    """Share of the commonest answer, and of the commonest answer of each kind."""
    answers, kinds = {}, {}
    for _, kind, _, answer in chosen:
        answers[answer] = answers.get(answer, 0) + 1
        kinds.setdefault(kind, {}).setdefault(answer, 0)
        kinds[kind][answer] += 1
    overall = max(answers.values()) / len(chosen)
    per_kind = sum(max(count.values()) for count in kinds.values()) / len(chosen)
    return overall, per_kind


def write_data_dirs(splits, seed, data_dir, audio):
    """Write every set of the recipe.

    Args:
        splits: as of plan_corpus.
        seed: int.
        data_dir: Path, the recipe's `data`.
        audio: dict clip id -> path.
    """
    for split in ("train", "valid"):
        scenes = splits[split]
        name = f"{split}_caption"
        samples = _caption_samples(scenes, seed)
        info = _info(name, split, "five captions a clip", [])
        write_data_dir(data_dir / name, samples, audio, info)
        name = f"{split}_instruction"
        samples = _instruction_samples(scenes, seed, **INSTRUCTION_MIX)
        info = _info(name, split, "captions, questions, class names", [])
        write_data_dir(data_dir / name, samples, audio, info)

    for name, split, variant in (
        ("test_caption", "test", "seen combinations"),
        ("test_caption_unseen", "test_unseen", "unseen combinations of seen classes"),
    ):
        texts = {scene.clip: captions(scene, seed) for scene in splits[split]}
        samples = {
            clip: {
                "clip": clip,
                "text": lines[0],
                "instruction": instruction("caption"),
                "task": "caption",
            }
            for clip, lines in texts.items()
        }
        references = [(clip, text) for clip, lines in texts.items() for text in lines]
        info = _info(
            name,
            "test",
            variant,
            ["caption", "retrieval"],
            zero_shot=split == "test_unseen",
            notes=f"chance of R@1 among {len(texts)} clips: {1 / len(texts):.4f}",
        )
        write_data_dir(data_dir / name, samples, audio, info, references)

    chosen = balanced_questions(splits["test"], seed, 4, fixed=True)
    numbers = {}
    samples = {}
    for scene, _, question, answer in chosen:
        number = numbers[scene.clip] = numbers.get(scene.clip, -1) + 1
        samples[f"{scene.clip}_q{number}"] = {
            "clip": scene.clip,
            "text": answer,
            "instruction": question,
            "task": "question_answering",
        }
    overall, per_kind = _priors(chosen)
    info = _info(
        "test_qa",
        "test",
        "seen combinations",
        ["question_answering"],
        notes=f"always the commonest answer: {overall:.4f}; the commonest answer of "
        f"each kind of question: {per_kind:.4f}; "
        f"chance among {len(ANSWERS)} answers: {1 / len(ANSWERS):.4f}",
    )
    lists = {"answers": ANSWERS}
    write_data_dir(data_dir / "test_qa", samples, audio, info, lists=lists)

    for name, classes, variant in (
        ("test_class", SEEN_CLASSES, "seen classes"),
        ("test_class_unseen", UNSEEN_CLASSES, "classes in no training audio"),
    ):
        samples = {
            scene.clip: {
                "clip": scene.clip,
                "text": scene.events[0].label,
                "instruction": instruction("classification"),
                "task": "classification",
            }
            for scene in splits[name]
        }
        labels = sorted(f"{manner} {source}" for manner, source in classes)
        info = _info(
            name,
            "test",
            variant,
            ["classification"],
            zero_shot=name == "test_class_unseen",
            notes=f"chance among {len(labels)} classes: {1 / len(labels):.4f}",
        )
        write_data_dir(data_dir / name, samples, audio, info, lists={"labels": labels})


def _render_to_file(task):
    scene, seed, path = task
    waveform = render(scene, seed)
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        soundfile.write(
            temporary, waveform, SAMPLE_RATE, subtype="PCM_16", format="FLAC"
        )
        temporary.rename(path)
    return scene.clip, hashlib.blake2b(waveform.tobytes(), digest_size=16).hexdigest()


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


def make_corpus(data_dir, audio_dir, seed, sizes, jobs=2):
    """Make the whole corpus, or nothing if it is there already.

    Args:
        data_dir: Path for the data directories.
        audio_dir: Path for the audio files and scenes.jsonl.
        seed: int.
        sizes: as of plan_corpus.
        jobs: processes that render audio; the result does not depend on it.

    Returns:
        dict: what was made, also in audio_dir/corpus.json, which is written last.
    """
    wanted = {"version": VERSION, "seed": seed, "sizes": sizes}
    stamp = audio_dir / "corpus.json"
    splits = plan_corpus(seed, sizes)
    scenes = [scene for split in splits.values() for scene in split]
    paths = {
        scene.clip: audio_dir / scene.clip.rsplit("_", 1)[0] / f"{scene.clip}.flac"
        for scene in scenes
    }
    audio = {clip: str(path) for clip, path in paths.items()}
    found = json.loads(stamp.read_text()) if stamp.exists() else None
    complete = (
        found is not None
        and {key: found.get(key) for key in wanted} == wanted
        and all(path.exists() for path in paths.values())
    )
    if complete:
        LOGGER.info("Mini corpus: %d clips are there (%s)", len(scenes), stamp)
    else:
        if found is not None and {k: found.get(k) for k in wanted} != wanted:
            LOGGER.info("Mini corpus: other settings than in %s, making anew", stamp)
            for path in paths.values():
                path.unlink(missing_ok=True)
        stamp.unlink(missing_ok=True)
        for folder in {path.parent for path in paths.values()}:
            folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        digests = {}
        tasks = [(scene, seed, paths[scene.clip]) for scene in scenes]
        with contextlib.ExitStack() as stack:
            results = map(_render_to_file, tasks)
            if jobs > 1:
                pool = concurrent.futures.ProcessPoolExecutor(
                    jobs, mp_context=multiprocessing.get_context("spawn")
                )
                results = stack.enter_context(pool).map(
                    _render_to_file, tasks, chunksize=32
                )
            for clip, digest in results:
                digests[clip] = digest
                if len(digests) % 500 == 0 or len(digests) == len(scenes):
                    LOGGER.info(
                        "Mini corpus: %d of %d clips, %.0f s",
                        len(digests),
                        len(scenes),
                        time.monotonic() - started,
                    )
        text = "".join(f"{clip} {digests[clip]}\n" for clip in sorted(digests))
        _write_lines(audio_dir / "scenes.jsonl", map(scene_to_json, scenes))
        found = {
            **wanted,
            "clips": len(scenes),
            "hours": round(sum(scene.duration_s for scene in scenes) / 3600, 3),
            "audio_digest": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
        }
        temporary = stamp.with_name(f".{stamp.name}.{os.getpid()}")
        temporary.write_text(json.dumps(found, indent=2) + "\n")
        temporary.rename(stamp)
    # Text costs a second: always written, so the directories are always right.
    write_data_dirs(splits, seed, data_dir, audio)
    return found


def text_digest(data_dir):
    """Digest of every text file of the data directories, without audio paths."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(data_dir.glob("*/*")):
        if path.name != "wav.scp":
            digest.update(f"{path.parent.name}/{path.name}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def main():
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--audio-dir", type=Path, default=Path("downloads/mini/audio"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train", type=int, default=2400, help="training clips")
    parser.add_argument("--valid", type=int, default=160)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--test-unseen", type=int, default=200)
    parser.add_argument("--test-class", type=int, default=8, help="clips per class")
    parser.add_argument(
        "--test-class-unseen", type=int, default=20, help="clips per class"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    args = parser.parse_args()
    # Only our own progress: ESPnet reports every layer it initialises.
    logging.basicConfig(format="%(asctime)s %(message)s", force=True)
    LOGGER.setLevel(logging.INFO)
    sizes = {
        "train": args.train,
        "valid": args.valid,
        "test": args.test,
        "test_unseen": args.test_unseen,
        "test_class": args.test_class,
        "test_class_unseen": args.test_class_unseen,
    }
    made = make_corpus(args.data_dir, args.audio_dir, args.seed, sizes, args.jobs)
    LOGGER.info("Mini corpus: %s", made)


if __name__ == "__main__":
    main()
