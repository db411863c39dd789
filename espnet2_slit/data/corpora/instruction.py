"""Instruction-tuning sets from caption, question and label sets.

Each sample gets a wording of its task; labels and captions can also be asked about
("Is there ... ?", "Does this describe it?"), right and wrong cases in equal number.
Choices depend on the sample's id and the seed alone, so a rebuilt set is the same set.

Sets of very different size are balanced in one of two ways (alpha = 0.5: square root of
the size, as InstructBLIP):

* ESPnet draws: `category2utt` lies beside `utt2category`; train with `iterator_type:
  category`, `batch_type: catpow`, `upsampling_factor: 0.5`. Batches differ every epoch.
* The list is balanced: `alpha` and `size` of `mix` thin out large categories and
  repeat small ones. Works with every ESPnet batch type.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from espnet2_slit.common.files import read_lines
from espnet2_slit.common.texts import named_labels
from espnet2_slit.data import kaldi_dir
from espnet2_slit.data.clips import read_clips
from espnet2_slit.data.corpora.base import CAPTION, CLASS, QUESTION
from espnet2_slit.data.corpora.tables import CorpusError
from espnet2_slit.data.writer import SetWriter

# Wordings of questions made here; "{...}" is replaced. The first fits any label.
PRESENCE = (
    "Is there {label} in the audio?",
    "Can you hear {label}?",
    "Does the recording contain {label}? Answer yes or no.",
    "Yes or no: {label} can be heard.",
)
VERIFICATION = (
    'Does this describe the audio: "{caption}"?',
    "Is the following caption right? {caption}",
    "Yes or no: in this recording, {caption}",
)
MULTI_LABEL = (
    "Which sounds are in the audio?",
    "Name all the sounds you hear.",
    "List the sound events of the clip.",
)
# One sentence for all clips: equal labels are then equal captions, which the objectives
# know to be positives. In other words they would be each other's (false) negatives.
LABEL_CAPTION = "The sound of {label}."
MULTI_LABEL_SEPARATOR = "; "
CAPTIONS_REMEMBERED = 10_000  # drawn from for wrong captions


@dataclass(frozen=True, slots=True)
class Utterance:
    """One sample of a data directory, all files joined."""

    id: str
    wav: str
    text: str
    segment: tuple[str, float, float] | None
    instruction: str
    clip: str
    task: str
    category: str
    source: str


def read_utterances(folder: Path) -> Iterator[Utterance]:
    """Joins the files of a data directory, streamed; all must be sorted bytewise.

    Args:
        folder: has wav.scp and text; the rest is optional.

    Yields:
        One utterance a line of `text`.

    Raises:
        CorpusError: a file is not sorted, or wav.scp lacks an utterance.
    """
    folder = Path(folder)
    samples, clips = read_clips(folder)
    is_cut = (folder / "segments").is_file()
    places = _Column(folder / ("segments" if is_cut else "wav.scp"))
    names = "instruction utt2task utt2category utt2source".split()
    columns = [_Column(folder / name) for name in names]
    for sample, text in _sorted_pairs(folder / "text"):
        place = places.at(sample)
        if place is None:
            raise CorpusError(
                f"{folder}: `text` has {sample}, {places.path.name} has not. Repair "
                f"it: python -m espnet2_slit.bin.slit_data fix {folder}"
            )
        clip = clips[samples[sample]]
        instruction, task, category, source = (c.at(sample) for c in columns)
        end_s = -1.0 if clip.end_s is None else clip.end_s
        yield Utterance(
            sample,
            clip.path,
            text,
            (place.split()[0], clip.start_s, end_s) if is_cut else None,
            instruction or "",
            clip.id,
            task or CAPTION,
            category or folder.name,
            source or "",
        )


class _Column:
    """One file, read forward in step with the sorted keys of another."""

    def __init__(self, path: Path):
        self.path = path
        self._pairs = _sorted_pairs(path) if path.is_file() else iter(())
        self._next = next(self._pairs, None)

    def at(self, key: str) -> str | None:
        """The value of a key that is not before the last one asked for."""
        wanted = key.encode()
        while self._next is not None and self._next[0].encode() < wanted:
            self._next = next(self._pairs, None)
        if self._next is not None and self._next[0] == key:
            return self._next[1]
        return None


def _sorted_pairs(path: Path) -> Iterator[tuple[str, str]]:
    before = b""
    for key, value in kaldi_dir.read_pairs(path):
        now = key.encode()
        if now < before:
            raise CorpusError(
                f"{path} is not sorted bytewise at {key}. Sort it: "
                f"python -m espnet2_slit.bin.slit_data fix {path.parent}"
            )
        before = now
        yield key, value


def fraction(*words: object) -> float:
    """A number in [0, 1) that depends on the words alone."""
    digest = hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=8)
    return int.from_bytes(digest.digest()) / 2**64


def choose(options: Sequence[str], *words: object) -> str:
    """One of the options, depending on the words alone."""
    return options[int(fraction(*words) * len(options))]


@dataclass(frozen=True)
class Wording:
    """How to ask, and what else to ask about captions and labels.

    Args:
        templates: task -> wordings; question_answering holds "{question}".
        presence: yes/no questions a labelled clip, 0 for none.
        verification: yes/no questions a caption, 0 for none.
        seed: other seeds give other choices.
    """

    templates: Mapping[str, Sequence[str]]
    presence: int = 0
    verification: int = 0
    seed: int = 0


def mix(
    sources: Iterable[Path],
    out: Path,
    wording: Wording,
    alpha: float | None = None,
    size: int = 0,
    skip: Container[str] = (),
) -> dict[str, int]:
    """Writes one instruction set from several data directories.

    Args:
        sources: data directories; their `utt2task` says what they hold.
        out: data directory to write.
        wording: how to ask.
        alpha: None leaves every sample in once; else categories get a share of the
            samples proportional to size^alpha.
        size: with alpha: samples in total; 0: as many as there are.
        skip: samples of the sources to leave out (see `leakage`).

    Returns:
        Samples written, by category.

    Raises:
        CorpusError: two samples have one id, or a source can't be read.
    """
    sources = [Path(s) for s in sources]
    copies: dict[str, float] = {}
    if alpha is not None:
        sizes = Counter(u.category for s in sources for u in _asked(s, wording, skip))
        copies = balanced_copies(sizes, alpha, size or sum(sizes.values()))
    counts: Counter[str] = Counter()
    clips = _Clips()
    with SetWriter(out) as files:
        for source in sources:
            for asked in _asked(source, wording, skip):
                for utterance in _repeat(asked, copies, wording.seed):
                    _add(utterance, files, clips.of(utterance))
                    counts[utterance.category] += 1
        balance = "" if alpha is None else f", sizes^{alpha:g} balanced"
        names = ", ".join(s.name for s in sources)
        files.describe(
            corpus="+".join(dict.fromkeys(s.name for s in sources)),
            split=common_split(sources),
            variant=f"instruction{balance}",
            tasks=[],
            zero_shot=False,
            notes=f"made from {names}; seed {wording.seed}",
        )
    return dict(counts)


def common_split(sources: Iterable[Path]) -> str:
    """The split all sources are of, "train" where they differ or do not say."""
    splits = {kaldi_dir.read_set(source)["split"] for source in sources}
    return splits.pop() or "train" if len(splits) == 1 else "train"


def join(sources: Iterable[Path], out: Path, skip: Container[str] = ()) -> int:
    """Puts data directories together as they are, streamed.

    Args:
        sources: data directories with different sample ids.
        out: data directory to write.
        skip: samples to leave out (see `leakage`).

    Returns:
        Samples written.

    Raises:
        CorpusError: two samples have one id.
    """
    sources = [Path(s) for s in sources]
    clips = _Clips()
    with SetWriter(out) as files:
        for source in sources:
            for utterance in read_utterances(source):
                if utterance.id not in skip:
                    _add(utterance, files, clips.of(utterance))
        files.describe(
            corpus="+".join(dict.fromkeys(s.name for s in sources)),
            split=common_split(sources),
            variant="",
            tasks=[],
            zero_shot=False,
            notes="",
        )
    return files.samples


def balanced_copies(
    sizes: Mapping[str, int], alpha: float, total: int
) -> dict[str, float]:
    """How often each sample of a category appears so that shares are size^alpha.

    Args:
        sizes: category -> samples.
        alpha: 1 keeps the proportions, 0 makes all categories equal.
        total: samples afterwards.

    Returns:
        category -> copies, not whole: 2.25 is two copies and a third of every fourth.
    """
    weights = {name: n**alpha for name, n in sizes.items()}
    whole = sum(weights.values())
    return {name: total * weights[name] / whole / sizes[name] for name in sizes}


def _repeat(
    utterance: Utterance, copies: Mapping[str, float], seed: int
) -> Iterator[Utterance]:
    if not copies:
        yield utterance
        return
    wanted = copies[utterance.category]
    extra = fraction(seed, "copy", utterance.id) < wanted % 1
    for copy in range(int(wanted) + extra):
        name = f"{utterance.id}-r{copy}" if copy else utterance.id
        yield replace(utterance, id=name)


def _asked(folder: Path, wording: Wording, skip: Container[str]) -> Iterator[Utterance]:
    """The utterances of a set with their instructions, and questions made of them."""
    captions = _some_captions(folder, wording) if wording.verification else []
    labels: tuple[str, ...] = ()
    if (folder / "labels").is_file():
        labels = tuple(read_lines(folder / "labels"))
    for utterance in read_utterances(folder):
        if utterance.id in skip:
            continue
        yield _ask(utterance, wording)
        if utterance.task == CLASS and len(labels) > 1:
            for n in range(wording.presence):
                yield _presence(utterance, labels, n, wording)
        elif utterance.task == CAPTION and len(captions) > 1:
            for n in range(wording.verification):
                yield _verification(utterance, captions, labels, n, wording)


def _ask(utterance: Utterance, wording: Wording) -> Utterance:
    options = wording.templates[utterance.task]
    if utterance.task == CLASS and MULTI_LABEL_SEPARATOR in utterance.text:
        options = MULTI_LABEL
    asked = choose(options, wording.seed, utterance.id)
    if utterance.task == QUESTION:
        # not str.format: a question may hold braces
        asked = asked.replace("{question}", utterance.instruction)
    elif utterance.instruction:
        asked = utterance.instruction  # the set brings its own
    short = {CAPTION: "caption", QUESTION: "question", CLASS: "class"}[utterance.task]
    return _derived(utterance, short, asked, utterance.text, utterance.task)


def _presence(
    utterance: Utterance, labels: Sequence[str], n: int, wording: Wording
) -> Utterance:
    key = (wording.seed, "presence", n, utterance.id)
    own = utterance.text.split(MULTI_LABEL_SEPARATOR)
    others = [label for label in labels if label not in own]
    right = not others or fraction("right", *key) < 0.5
    label = choose(own if right else others, "label", *key)
    question = choose(PRESENCE, "wording", *key).replace("{label}", label)
    answer = "yes" if right else "no"
    return _derived(utterance, f"presence{n}", question, answer, QUESTION)


def _verification(
    utterance: Utterance,
    captions: Sequence[tuple[str, str]],
    labels: Sequence[str],
    n: int,
    wording: Wording,
) -> Utterance:
    key = (wording.seed, "verification", n, utterance.id)
    right = fraction("right", *key) < 0.5
    caption = utterance.text
    if not right:
        at = int(fraction("caption", *key) * len(captions))
        for clip, other in itertools.chain(captions[at:], captions[:at]):
            if clip != utterance.clip and not _alike(caption, other, labels):
                caption = other
                break
        else:
            right = True  # nothing here could be wrong
    question = choose(VERIFICATION, "wording", *key).replace("{caption}", caption)
    answer = "yes" if right else "no"
    return _derived(utterance, f"verification{n}", question, answer, QUESTION)


def _alike(one: str, other: str, labels: Sequence[str]) -> bool:
    """Whether a caption may be true of the other's clip: a label or half the words."""
    named, also_named = named_labels(one, labels), named_labels(other, labels)
    if named and also_named:
        return bool(named & also_named)
    words, others = set(one.lower().split()), set(other.lower().split())
    return 2 * len(words & others) >= len(words | others)


