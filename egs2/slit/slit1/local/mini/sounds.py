"""How a scene sounds; all that is random is drawn by seed and clip id."""

import dataclasses
import hashlib

import numpy as np
from mini.scenes import SOURCES
from scipy.fft import next_fast_len

SAMPLE_RATE = 16000
LEVEL_DBFS = {"loud": -17.0, "": -25.0, "quiet": -33.0}  # RMS while sounding
# Part of the source's range in octaves/2, with gaps between the three.
PITCH_RANGE = {"low": (0.0, 0.25), "": (0.4, 0.6), "high": (0.75, 1.0)}
RATE_HZ = {
    ("pulsing", "slow"): (3.6, 4.8),
    ("pulsing", "fast"): (9.0, 12.0),
    ("warbling", "slow"): (2.6, 3.8),
    ("warbling", "fast"): (8.0, 11.0),
}


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
        size = next_fast_len(samples, real=True)  # else 2.5 times as slow
        band = np.fft.irfft(
            np.fft.rfft(np.stack([noise, rng.standard_normal(samples)]), size)
            * np.fft.rfft(window, size),
            size,
        )[:, :samples]
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
    size = next_fast_len(samples, real=True)
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(samples), size)
    time_s = np.arange(samples) / SAMPLE_RATE
    if kind == "wind":
        spectrum *= 1 / (1 + (frequency / rng.uniform(150, 350)) ** 2)
        gust = 1 + 0.6 * np.sin(
            2 * np.pi * (rng.uniform(0.2, 0.6) * time_s + rng.uniform())
        )
        noise = np.fft.irfft(spectrum, size)[:samples] * gust
    elif kind == "rain":
        spectrum *= (frequency / 4000) ** 2 / (1 + (frequency / 4000) ** 4)
        noise = np.fft.irfft(spectrum, size)[:samples]
        noise /= np.sqrt(np.mean(noise**2))
        drops = rng.integers(0, samples - 64, int(40 * samples / SAMPLE_RATE))
        splash = np.exp(-np.arange(64) / 12.0)
        for at in drops:
            noise[at : at + 64] += rng.normal(0.0, 5.0) * splash
    else:
        noise = np.fft.irfft(spectrum, size)[:samples]
    return noise / np.sqrt(np.mean(noise**2))


def _generator(seed, clip):
    digest = hashlib.blake2b(f"{seed}-{clip}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def render(scene, seed):
    """(S,) int16 at 16 kHz of a Scene; seed and clip id fix all that is random."""
    rng = _generator(seed, scene.clip)
    samples = round(scene.duration_s * SAMPLE_RATE)
    size = next_fast_len(samples + 4000, real=True)  # room for the tail
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
    return _finish(rng, mix, scene.background)


def render_recording(recording, seed):
    """As `render` of a Recording, whose scenes sound as they would as clips."""
    mix = np.zeros(round(recording.duration_s * SAMPLE_RATE))
    for start_s, scene in recording.parts:
        clip = render(dataclasses.replace(scene, background=""), seed) / 32767
        start = round(start_s * SAMPLE_RATE)
        mix[start : start + len(clip)] += clip
    return _finish(_generator(seed, recording.clip), mix, recording.background)


def _finish(rng, mix, background):
    """Add background and a noise floor -> int16."""
    samples = len(mix)
    if background:
        level = rng.uniform(-46.0, -41.0)
        mix += 10 ** (level / 20) * _render_background(rng, background, samples)
    mix += 10 ** (rng.uniform(-73, -65) / 20) * rng.standard_normal(samples)
    peak = np.abs(mix).max()
    if peak > 0.98:  # two loud sounds at the same time, by a decibel or two
        mix *= 0.98 / peak
    return np.round(mix * 32767).astype(np.int16)
