"""FENSE's two models: sentence similarity and the fluency error detector.

Both are pretrained files that a user downloads once; torch and transformers are
imported only when they are used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ERROR_THRESHOLD = 0.9
MAX_TOKENS = 64  # of the detector, as it was trained
BATCH = 64
NEEDS_SBERT = (
    "the sentence encoder paraphrase-TinyBERT-L6-v2 (huggingface.co/"
    "sentence-transformers) as --sbert_model FOLDER"
)
NEEDS_DETECTOR = (
    "the fluency error detector echecker_clotho_audiocaps_base.ckpt (github.com/"
    "blmoistawinde/fense, release V0.1) as --fluency_model FILE"
)


class FluencyModels:
    """Sentence encoder and fluency error detector of FENSE.

    Args:
        sbert_model: folder in sentence-transformers' layout, mean pooling; "": only
            fluency errors.
        fluency_model: checkpoint with `model_type`, `num_classes`, `state_dict`.
        fluency_base: folder or hub name of the detector's BERT (configuration and
            tokenizer); "": the checkpoint's `model_type`.
        device: for both.

    Raises:
        ValueError: the encoder pools otherwise, or weights do not fit.

    Source: Zhou 2021 (FENSE); blmoistawinde/fense@1dcc858 fense/evaluator.py. Differs:
        no download, no sentence-transformers, and errors of one batch or less are
        those of the last class too (there: all classes).
    """

    def __init__(
        self,
        sbert_model: str,
        fluency_model: str,
        fluency_base: str = "",
        device: str = "cpu",
    ) -> None:
        import torch
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        self._torch, self.device = torch, torch.device(device)
        self.sbert = None
        if sbert_model:
            self._check_pooling(Path(sbert_model))
            self.sbert_tokenizer = AutoTokenizer.from_pretrained(sbert_model)
            self.sbert = AutoModel.from_pretrained(sbert_model).eval().to(self.device)
        saved = torch.load(fluency_model, map_location="cpu", weights_only=True)
        base = fluency_base or saved["model_type"]
        self.detector_tokenizer = AutoTokenizer.from_pretrained(base)
        config = AutoConfig.from_pretrained(base)
        self.detector = AutoModel.from_config(config).eval().to(self.device)
        self.classifier = torch.nn.Linear(config.hidden_size, saved["num_classes"])
        state = dict(saved["state_dict"])
        # transformers before 4.31 saved this buffer; it holds 0, 1, 2, ...
        state.pop("encoder.embeddings.position_ids", None)
        both = torch.nn.ModuleDict({"encoder": self.detector, "clf": self.classifier})
        try:
            both.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{fluency_model} does not fit {base}: {error} Give the detector's "
                "own BERT as --fluency_base."
            ) from error
        both.to(self.device)

    @staticmethod
    def needs(sbert_model: str, fluency_model: str) -> dict[str, str]:
        """Metric -> what is missing for it; "" where nothing is."""
        detector = "" if fluency_model else NEEDS_DETECTOR
        sbert = "" if sbert_model else NEEDS_SBERT
        both = " and ".join(n for n in (sbert, detector) if n)
        return {
            "fense": both,
            "fluency_error_rate": detector,
            "spider_fl": detector,
        }

    @staticmethod
    def _check_pooling(folder: Path) -> None:
        path = folder / "1_Pooling" / "config.json"
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            if not re.search(r'"pooling_mode_mean_tokens":\s*true', text):
                raise ValueError(
                    f"{path}: expected mean pooling (FENSE's encoder), found {text}"
                )

    def fluency_errors(self, captions: Sequence[str]) -> np.ndarray:
        """1.0 where the detector is surer than 0.9 of an error, else 0.0; (N,)."""
        torch = self._torch
        found = []
        for start in range(0, len(captions), BATCH):
            # The detector was trained on lower case without punctuation.
            batch = [
                re.sub(r"[^\w\s]", "", c).lower()
                for c in captions[start : start + BATCH]
            ]
            inputs = self.detector_tokenizer(
                batch,
                truncation=True,
                padding=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            ).to(self.device)
            with torch.no_grad():
                first = self.detector(**inputs).last_hidden_state[:, 0]
                probability = torch.sigmoid(self.classifier(first))[:, -1]
            found.append((probability > ERROR_THRESHOLD).double().cpu().numpy())
        return np.concatenate(found) if found else np.zeros(0)

    def similarity(
        self, captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """Mean cosine of each caption with its references; (N,) float64."""
        flat = [r for refs in references for r in refs]
        owner = np.repeat(np.arange(len(captions)), [len(r) for r in references])
        ours = self._embed(captions)
        cosines = np.empty(len(flat))
        for start in range(0, len(flat), 4096):  # bounds the references in memory
            part = slice(start, start + 4096)
            theirs = self._embed(flat[part])
            cosines[part] = (ours[owner[part]] * theirs).sum(axis=1)
        sums = np.bincount(owner, weights=cosines, minlength=len(captions))
        return sums / np.bincount(owner, minlength=len(captions))

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) unit length; mean over the tokens that are not padding."""
        torch = self._torch
        sbert = self.sbert
        assert sbert is not None, NEEDS_SBERT
        rows = []
        for start in range(0, len(texts), BATCH):
            inputs = self.sbert_tokenizer(
                texts[start : start + BATCH],
                truncation=True,
                padding=True,
                max_length=128,
                return_tensors="pt",
            ).to(self.device)
            with torch.no_grad():
                hidden = sbert(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None].to(hidden.dtype)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            rows.append(torch.nn.functional.normalize(mean, dim=-1).cpu().numpy())
        return np.concatenate(rows)
