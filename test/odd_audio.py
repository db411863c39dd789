"""Audio files as people have them: a table of odd and bad ones, made in memory.

Bytes are made with soundfile and then changed as a writer, a copy or an editor would.
Each case says what is to be read, or why nothing is.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 16000
TRUNCATED = ("truncated", "truncated audio")
UNREADABLE = ("cannot be read as audio", "unreadable audio")
CHAIN = "a chain of several files"
LENGTH = "wrong length in the header"
NO_LENGTH = "no length in the header"
ABOVE = "above full scale, scaled down"
CANCEL = "channels cancel out, the louder one taken"
INTEGERS = "integers stored as floats, scaled"


@dataclass(frozen=True)
class Odd:
    """One file.

    Attributes:
        name: of the file.
        content: its bytes, or a function that makes something else of a path.
        audio: (S,) what is to be read at 16 kHz; None if nothing can be.
        says: part of the message, or the note that goes with the samples.
        counted: what data preparation counts it as.
        tolerance: of the samples.
    """

    name: str
    content: bytes | Callable[[Path], None]
    audio: np.ndarray | None
    says: str = ""
    counted: str = ""
    tolerance: float = 2e-4


def sound(seed=0, seconds=0.4, rate=RATE, channels=1):
    """A tone in noise, (S,) or (S, channels)."""
    random = np.random.default_rng(seed)
    size = int(seconds * rate)
    tone = 0.3 * np.sin(2 * np.pi * (300 + 50 * seed) * np.arange(size) / rate)
    if channels > 1:
        tone = tone[:, None] * np.linspace(1, 0.5, channels)
        return (tone + 0.05 * random.standard_normal((size, channels))).astype("f4")
    return (tone + 0.05 * random.standard_normal(size)).astype("f4")


def encode(audio, rate=RATE, format="WAV", subtype=None, **more) -> bytes:
    """A whole file."""
    stream = io.BytesIO()
    soundfile.write(stream, audio, rate, format=format, subtype=subtype, **more)
    return stream.getvalue()


def decode(content: bytes) -> np.ndarray:
    """What soundfile reads, mono at 16 kHz: for files in order."""
    audio, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    mono = audio.mean(axis=1)
    return mono if rate == RATE else soxr.resample(mono, rate, RATE)


def put(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def cut(content: bytes, share=0.5) -> bytes:
    return content[: int(len(content) * share)]


def wav(data, rate=RATE, size=None, channels=1, bits=16, tag=1, align=None, tail=b""):
    """A WAV file whose header may say anything."""
    align = channels * bits // 8 if align is None else align
    form = struct.pack(
        "<HHIIHH", tag, channels, rate, rate * align % 2**32, align, bits
    )
    size = len(data) if size is None else size
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data"
    body += struct.pack("<I", size) + data + tail
    return b"RIFF" + struct.pack("<I", len(body)) + body


def streamed(content: bytes) -> bytes:
    """A FLAC file as one that was written to a pipe: its length is unknown."""
    return put(
        put(content, 21, bytes([content[21] & 0xF0])), 22, bytes(4)
    )  # fmt: skip


def without_info(content: bytes) -> bytes:
    """An MP3 file without its first frame, which tells the number of the others."""
    at = content.find(b"\xff", 0)
    (head,) = struct.unpack_from(">I", content, at)
    one = head >> 19 & 3 == 3
    rates = (
        (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
        if one
        else (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    )
    hertz = (44100, 48000, 32000)[head >> 10 & 3] >> {3: 0, 2: 1, 0: 2}[head >> 19 & 3]
    size = (144 if one else 72) * rates[(head >> 12 & 15) - 1] * 1000 // hertz
    return content[at + size + (head >> 9 & 1) :]


def mp3(audio, rate=44100, mode="CONSTANT"):
    return encode(audio, rate, "MP3", bitrate_mode=mode, compression_level=0.5)


X = sound()
X16 = (X * 32768).clip(-32768, 32767).astype("<i2")
X44 = sound(1, 0.5, 44100)
PCM = X16.tobytes()


def wrong_sizes() -> list[Odd]:
    """Headers whose size of the samples is not theirs."""
    cases = [
        Odd(f"size{off:+d}.wav", wav(PCM, size=len(PCM) + off), X, LENGTH)
        for off in (1, 2, 3, 8, 36, 44, 100, 200)
    ]
    cases += [
        Odd(f"size{off:+d}.wav", wav(PCM, size=len(PCM) + off), X, LENGTH)
        for off in (-2, -4, -6, -200)
    ]
    places = {  # format: (size field, its form)
        "WAV": (b"data", 4, "<I"),
        "AIFF": (b"SSND", 4, ">I"),
        "W64": (b"data\xf3\xac", 16, "<Q"),
        "AU": (b".snd", 8, ">I"),
        "CAF": (b"data", 4, ">q"),
    }
    for kind, (mark, offset, form) in places.items():
        whole = encode(X, format=kind, subtype="PCM_16")
        at = whole.index(mark) + offset
        for label, size in (("zero", 0), ("stale", len(PCM) // 4)):
            extra = {"W64": 24, "CAF": 4, "AIFF": 8}.get(kind, 0) if size else 0
            content = put(whole, at, struct.pack(form, size + extra))
            cases.append(Odd(f"{label}.{kind.lower()}", content, X, LENGTH))
        unknown = {"WAV": 2**32 - 1, "AU": 2**32 - 1, "CAF": -1}.get(kind)
        if unknown is not None:
            content = put(whole, at, struct.pack(form, unknown))
            note = LENGTH if kind == "CAF" else ""
            cases.append(Odd(f"unknown.{kind.lower()}", content, X, note))
    rifx = encode(X, format="WAV", subtype="PCM_16", endian="BIG")
    at = rifx.index(b"data") + 4
    cases.append(Odd("zero_rifx.wav", put(rifx, at, bytes(4)), X, LENGTH))
    stereo = sound(2, channels=2)
    content = encode(stereo, subtype="FLOAT")
    at = content.index(b"data") + 4
    content = put(content, at, struct.pack("<I", 8 * len(stereo) + 4))
    cases.append(Odd("size+4_float_stereo.wav", content, stereo.mean(1), LENGTH))
    listed = b"LIST" + struct.pack("<I", 4) + b"INFO"
    cases += [
        Odd("wav_twice.wav", encode(X) * 2, np.tile(X, 2), CHAIN),
        Odd("wav_rates.wav", encode(X) + encode(X44, 44100),
            np.concatenate([X, decode(encode(X44, 44100))]), CHAIN),
        Odd("list_behind.wav", wav(PCM, tail=listed), X),
        Odd("zeros_behind.wav", wav(PCM, tail=bytes(600)), X),
        Odd("empty_with_list.wav", wav(b"", tail=listed), None, "0.0000 s of audio",
            "0 s of audio"),
        Odd("header_only.wav", wav(b""), None, "0.0000 s of audio", "0 s of audio"),
        Odd("promise_only.wav", wav(b"", size=len(PCM)), None, *TRUNCATED),
        Odd("bw64.wav", put(encode(X, format="RF64", subtype="PCM_16"), 0, b"BW64"), X),
    ]  # fmt: skip
    return cases


def halves() -> list[Odd]:
    """Copies that broke off."""
    kinds = {
        "wav": dict(format="WAV"),
        "wavex.wav": dict(format="WAVEX"),
        "rifx.wav": dict(format="WAV", endian="BIG"),
        "rf64": dict(format="RF64"),
        "w64": dict(format="W64"),
        "aif": dict(format="AIFF"),
        "float.aifc": dict(format="AIFF", subtype="FLOAT"),
        "au": dict(format="AU"),
        "little.snd": dict(format="AU", endian="LITTLE"),
        "caf": dict(format="CAF"),
        "svx": dict(format="SVX"),
        "sph": dict(format="NIST"),
        "flac": dict(format="FLAC"),
        "ogg": dict(format="OGG"),
        "opus": dict(format="OGG", subtype="OPUS"),
        "ulaw.wav": dict(format="WAV", subtype="ULAW"),
        "float.wav": dict(format="WAV", subtype="FLOAT"),
    }
    cases = []
    for suffix, options in kinds.items():
        whole = encode(X, **options)
        for share in (0.5, 0.9):
            cases.append(
                Odd(f"{share}_{suffix}", cut(whole, share), None, *TRUNCATED)
            )  # fmt: skip
    half = cut(streamed(encode(X, format="FLAC")))
    cases.append(Odd("half_stream.flac", half, None, *TRUNCATED))
    cases.append(Odd("half_info.mp3", cut(mp3(X44)), None, *TRUNCATED))
    bare = without_info(mp3(X44))
    # Nothing is promised, and nearly every recorded stream ends in half a frame.
    cases.append(Odd("half_bare.mp3", cut(bare), decode(bare)[:4000], NO_LENGTH, "", 1))
    return cases


def chains_and_streams() -> list[Odd]:
    """Files whose header tells of one part, or of no length."""
    cases = []
    for mode in ("CONSTANT", "VARIABLE", "AVERAGE"):
        for rate in (44100, 48000, 32000, 22050, 16000, 8000):
            content = without_info(mp3(sound(3, 0.5, rate), rate, mode))
            # The same frames behind a count: the reference.
            name = f"bare_{mode[0]}{rate}.mp3".lower()
            cases.append(Odd(name, content, sound(3, 0.5), NO_LENGTH, tolerance=1))
    loud = np.concatenate([sound(4, 1.0, 44100) * 1e-3, sound(4, 1.0, 44100)])
    content = without_info(mp3(loud, mode="VARIABLE"))
    cases.append(Odd("quiet_then_loud.mp3", content, decode(mp3(loud, mode="VARIABLE")),
                     NO_LENGTH, tolerance=1))  # fmt: skip
    one, bare = mp3(X44), without_info(mp3(X44))
    tag = b"ID3\x03\0\0" + bytes([0, 0, 2, 0]) + bytes(256)
    wide = mp3(sound(5, 0.5, 22050), 22050)
    for name, parts, content in (
        ("twice.mp3", 2, one + one),
        ("three_times.mp3", 3, one * 3),
        ("info_then_bare.mp3", 2, one + bare),
        ("bare_then_info.mp3", 2, bare + one),
        ("tag_between.mp3", 2, one + tag + one),
        ("other_rate.mp3", 2, one + wide),
    ):
        audio = np.tile(decode(one), parts)
        note = LENGTH if name == "info_then_bare.mp3" else CHAIN
        cases.append(Odd(name, content, audio, note, tolerance=1))
    cases += [
        Odd("id3.mp3", tag + one, decode(one)),
        Odd("id3v1.mp3", bare + b"TAG" + bytes(125), decode(one), NO_LENGTH, "", 1),
        Odd("junk_before.mp3", bytes(99) + b"\xff" + bare, decode(one), NO_LENGTH,
            "", 1),
    ]  # fmt: skip
    for label, options in (
        ("vorbis.ogg", {}),
        ("opus.opus", {"subtype": "OPUS"}),
    ):
        one = encode(X, format="OGG", **options)
        other = encode(sound(6, 0.3, 48000), 48000, format="OGG", **options)
        for parts in (2, 3):
            audio = np.tile(decode(one), parts)
            cases.append(Odd(f"chain{parts}_{label}", one * parts, audio, CHAIN))
        audio = np.concatenate([decode(one), decode(other)])
        cases.append(Odd(f"rates_{label}", one + other, audio, CHAIN, "", 1e-3))
        cases.append(Odd(f"junk_behind_{label}", one + b"junk" * 30, decode(one)))
    for label, audio, options in (
        ("16", X, {}),
        ("24", sound(7, channels=2), {"subtype": "PCM_24"}),
        ("44k", X44, {"rate": 44100}),
        ("8k", sound(8, 0.5, 8000), {"rate": 8000}),
        ("fast", sound(9, 1.5), {"compression_level": 0.0}),
    ):
        whole = encode(audio, format="FLAC", **options)
        cases.append(Odd(f"stream_{label}.flac", streamed(whole), decode(whole)))
    return cases


def values() -> list[Odd]:
    """Samples that are no samples, or not as loud as they say."""
    cases = []
    for value in (1e5, 1e10, 3e29, -3e29):
        broken = X.copy()
        broken[1000:1010] = value
        for kind in ("WAV", "AIFF", "CAF"):
            content = encode(broken, format=kind, subtype="FLOAT")
            cases.append(Odd(f"spike{value:g}.{kind.lower()}", content, None,
                             "it is damaged", "corrupt samples"))  # fmt: skip
    cases.append(Odd("all_huge.wav", encode(X * 1e30, subtype="FLOAT"), None,
                     "which no format gives", "corrupt samples"))  # fmt: skip
    for value in (np.nan, np.inf, -np.inf):
        broken = X.copy()
        broken[5] = value
        content = encode(broken, subtype="FLOAT")
        cases.append(Odd(f"{value}.wav", content, None, "1 of 6400 samples are NaN",
                         "NaN or infinite samples"))  # fmt: skip
    for peak in (1.2, 6.0, 40.0):
        for kind, subtype in (("WAV", "FLOAT"), ("W64", "DOUBLE"), ("AU", "FLOAT")):
            hot = X / np.abs(X).max()
            content = encode(hot * peak, format=kind, subtype=subtype)
            cases.append(Odd(f"hot{peak}.{kind.lower()}", content, hot, ABOVE))
    full = X / np.abs(X).max()
    content = encode(full * 120, subtype="FLOAT")
    cases.append(Odd("integers8.wav", content, full * 120 / 128, INTEGERS))
    for bits in (16, 24, 32):
        audio = X.astype("f8") * 2.0 ** (bits - 1)
        content = encode(audio, subtype="DOUBLE")
        cases.append(Odd(f"integers{bits}.wav", content, X, INTEGERS))
        content = encode(np.rint(audio), subtype="FLOAT")
        cases.append(Odd(f"rounded{bits}.wav", content, X, INTEGERS))
    opposite = np.stack([X, -X], axis=1)
    for kind, subtype in (
        ("WAV", None),
        ("FLAC", None),
        ("AIFF", None),
        ("WAV", "FLOAT"),
    ):
        content = encode(opposite, format=kind, subtype=subtype)
        name = f"opposite_{subtype or 'pcm'}.{kind.lower()}"
        cases.append(Odd(name, content, X, CANCEL))
    cases += [
        Odd("nearly_opposite.wav", encode(np.stack([X, -0.95 * X], 1)), X, CANCEL),
        Odd("louder_right.wav", encode(np.stack([-0.9 * X, X], 1)), X, CANCEL),
        Odd("opposite_pairs.wav", encode(np.stack([X, -X, X, -X], 1)), X, CANCEL),
        Odd("half_opposite.wav", encode(np.stack([X, -0.5 * X], 1)), 0.25 * X),
        Odd("one_side.wav", encode(np.stack([X, 0 * X], 1)), 0.5 * X),
        Odd("silence.wav", encode(0 * X), 0 * X),
        Odd("silent_stereo.flac", encode(np.zeros((6400, 2)), format="FLAC"), 0 * X),
    ]
    opposite = np.stack([X, -X], axis=1) * 3
    hot = X / np.abs(X).max()
    cases.append(
        Odd("hot_opposite.wav", encode(opposite, subtype="FLOAT"), hot, CANCEL)
    )
    return cases


def wrong_files() -> list[Odd]:
    """What bears an audio file's name, and what does not but is one."""
    flac, ogg = encode(X, format="FLAC"), encode(X, format="OGG")
    rate = ("has sample rate", "impossible sample rate")
    cases = [
        Odd(f"rate{hertz}.wav", wav(PCM, rate=hertz), None, *rate)
        for hertz in (1, 8, 100, 999, 1_000_001, 2**31 - 1)
    ]
    cases += [
        Odd(f"headerless{suffix}", PCM, None, "it has no header", "unreadable audio")
        for suffix in (".raw", ".pcm", ".gsm", ".vox", ".al")
    ]
    texts = {
        "text": b"hello",
        "text_utf16": "hello".encode("utf-16"),
        "zeros": bytes(4096),
        "noise": np.random.default_rng(1).bytes(5000).replace(b"\xff", b"\0"),
        "riff": b"RIFF",
        "riff_wave": b"RIFF\0\0\0\0WAVE",
        "avi_like": b"RIFF\0\0\0\0WAVEjunk",
        "npy": b"\x93NUMPY\x01\0" + bytes(100),
        "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(300),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(300),
        "pdf": b"%PDF-1.7\n" + b"x" * 300,
        "zip": b"PK\x03\x04" + bytes(300),
        "json": b'{"audio": "x.wav"}',
        "ogg_head": ogg[:20],
        "flac_head": flac[:30],
        "sphere_head": b"NIST_1A\n   1024\n",
        "wav_head": wav(PCM)[:32],
        "aiff_head": encode(X, format="AIFF")[:30],
        "w64_head": encode(X, format="W64")[:50],
        "au_head": encode(X, format="AU")[:20],
        "caf_head": encode(X, format="CAF")[:30],
    }
    cases += [
        Odd(f"{name}.wav", content, None, "", "unreadable audio")
        for name, content in texts.items()
    ]
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    page = b"\n<!DOCTYPE html><html><body>Quota exceeded</body></html>"
    other = "unreadable audio"
    cases += [
        Odd("pointer.wav", pointer, None, "git lfs pull", other),
        Odd("page.mp3", page, None, "is a web page", other),
        Odd("empty.wav", b"", None, "(0 bytes)", "empty file"),
        Odd("short.wav", wav(PCM[:100]), None, "s of audio", "0 s of audio"),
        Odd("no_channel.wav", wav(PCM, channels=0, align=2), None, *UNREADABLE),
        Odd("no_bits.wav", wav(PCM, bits=0, align=2), None, *UNREADABLE),
        Odd("tag9999.wav", wav(PCM, tag=0x9999), None, *UNREADABLE),
        Odd("flac_named.wav", flac, X),
        Odd("ogg_named.flac", ogg, decode(ogg), "", "", 1e-3),
        Odd("wav_named.mp3", encode(X), X),
        Odd("wav_named.raw", encode(X), X),
        Odd("wav_named.m4a", encode(X), X),
        Odd("no_suffix", encode(X), X),
        Odd("UPPER.WAV", encode(X), X),
        Odd("ünï cödé 音.wav", encode(X), X),
        Odd("a folder.wav", lambda path: path.mkdir(), None, "is a folder", other),
        Odd("a_pipe.wav", os.mkfifo, None, "is a pipe or a device", other),
        Odd("dangling.wav", lambda path: path.symlink_to("nowhere"), None,
            "no such audio file", "missing audio"),
    ]  # fmt: skip
    for suffix, options in {
        "aifc": dict(format="AIFF", subtype="FLOAT"),
        "avr": dict(format="AVR", subtype="PCM_16"),
        "caf": dict(format="CAF"),
        "ircam": dict(format="IRCAM", subtype="PCM_16"),
        "paf": dict(format="PAF", subtype="PCM_16"),
        "pvf": dict(format="PVF", subtype="PCM_16"),
        "rf64": dict(format="RF64"),
        "snd": dict(format="AU"),
        "sph": dict(format="NIST"),
        "svx": dict(format="SVX", subtype="PCM_16"),
        "voc": dict(format="VOC", subtype="PCM_16"),
        "w64": dict(format="W64"),
        "ulaw.wav": dict(subtype="ULAW"),
        "adpcm.wav": dict(subtype="IMA_ADPCM"),
        "u8.wav": dict(subtype="PCM_U8"),
        "pcm32.wav": dict(subtype="PCM_32"),
    }.items():
        whole = encode(X, **options)
        cases.append(Odd(f"plain.{suffix}", whole, decode(whole)))
    return cases


def all_cases() -> list[Odd]:
    """Every case, each name once."""
    cases = wrong_files() + wrong_sizes() + halves() + chains_and_streams() + values()
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    return cases


def write_all(folder: Path, cases: list[Odd]) -> None:
    """Make the files."""
    for case in cases:
        path = folder / case.name
        if callable(case.content):
            case.content(path)
        else:
            path.write_bytes(case.content)
