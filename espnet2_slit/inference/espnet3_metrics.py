"""Our measures as metrics of ESPnet3: captions, answers, retrieval and labels.

They read what the `infer` stage wrote: one `.scp` an input, with a line for each clip
or question. Protocol, intervals and tables are those of `slit score`, which reads the
same decode directories.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from espnet3.components.metrics.base_metric import BaseMetric
from espnet3.contract import Field

from espnet2_slit.scoring.metrics import classification, retrieval
from espnet2_slit.scoring.metrics.bootstrap import Items, Score
from espnet2_slit.scoring.metrics.captioning import CaptionOptions, score_captions
from espnet2_slit.scoring.metrics.question_answering import normalise


class Captioning(BaseMetric):
    """CIDEr-D, BLEU-4 and ROUGE-L of captions.

    Their document frequencies come from all references, so a state keeps the texts.
    """

    inputs = (Field("ref", "text"), Field("hyp", "text"))
    outputs = tuple(Field(name, "number") for name in ("cider_d", "bleu_4", "rouge_l"))

    def __init__(self) -> None:
        super().__init__()
        self.add_state("pairs", [], "cat")

    def update(self, *, ref: Sequence[str], hyp: Sequence[str]) -> None:
        """Keep texts.

        Args:
            ref: for each clip a JSON list of its references.
            hyp: its caption.
        """
        self.pairs += [[h, json.loads(r)] for r, h in zip(ref, hyp, strict=True)]

    def compute(self) -> dict[str, float]:
        """Scores of all of them."""
        if not self.pairs:
            raise ValueError("nothing to score: no caption was given")
        hypotheses, references = zip(*self.pairs, strict=True)
        found = score_captions(hypotheses, references, CaptionOptions(spice=False))
        return {field.name: _value(field.name, found.scores) for field in self.outputs}


class ExactMatch(BaseMetric):
    """Share of answers that equal the true one, percent."""

    inputs = (Field("ref", "text"), Field("hyp", "text"))
    outputs = (Field("accuracy", "number"),)

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", 0, "sum")
        self.add_state("count", 0, "sum")

    def update(self, *, ref: Sequence[str], hyp: Sequence[str]) -> None:
        """Count.

        Args:
            ref: true answers.
            hyp: answers.
        """
        pairs = zip(ref, hyp, strict=True)
        self.right += sum(normalise(r) == normalise(h) for r, h in pairs)
        self.count += len(ref)

    def compute(self) -> dict[str, float]:
        """Percent of all of them."""
        if not self.count:
            raise ValueError("nothing to score: no answer was given")
        return {"accuracy": 100 * self.right / self.count}


class Retrieval(BaseMetric):
    """Recall and mean average precision of finding clips by texts, and texts by clips.

    A clip brings its score with every text of the set, for each direction (re-ranked
    scores differ by direction; contrastive ones do not), so a state keeps the matrix.
    """

    inputs = (
        Field("text_to_audio", "text"),
        Field("audio_to_text", "text"),
        Field("own", "text"),
    )
    outputs = tuple(
        Field(f"{direction}_{name}", "number")
        for direction in ("text_to_audio", "audio_to_text")
        for name in ("recall_at_1", "recall_at_5", "recall_at_10", "map_at_10")
    )

    def __init__(self) -> None:
        super().__init__()
        self.add_state("clips", [], "cat")

    def update(
        self,
        *,
        text_to_audio: Sequence[str],
        audio_to_text: Sequence[str],
        own: Sequence[str],
    ) -> None:
        """Keep clips.

        Args:
            text_to_audio: for each clip a JSON list of its score with each of M texts.
            audio_to_text: the same for the other direction.
            own: for each clip a JSON list of the places (0 to M - 1) of its texts.
        """
        rows = zip(text_to_audio, audio_to_text, own, strict=True)
        self.clips += [[json.loads(value) for value in row] for row in rows]

    def compute(self) -> dict[str, float]:
        """Scores of all of them, 0 to 100 percent.

        Raises:
            ValueError: no clips, or their texts are not all of the set's texts.
        """
        if not self.clips:
            raise ValueError("nothing to score: no clip was given")
        to_audio, to_text, own = zip(*self.clips, strict=True)
        texts = [text for places in own for text in places]
        if sorted(texts) != list(range(len(to_audio[0]))):
            raise ValueError(
                f"expected the {len(to_audio[0])} texts of the set, each once, as the "
                f"own texts of its clips; found {len(set(texts))} different ones among "
                f"{len(texts)}"
            )
        owner = np.empty(len(texts), dtype=np.int64)
        for clip, places in enumerate(own):
            owner[places] = clip
        found = {
            "text_to_audio": retrieval.text_to_audio(_matrix(to_audio).T, owner),
            "audio_to_text": retrieval.audio_to_text(_matrix(to_text).T, owner),
        }
        values = {}
        for field in self.outputs:
            direction = field.name[: len("text_to_audio")]
            name = field.name.removeprefix(f"{direction}_")
            values[field.name] = 100 * _value(name, found[direction].scores)
        return values


class Labels(BaseMetric):
    """Accuracy of one label a clip, percent; a tie is wrong."""

    inputs = (Field("scores", "text"), Field("ref", "text"))
    outputs = (Field("accuracy", "number"), Field("accuracy_macro", "number"))

    def __init__(self) -> None:
        super().__init__()
        self.add_state("clips", [], "cat")

    def update(self, *, scores: Sequence[str], ref: Sequence[str]) -> None:
        """Keep clips.

        Args:
            scores: for each clip a JSON list of the scores of C labels.
            ref: place of the true one, 0 to C - 1.
        """
        rows = zip(scores, ref, strict=True)
        self.clips += [[json.loads(values), int(truth)] for values, truth in rows]

    def compute(self) -> dict[str, float]:
        """Over clips, and the mean over classes."""
        if not self.clips:
            raise ValueError("nothing to score: no clip was given")
        scores, truth = zip(*self.clips, strict=True)
        found = classification.single_label(_matrix(scores), np.array(truth)).scores
        return {field.name: 100 * _value(field.name, found) for field in self.outputs}


def _matrix(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Scores read from JSON, which holds float32 exactly: (rows, columns)."""
    return np.array(rows, dtype=np.float32)


def _value(name: str, scores: Mapping[str, Score]) -> float:
    score = scores[name]
    if not isinstance(score, Items):
        raise ValueError(f"{name}: not computed, {score}")
    return score.value
