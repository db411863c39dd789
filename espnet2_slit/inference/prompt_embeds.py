"""What a causal language model reads before it writes, for servers that take it as is.

Owns the vectors of a clip and its prompt, in the order in which this package's own
generation puts them. vLLM, for one, takes them as `prompt_embeds`, so that a system's
language model may be served where it is fastest and its audio side stay here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from espnet2_slit.common import templates
from espnet2_slit.common.files import atomic
from espnet2_slit.inference.engine import Engine, computes
from espnet2_slit.inference.generation import prefixes
from espnet2_slit.inference.requests import InferenceError


@computes
def prompt_embeds(
    engine: Engine,
    audio: Sequence,
    instruction: str | None = None,
    sample_rate: int | None = None,
) -> list[Tensor]:
    """The language model's inputs for clips.

    Args:
        engine: a system with a generator whose language model is causal.
        audio: N paths, arrays, tensors or (array, rate).
        instruction: the wording; None: that of a caption.
        sample_rate: Hz of arrays.

    Returns:
        For each clip (L, D_l) on the CPU, in the dtype of the language model.

    Raises:
        InferenceError: no generator, or one whose language model has an encoder, which
            reads embeddings in another place than servers put them.
    """
    part = engine.require("generator")
    model = part.model.language_model
    if model.kind != "causal":
        raise InferenceError(
            f"prompt embeddings: expected a causal language model, found {model.path},"
            " which is sequence-to-sequence. Generate with this package."
        )
    clips = engine.clips(list(audio), sample_rate)
    wording = instruction or templates.instruction("caption")
    requests = [(i, wording) for i in range(len(clips))]
    found: list[Tensor | None] = [None] * len(clips)
    for batch, prefix, prompt in prefixes(engine, part, clips, requests):
        for i, row in zip(batch, model.embed_prompt(prefix, prompt), strict=True):
            found[i] = row.cpu()
    return [row for row in found if row is not None]


def write_prompt_embeds(
    engine: Engine,
    files: Sequence[str],
    folder: str | Path,
    instruction: str | None = None,
) -> list[Path]:
    """`prompt_embeds` of files, one file of torch.save each.

    Args:
        engine: as above.
        files: audio.
        folder: of the files to write, <stem>.pt; a second file of one stem gets its
            number.
        instruction: as above.

    Returns:
        The files, in order.
    """
    import torch

    written: list[Path] = []
    step = engine.batch_size
    for start in range(0, len(files), step):
        some = files[start : start + step]
        for file, row in zip(
            some, prompt_embeds(engine, some, instruction), strict=True
        ):
            path = Path(folder) / f"{Path(file).stem}.pt"
            if path in written:
                path = path.with_stem(f"{path.stem}.{len(written)}")
            with atomic(path) as stream:
                torch.save(row.clone(), stream)
            written.append(path)
    return written