def _derived(
    utterance: Utterance, kind: str, instruction: str, text: str, task: str
) -> Utterance:
    return replace(
        utterance,
        id=f"{utterance.id}-{kind}",
        text=text,
        instruction=instruction,
        task=task,
        category=f"{utterance.category}_{kind.rstrip('0123456789')}",
    )


def _some_captions(folder: Path, wording: Wording) -> list[tuple[str, str]]:
    """A uniform draw of (clip, caption): a reservoir, so memory is bounded."""
    draw = random.Random(wording.seed)
    kept: list[tuple[str, str]] = []
    captions = (u for u in read_utterances(folder) if u.task == CAPTION)
    for n, utterance in enumerate(captions):
        pair = (utterance.clip, utterance.text)
        if n < CAPTIONS_REMEMBERED:
            kept.append(pair)
        elif (at := draw.randrange(n + 1)) < CAPTIONS_REMEMBERED:
            kept[at] = pair
    return kept


class _Clips(dict[tuple[str, float, float], str]):
    """Clip ids by audio: sources that share a recording share its clip."""

    def of(self, utterance: Utterance) -> str:
        start, end = utterance.segment[1:] if utterance.segment else (0.0, -1.0)
        return self.setdefault((utterance.wav, start, end), utterance.clip)


def _add(utterance: Utterance, files: SetWriter, clip: str = "") -> None:
    files.add(
        utterance.id,
        clip or utterance.clip,
        utterance.wav,
        utterance.text,
        utterance.task,
        utterance.category,
        source=utterance.source,
        instruction=utterance.instruction,
        segment=utterance.segment,
    )


