"""What the bytes of an audio file say, checked against the bytes that are there.

Decoders trust headers, and headers are estimates: of a stream nobody knew the length, a
copy broke off, two files were put into one. Owns telling a file's kind by its content,
and `inspect`, which finds the missing bytes, the wrong size and the parts of a chain.
Decoding is left to `audio`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

# No writer's arithmetic is further off: a size that counts a header or a pad byte too
# much is below it, a copy that broke off lacks more.
SLACK_BYTES = 256
# What writers to a pipe put where the size would stand, and the sizes close to it.
PLACEHOLDER = 0x7FFFF000
MPEG = "MPEG"
# What `inspect` may note.
CHAIN = "a chain of several files"
NO_LENGTH = "no length in the header"
WRONG_LENGTH = "wrong length in the header"

# Beginnings of the files that libsndfile reads: (offset, bytes, kind).
_SNDFILE = (
    (8, b"WAVE", "WAV"),
    (8, b"AIFF", "AIFF"),
    (8, b"AIFC", "AIFF"),
    (8, b"8SVX", "SVX"),
    (8, b"16SV", "SVX"),
    (0, b".snd", "AU"),
    (0, b"dns.", "AU"),
    (0, b"fLaC", "FLAC"),
    (0, b"OggS", "OGG"),
    (0, b"caff", "CAF"),
    (0, b"riff\x2e\x91\xcf\x11", "W64"),
    (0, b"NIST_1A", "NIST"),
    (0, b"Creative Voice File", "VOC"),
    (0, b"2BIT", "AVR"),
    (0, b"PVF1\n", "PVF"),
    (0, b" paf", "PAF"),
    (0, b"fap ", "PAF"),
    (0, b"Extended Instrument: ", "XI"),
    (0, b"ALawSoundFile**", "WVE"),
    (1, b"\xa3\x01\x00", "IRCAM"),
    (0, b"\x00\x02\xa3\x64", "IRCAM"),
    (0, b"\x00\x01\xa3\x64", "IRCAM"),
    (0, b"\x00\x03\xa3\x64", "IRCAM"),
)
# Of those that take another decoder (ffmpeg's libraries).
_OTHER = (
    (4, b"ftyp", "MP4"),
    (4, b"moov", "MP4"),
    (4, b"mdat", "MP4"),
    (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA or WMV"),
    (0, b"#!AMR", "AMR"),
    (0, b"FLV\x01", "FLV"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"TTA1", "TTA"),
    (0, b"MPCK", "Musepack"),
    (0, b"MP+", "Musepack"),
    (0, b"DSD ", "DSD"),
    (0, b"ADIF", "AAC"),
    (8, b"AVI ", "AVI"),
    (0, b".RMF", "RealAudio"),
    (0, b"\x00\x00\x01\xba", "MPEG video"),
    (0, b"\x0b\x77", "AC-3"),
)
HEAD_BYTES = 4096  # enough for `kind_of`
# Names by which people know audio; what bears one is never passed over unsaid.
SNDFILE_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".aifc", ".avr",
    ".bwf", ".caf", ".ircam", ".mp1", ".mp2", ".mpga", ".nist", ".oga", ".paf", ".pvf",
    ".rf64", ".sf", ".snd", ".sph", ".spx", ".svx", ".voc", ".w64", ".wave", ".wv64",
)  # fmt: skip
OTHER_SUFFIXES = (
    ".mp4", ".webm", ".mkv", ".m4a", ".aac", ".3gp", ".ac3", ".amr", ".ape", ".asf",
    ".avi", ".dsf", ".flv", ".m4b", ".m4v", ".mka", ".mov", ".mpc", ".mpg", ".ra",
    ".tta", ".wma", ".wmv", ".wv",
)  # fmt: skip
HEADERLESS_SUFFIXES = (".raw", ".pcm", ".gsm", ".vox", ".al", ".ul", ".s16")
AUDIO_SUFFIXES = SNDFILE_SUFFIXES + OTHER_SUFFIXES + HEADERLESS_SUFFIXES


@dataclass
class Layout:
    """What `inspect` found.

    Attributes:
        kind: of container.
        missing: bytes that are promised and not there.
        patches: {offset: bytes} that make a wrong header right.
        parts: (start, end, whether its own header tells where it ends, samples or None)
            of a chain's files; () for one file.
        note: what was wrong and mended; "" if nothing was.
    """

    kind: str
    missing: int = 0
    patches: dict[int, bytes] = field(default_factory=dict)
    parts: tuple[tuple[int, int, bool, int | None], ...] = ()
    note: str = ""


def kind_of(head: bytes) -> tuple[str, bool] | None:
    """The kind of a file by its first bytes.

    Args:
        head: at least the first HEAD_BYTES, or the whole file.

    Returns:
        (kind, whether libsndfile has a decoder for it); None if it is no audio.
    """
    start = _id3_end(head, 0)
    if start and start < len(head):
        head = head[start:]
    elif start:
        return MPEG, True  # the tag is longer than the head; few others carry one
    for table, readable in ((_SNDFILE, True), (_OTHER, False)):
        for offset, magic, kind in table:
            if head[offset : offset + len(magic)] == magic:
                return kind, readable
    frame = _mpeg_frame(head, 0)
    if frame and _mpeg_frame(head, frame.size):
        return MPEG, True
    if 0 <= _next_frame(head, 0, strict=True) < len(head):
        return MPEG, True  # behind junk
    if len(head) > 6 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        if size > 7 and head[size : size + 1] in (b"\xff", b""):
            return "AAC", False
    if head[:1] == b"G" and head[188:189] == b"G" and head[376:377] == b"G":
        return "MPEG video", False
    return None


def inspect(data) -> Layout:
    """Compare what an audio file's header promises with the bytes that are there.

    Args:
        data: the whole file, bytes or a memory map of it.

    Returns:
        Layout; for kinds that promise nothing, one without findings.
    """
    found = kind_of(data[:HEAD_BYTES])
    kind = found[0] if found else ""
    try:
        return _inspect(data, kind)
    except struct.error:  # ends within its header: the decoder says so
        return Layout(kind)


def _inspect(data, kind: str) -> Layout:
    if kind in ("WAV", "AIFF", "SVX", "W64", "AU", "CAF"):
        return _of_chunks(data, kind)
    if kind == "NIST":
        return _nist(data)
    if kind == "OGG":
        return _ogg(data)
    if kind == MPEG:
        return _mpeg(data)
    if kind == "MP4":
        return Layout(kind, missing=_mp4_missing(data))
    if kind == "WebM or Matroska":
        return Layout(kind, missing=_matroska_missing(data))
    return Layout(kind)


# ------------------------------------------------------------- one block of samples


@dataclass
class _Block:
    """Where a header says the samples lie: `size` None if it says "unknown"."""

    start: int
    size: int | None
    size_at: int
    size_form: str  # of struct
    extra: int = 0  # what the written size counts beyond the samples
    frame: int = 1  # bytes of a sample of all channels


def _of_chunks(data, kind: str) -> Layout:
    block = _BLOCKS[kind](data)
    layout = Layout(kind, parts=_riff_chain(data) if kind == "WAV" else ())
    if layout.parts:
        layout.note = CHAIN
        return layout
    if data[:4] == b"BW64":  # the same file but for its name
        layout.patches[0] = b"RF64"
    if block is None:
        return layout
    present = len(data) - block.start
    if block.size is None or present <= 0:
        if block.size:
            layout.missing = block.size
        return layout
    missing = block.size - present
    if missing > SLACK_BYTES:
        layout.missing = missing
        return layout
    stale = missing < 0 and not _ends_well(data, block, block.size)
    if missing > 0 or (stale and present >= block.frame):
        size = present - present % block.frame + block.extra
        if size < 2 ** (8 * struct.calcsize(block.size_form)):
            layout.patches[block.size_at] = struct.pack(block.size_form, size)
        layout.note = WRONG_LENGTH
    return layout


def _ends_well(data, block: _Block, size: int) -> bool:
    """Whether other chunks, padding or nothing follow the samples.

    A recorder that was killed leaves the size of its last update: audio follows.
    """
    end = block.start + size
    if len(data) - end < max(block.frame, 2):
        return True
    if size and not bytes(data[end : end + 65536]).strip(b"\0"):
        return True
    if data[end : end + 3] in (b"TAG", b"ID3"):
        return True
    end += size % 2
    name = bytes(data[end : end + 4])
    return len(name) == 4 and all(32 <= c < 127 for c in name)


def _riff(data) -> _Block | None:
    order = ">" if data[:4] in (b"RIFX", b"FORM") else "<"
    wanted = {b"WAVE": b"data", b"AIFF": b"SSND", b"AIFC": b"SSND"}
    name = wanted.get(bytes(data[8:12]), b"BODY")
    long_size, frame = None, 1
    for chunk, start, size in _chunks(data, order):
        if chunk == b"ds64" and size >= 16:
            (long_size,) = struct.unpack_from("<Q", data, start + 8)
        elif chunk == b"fmt " and size >= 16:
            tag, _, _, _, frame = struct.unpack_from(f"{order}HHIIH", data, start)
            frame = frame if tag in (1, 3, 0xFFFE) and frame else 1
        elif chunk == b"COMM" and size >= 18:
            channels, _, bits = struct.unpack_from(">HIH", data, start)
            frame = max(channels * ((bits + 7) // 8), 1)
        if chunk != name:
            continue
        extra = 8 if name == b"SSND" else 0  # its offset and block size
        if long_size is not None and size == 0xFFFFFFFF:
            at = bytes(data[:128]).find(b"ds64") + 16
            return _Block(start, long_size, at, "<Q", 0, frame)
        known = size - extra if size < PLACEHOLDER else None
        if known is not None and known < 0:
            known = 0
        return _Block(start + extra, known, start - 4, order + "I", extra, frame)
    return None


def _riff_chain(data) -> tuple[tuple[int, int, bool, int | None], ...]:
    """WAV files that were written behind each other, by the sizes they state."""
    parts, at = [], 0
    while data[at : at + 4] == b"RIFF" and data[at + 8 : at + 12] == b"WAVE":
        (size,) = struct.unpack_from("<I", data, at + 4)
        end = min(at + 8 + size + size % 2, len(data))
        parts.append((at, end, True, None))
        at = end
    return tuple(parts) if len(parts) > 1 else ()


def _chunks(data, order: str) -> Iterator[tuple[bytes, int, int]]:
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from(f"{order}4sI", data, at)
        yield name, at + 8, size
        at += 8 + size + size % 2


def _w64(data) -> _Block | None:
    at = 40
    while at + 24 <= len(data):
        (size,) = struct.unpack_from("<Q", data, at + 16)  # with this header of 24
        if data[at : at + 4] == b"data":
            known = max(size - 24, 0) if size < 2**62 else None
            return _Block(at + 24, known, at + 16, "<Q", 24)
        if size < 24:
            return None
        at += size + -size % 8
    return None


def _au(data) -> _Block | None:
    if len(data) < 24:
        return None
    order = ">" if data[:4] == b".snd" else "<"
    start, size = struct.unpack_from(f"{order}II", data, 4)
    return _Block(start, None if size >= PLACEHOLDER else size, 8, f"{order}I")


def _caf(data) -> _Block | None:
    at = 8
    while at + 12 <= len(data):
        name, size = struct.unpack_from(">4sq", data, at)
        if name == b"data":  # begins with an edit count of 4 bytes
            known = max(size - 4, 0)  # -1, "unknown", is nothing to libsndfile
            return _Block(at + 16, known, at + 4, ">q", 4)
        at += 12 + max(size, 0)
    return None


_BLOCKS = {
    "WAV": _riff,
    "AIFF": _riff,
    "SVX": _riff,
    "W64": _w64,
    "AU": _au,
    "CAF": _caf,
}


def _nist(data) -> Layout:
    lines = bytes(data[:HEAD_BYTES]).split(b"\n")
    values = dict(line.split(b" -i ", 1) for line in lines if b" -i " in line)
    try:
        start = int(lines[1])
        width = int(values[b"sample_n_bytes"]) * int(values[b"channel_count"])
        promised = int(values[b"sample_count"]) * width
    except (IndexError, KeyError, ValueError):
        return Layout("NIST")
    missing = promised - (len(data) - start)
    return Layout("NIST", missing=missing if missing > SLACK_BYTES else 0)


def _mp4_missing(data) -> int:
    """Bytes that the last of the boxes lacks."""
    at = 0
    while at + 8 <= len(data):
        size, _ = struct.unpack_from(">I4s", data, at)
        if size == 1 and at + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, at + 8)
        if size < 8:  # 0: up to the end of the file
            return 0
        at += size
    return max(at - len(data), 0)


def _matroska_missing(data) -> int:
    """Bytes that the segment lacks; a live stream's segment has no size."""
    at = 0
    while at + 12 <= len(data):
        segment = data[at : at + 4] == b"\x18\x53\x80\x67"
        at += 4
        width = 9 - data[at].bit_length()
        if width > 8:
            return 0
        size = int.from_bytes(data[at : at + width], "big") - (1 << 7 * width)
        at += width
        if segment:
            unknown = size == (1 << 7 * width) - 1
            return 0 if unknown else max(at + size - len(data), 0)
        at += size
    return 0


