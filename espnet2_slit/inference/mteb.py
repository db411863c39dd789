"""SLIT as a model of mteb, the benchmark of embeddings, for its audio tasks.

Owns the shape that mteb's `EncoderProtocol` asks for: one vector a row, and a
similarity of two tables of them. Embeddings come from `inference`. mteb (extra: mteb)
is imported for its model card only, so the encoder also serves what looks like it.

    import mteb

    encoder = SLITEncoder("exp/mini_instruction")
    mteb.evaluate(encoder, mteb.get_tasks(["ESC50_Zeroshot"]))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet2_slit.inference.ranking import similarity
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.slit import SLIT


class SLITEncoder:
    """A system with a representation part, in the shape of mteb's audio models.

    A clip is its Q query embeddings side by side, (Q * E), so that classifiers see all
    that the queries found; a text is one embedding (E). `similarity` knows both by
    their width.

    Args:
        model_name: experiment folder, archive or Hugging Face repository.
        revision: of the repository.
        device: "cpu", "cuda" or "cuda:N"; None takes CUDA where there is one.
        **options: further options of `SLIT.from_pretrained`.

    Raises:
        InferenceError: the system has no representation part.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        **options: Any,
    ):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model_name, self.revision = str(model_name), revision
        self.model = SLIT.from_pretrained(
            model_name, revision=revision, device=device, **options
        )
        if self.model.representation is None:
            raise InferenceError(
                f"{model_name}: embeddings need a representation part, this system has"
                " none. Link a representation experiment to it (slit_pack --link true)."
            )

    @property
    def width(self) -> int:
        """E, by which a table of texts is told from one of clips."""
        part = self.model.require("representation")
        return part.model.heads.text_projection.out_features

    def get_text_embeddings(self, inputs: Any, **kwargs: Any) -> np.ndarray:
        """Texts of a loader: (M, E) float32, unit length.

        Args:
            inputs: gives batches {"text": list}.
            **kwargs: what mteb hands to every model; batches are those of the loader.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        return self.model.embed_text(texts)

    def get_audio_embeddings(self, inputs: Any, **kwargs: Any) -> np.ndarray:
        """Clips of a loader: (N, Q * E) float32, unit length.

        Args:
            inputs: gives batches {"audio": list of {"array", "sampling_rate"}}, of any
                rate and length, not stacked; `encode` sees to that.
            **kwargs: what mteb hands to every model.

        Raises:
            AudioError: a clip that cannot be used.
        """
        rows = [self._embed(batch["audio"]) for batch in inputs]
        if not rows:
            raise InferenceError("expected clips to embed, found an empty loader.")
        return np.concatenate(rows)

    def _embed(self, clips: Any) -> np.ndarray:
        """(B, Q * E) of dicts with an array and its rate."""
        audio = [(np.asarray(c["array"]), int(c["sampling_rate"])) for c in clips]
        embedded = self.model.embed_audio(audio)  # (B,Q,E)
        return embedded.reshape(len(audio), -1) / embedded.shape[1] ** 0.5

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embeddings of a loader of texts or of clips.

        Args:
            inputs: loader; its dataset's features, or else its first batch, say what it
                holds.
            task_metadata: of mteb's task; not used, there are no prompts.
            hf_split: likewise.
            hf_subset: likewise.
            prompt_type: likewise.
            **kwargs: handed on.

        Raises:
            InferenceError: neither texts nor clips, or both.
        """
        if hasattr(inputs, "collate_fn"):
            # mteb's own would stack clips of different length.
            inputs.collate_fn = _columns
        dataset = getattr(inputs, "dataset", None)
        columns = getattr(dataset, "features", None) or next(iter(inputs), {})
        found = [name for name in ("text", "audio") if name in columns]
        if len(found) != 1:
            raise InferenceError(
                "expected a loader of 'text' or of 'audio', found the columns"
                f" {sorted(columns)}. SLIT embeds the two one at a time."
            )
        if found == ["text"]:
            return self.get_text_embeddings(inputs, **kwargs)
        return self.get_audio_embeddings(inputs, **kwargs)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosines of all rows with all rows: (N1, N2) float32.

        Of a clip and a text that of the query nearest to the text, as in `SLIT.search`;
        of two clips the mean over the queries, each compared with itself.

        Args:
            embeddings1: (N1, E) texts or (N1, Q * E) clips, or one row.
            embeddings2: likewise.
        """
        one, other = _table(embeddings1), _table(embeddings2)
        width = self.width
        texts = [table.shape[1] == width for table in (one, other)]
        if texts[0] == texts[1]:
            scores = one @ other.T
        elif texts[0]:
            scores = similarity(_queries(other, width), one)
        else:
            scores = similarity(_queries(one, width), other).T
        return torch.from_numpy(np.ascontiguousarray(scores))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """`similarity` of row i with row i: (N,) float32.

        Args:
            embeddings1: N texts or clips.
            embeddings2: N texts or clips.
        """
        pairs = zip(_table(embeddings1), _table(embeddings2), strict=True)
        return torch.stack([self.similarity(*pair)[0, 0] for pair in pairs])

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's model card.

        Raises:
            ImportError: mteb is not installed.
        """
        try:
            from mteb.models import ModelMeta
        except ImportError as error:
            raise ImportError(
                "the model card is mteb's, which is not installed. Run: python -m pip"
                " install mteb"
            ) from error
        part = self.model.require("representation")
        width = self.width
        queries = part.model.qformer.num_queries
        size = sum(weight.numel() for weight in part.model.parameters())
        name = self.model_name
        if Path(name).exists():  # mteb wants organisation/name
            name = f"espnet2_slit/{Path(name).resolve().stem}"
        return ModelMeta(
            loader=SLITEncoder,
            name=name,
            revision=self.revision or "local",
            release_date=None,
            languages=["eng-Latn"],
            n_parameters=size,
            memory_usage_mb=round(4 * size / 2**20),
            max_tokens=None,
            embed_dim=queries * width,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name=None,  # none of mteb's: `similarity` above
            use_instructions=False,
            training_datasets=None,
            modalities=["audio", "text"],
        )


def _columns(rows: list[dict]) -> dict:
    """Rows of a dataset as columns, nothing stacked."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def _table(embeddings: Any) -> np.ndarray:
    """(N, width) float32 from an array or tensor; one row may come alone."""
    if isinstance(embeddings, torch.Tensor):
        embeddings = embeddings.float().cpu().numpy()
    return np.atleast_2d(np.asarray(embeddings, dtype=np.float32))


def _queries(clips: np.ndarray, width: int) -> np.ndarray:
    """(N, Q * E) scaled to unit length -> (N, Q, E) of unit rows."""
    split = clips.reshape(len(clips), -1, width)
    return split * split.shape[1] ** 0.5
