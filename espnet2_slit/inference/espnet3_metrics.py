"""Our measures as metrics of ESPnet3.

They read what the `infer` stage wrote: `caption.scp`, `answer.scp` and their
references. Protocol, intervals and tables are those of `slit score`, which reads the
same decode directories.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from espnet3.components.metrics.base_metric import BaseMetric
from espnet3.contract import Field

from espnet2_slit.scoring.metrics.bootstrap import Items
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
        values = {}
        for field in self.outputs:
            score = found.scores[field.name]
            if not isinstance(score, Items):
                raise ValueError(f"{field.name}: not computed, {score}")
            values[field.name] = score.value
        return values


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