# -------------------------------------------------------------------------- chains


def _ogg(data) -> Layout:
    """The logical streams that follow each other, by their pages."""
    at, starts, heading = 0, [], False
    while at + 27 <= len(data):
        if data[at : at + 4] != b"OggS":
            at = data.find(b"OggS", at)  # junk between pages, or at the end
            if at < 0:
                break
            continue
        first = bool(data[at + 5] & 2)
        if first and not heading:
            starts.append(at)
        heading = first  # several streams at once begin page by page
        segments = data[at + 26]
        table = bytes(data[at + 27 : at + 27 + segments])
        after = at + 27 + segments + sum(table)
        if len(table) < segments or after > len(data):
            return Layout("OGG", missing=max(after - len(data), 1))
        at = after
    if len(starts) < 2:
        return Layout("OGG")
    ends = [*starts[1:], len(data)]
    parts = tuple((s, e, True, None) for s, e in zip(starts, ends, strict=True))
    return Layout("OGG", parts=parts, note=CHAIN)


@dataclass
class _Frame:
    """An MPEG audio frame: bytes, samples, and what its neighbours share with it."""

    size: int
    samples: int
    like: int
    xing_at: int


# kbit/s by (version 1, layer) and the header's four bits; 0 is "free", -1 is none.
_RATES = {
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _mpeg_frame(data, at: int) -> _Frame | None:
    """The frame that begins here, or None. ISO/IEC 11172-3, section 2.4.2.3."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return None
    (word,) = struct.unpack_from(">I", data, at)
    version, layer = word >> 19 & 3, 4 - (word >> 17 & 3)
    rate, speed = word >> 12 & 15, word >> 10 & 3
    if version == 1 or layer == 4 or rate in (0, 15) or speed == 3:
        return None
    one = version == 3
    kilobits = _RATES[one, layer][rate]
    hertz = (44100, 48000, 32000)[speed] >> {3: 0, 2: 1, 0: 2}[version]
    padding, mono = word >> 9 & 1, word >> 6 & 3 == 3
    samples = 384 if layer == 1 else 1152 if one or layer == 2 else 576
    if layer == 1:
        size = (12000 * kilobits // hertz + padding) * 4
    else:
        size = samples // 8 * 1000 * kilobits // hertz + padding
    side = (17 if mono else 32) if one else (9 if mono else 17)
    return _Frame(size, samples, word & 0xFFFE0C00, 4 + side)


def _id3_end(data, at: int) -> int:
    """Where an ID3v2 tag that begins here ends; `at` if none does."""
    if data[at : at + 3] != b"ID3" or at + 10 > len(data):
        return at
    size = 0
    for byte in bytes(data[at + 6 : at + 10]):
        size = size << 7 | byte & 0x7F
    return at + 10 + size + (10 if data[at + 5] & 0x10 else 0)


def _next_frame(data, at: int, strict: bool = False) -> int:
    """Where the next run of frames begins, beyond tags and junk; -1: nowhere.

    The end of the data may end a run, unless `strict`.
    """
    at = _id3_end(data, at)
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            return -1
        frame, next_at, run = _mpeg_frame(data, at), at, 0
        while frame and run < 3:
            next_at += frame.size
            after = _mpeg_frame(data, next_at)
            if next_at >= len(data) and not strict:
                return at
            frame = after if after and after.like == frame.like else None
            run += 1
        if run == 3 and frame:
            return at
        at += 1


def _mpeg(data) -> Layout:
    """The files of a chain, each with its count of frames.

    The first frame of a file may hold a count (Xing, Info); decoders then stop there.
    Without one they guess the length from the first frames' sizes, so that such parts
    are marked as to be decoded to their end.
    """
    at, like = _next_frame(data, 0), 0
    # [start, end, promised or None, frames, samples, end of the first frame]
    parts: list[list] = []
    while at >= 0:
        frame = _mpeg_frame(data, at)
        if frame is None or (like and frame.like != like):
            at, like = _next_frame(data, at), 0
            continue
        if at + frame.size > len(data):
            break  # half a frame, at the end of nearly every recorded stream
        mark = at + frame.xing_at
        tagged = data[mark : mark + 4] in (b"Xing", b"Info")
        if tagged or not parts or not like:
            promised = None
            if tagged and data[mark + 7] & 1:
                (promised,) = struct.unpack_from(">I", data, mark + 8)
            parts.append([at, at, promised, 0, 0, at + frame.size])
        like = frame.like
        if not tagged:
            parts[-1][3] += 1
            parts[-1][4] += frame.samples
        at += frame.size
        parts[-1][1] = at
    missing, found = 0, []
    for start, end, promised, frames, samples, second in parts:
        exact = promised == frames
        if promised is not None and promised > frames + 2:
            missing += (promised - frames) * max((end - start) // max(frames, 1), 1)
        elif promised is not None and promised < frames:  # a chain
            start = second
        if frames:
            found.append((start, end, exact, samples))
    if len(found) > 1:
        note = CHAIN
    elif found and found[0][2] and parts[0][0] == _id3_end(data, 0):
        return Layout(MPEG, missing)  # as the decoder expects a file to be
    else:
        told = parts and parts[0][2] is not None
        note = WRONG_LENGTH if told else NO_LENGTH
    return Layout(MPEG, missing, parts=tuple(found), note=note)