def caption_labels(source: Path, out: Path, template: str = LABEL_CAPTION) -> int:
    """A caption set from a label set, for the stages that learn from captions.

    Args:
        source: data directory with labels in `text`, several joined by "; ".
        out: data directory to write.
        template: sentence with "{label}".

    Returns:
        Samples written.
    """
    facts = kaldi_dir.read_set(source)
    evaluation = "classification" in facts["tasks"]
    with SetWriter(out) as files:
        for utterance in read_utterances(source):
            words = utterance.text.split(MULTI_LABEL_SEPARATOR)
            label = words[0]
            if len(words) > 1:
                label = ", ".join(words[:-1]) + " and " + words[-1]
            sentence = template.replace("{label}", label)
            sentence = sentence[:1].upper() + sentence[1:]
            # the clip's own id: nothing else asks about it in a caption set
            _add(replace(utterance, text=sentence, instruction="", task=CAPTION), files)
            if evaluation:
                files.reference(utterance.clip, sentence)
        made = "captions made from labels"
        labels = Path(source) / "labels"
        files.describe(
            # kept: two captions of one label are never each other's wrong caption
            read_lines(labels) if labels.is_file() else (),
            corpus=facts["corpus"],
            split=facts["split"],
            variant=facts["variant"],
            tasks=["caption", "retrieval"] if evaluation else [],
            zero_shot=facts["zero_shot"],
            notes="; ".join(note for note in (facts["notes"], made) if note),
        )
    return files.samples
