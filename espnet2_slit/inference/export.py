"""The embedder as ONNX graphs: search without PyTorch, ESPnet or transformers.

Owns which graphs a system gives, and the check that they compute what PyTorch does.
`frames.onnx` takes the frames of the audio encoder, `audio.onnx` waveforms, where the
encoder can be traced; `text.onnx` takes ids of `tokenizer.json`. onnx.json says how.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espnet2_slit.common.files import write_json
from espnet2_slit.common.padded import Padded
from espnet2_slit.inference.engine import Engine, computes
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.traceable_beats import BeatsFrames

SCHEMA = 1
TOLERANCE = 1e-4  # largest difference of an embedding, whose rows have unit length
ROUNDS = 5  # of the clock
LONGEST_S = 3  # seconds of audio that the check takes
INPUTS = {"audio": "speech", "frames": "frames", "text": "ids"}  # beside lengths


class FramesToEmbedding(nn.Module):
    """(B, T, D_a) frames and (B,) lengths -> (B, Q, E)."""

    def __init__(self, model: Any):
        super().__init__()
        self.model: Any = model

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """See the class."""
        return self.model.embed_audio(Padded(frames, lengths))[0]


class ClipFrames(nn.Module):
    """(1, S), a clip of one window -> its frames, of any encoder that can be traced."""

    def __init__(self, encoder: Any):
        super().__init__()
        # the module is outside torch's registry until here
        self.encoder, self.held = encoder, encoder.frozen.module

    def forward(self, speech: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        encoder: Any = self.encoder
        frames = encoder._combine(encoder._encode(speech).float())
        return frames, torch.full((frames.shape[0],), frames.shape[1])


class AudioToEmbedding(nn.Module):
    """(B, S) speech, and (B,) samples where frames take them -> (B, Q, E)."""

    def __init__(self, model: Any, frames: nn.Module):
        super().__init__()
        self.embed, self.frames = FramesToEmbedding(model), frames

    def forward(self, speech: Tensor, lengths: Tensor | None = None) -> Tensor:
        """See the class."""
        given = [speech] if lengths is None else [speech, lengths]
        return self.embed(*self.frames(*given))


class TextToEmbedding(nn.Module):
    """(S, L) ids and (S,) lengths -> (S, E)."""

    def __init__(self, model: Any):
        super().__init__()
        self.model: Any = model

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """See the class."""
        return self.model.embed_text(Padded(ids, lengths))


@computes
def export_onnx(
    engine: Engine, folder: str | Path, quantize: bool = False
) -> dict[str, Any]:
    """Write the embedder of a system, checked against PyTorch.

    Args:
        engine: with a representation part, on the CPU.
        folder: to make, or to write into.
        quantize: also write <name>.int8.onnx, whose matrices have 8 bits.

    Returns:
        What onnx.json says: {"graphs": {name: {"inputs", "error", "milliseconds"}},
        "encoder_left_out": why, or "", and the facts of audio and text}.

    Raises:
        ImportError: a package of the extra `onnx` is not installed.
        InferenceError: no representation part; a graph that differs from PyTorch.
    """
    runtime = _onnxruntime()
    part = engine.require("representation")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = part.model.float()
    torch.manual_seed(0)
    frames = torch.randn(2, 41, model.qformer.encoder_width)
    ids = torch.tensor([list(part.text_ids("a dog barks at two of them"))])
    ids = torch.cat([ids, ids.flip(1)])
    width = ids.shape[1]
    todo: dict[str, tuple[nn.Module, list[Tensor]]] = {
        "frames": (FramesToEmbedding(model), [frames, torch.tensor([41, 30])]),
        "text": (TextToEmbedding(model), [ids, torch.tensor([width, width - 2])]),
    }
    graphs, left_out = _audio_graph(model, engine.encoder, folder, runtime)
    for name, (module, inputs) in todo.items():
        # one row fewer and shorter than what is traced
        fewer = [x[:1, :-3] if x.dim() > 1 else x[:1] - 3 for x in inputs]
        graphs[name] = _export(name, module, [inputs, fewer], folder, runtime)
    if quantize:
        for name in list(graphs):
            graphs[f"{name}.int8"] = _quantized(name, folder, graphs[name], runtime)
    for graph in graphs.values():
        del graph["given"], graph["expected"]
    part.preprocess.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    facts = {
        "schema": SCHEMA,
        "graphs": graphs,
        "encoder_left_out": left_out,
        "sample_rate": engine.sample_rate,
        "frames_per_second": engine.encoder_identity["frames_per_second"],
        "longest_s": float(engine.encoder_identity["window_s"]),
        "max_text_length": part.preprocess.max_text_length,
    }
    write_json(folder / "onnx.json", facts)
    return facts


def _audio_graph(
    model: Any, encoder: Any, folder: Path, runtime: Any
) -> tuple[dict[str, Any], str]:
    """{"audio": graph} where the encoder can be traced, else why it cannot."""

    def by_encoder(speech: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            lengths = torch.full((len(speech),), speech.shape[1])
        return model.embed_audio(Padded(*encoder(speech, lengths)))[0]

    rate = encoder.sample_rate
    longest = int(rate * min(LONGEST_S, encoder.max_duration_s))
    # What lies beyond the lengths is noise, too: it must not matter.
    speech = 0.1 * torch.randn(3, longest)
    shorter = speech[:, : longest * 2 // 3]
    lengths = torch.tensor([shorter.shape[1], longest // 2, rate // 20])
    precision, encoder.precision = encoder.precision, "float32"
    try:
        if encoder.kind == "beats":
            frames: nn.Module = BeatsFrames(encoder)
            cases = [
                [shorter, lengths],
                [speech[1:], torch.tensor([longest // 3, longest])],
            ]
        else:  # padding may reach the encoder: one clip at a time
            frames, cases = ClipFrames(encoder), [[shorter[:1]], [speech[:1]]]
        module = AudioToEmbedding(model, frames)
        return {
            "audio": _export("audio", module, cases, folder, runtime, by_encoder)
        }, ""
    except (InferenceError, RuntimeError, ValueError) as error:
        for file in folder.glob("audio.onnx*"):
            file.unlink()
        return {}, f"{encoder.kind}: {_reason(error)}"
    finally:
        encoder.precision = precision


def _onnxruntime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"slit export --onnx needs {error.name}, which is not installed: "
            "pip install 'espnet2_slit[onnx]'"
        ) from error
    return onnxruntime


def _export(
    name: str,
    module: nn.Module,
    cases: list[list[Tensor]],
    folder: Path,
    runtime: Any,
    reference: Callable[..., Tensor] | None = None,
) -> dict[str, Any]:
    """Trace a module, write its graph, and compare it on sizes traced and others.

    Args:
        name: of the graph.
        module: what is traced.
        cases: inputs: those that are traced, and others.
        folder: where <name>.onnx is written.
        runtime: onnxruntime.
        reference: what the graph must compute; None for the module.
    """
    inputs = cases[0]
    names = [INPUTS[name], "lengths"][: len(inputs)]
    path = folder / f"{name}.onnx"
    module.eval()
    shapes = tuple(
        (
            {axis: torch.export.Dim.DYNAMIC for axis in range(min(x.dim(), 2))}
            if len(x) > 1
            else {1: torch.export.Dim.DYNAMIC}
        )
        for x in inputs
    )
    # Parameters of an inference_mode region cannot be traced.
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        torch.onnx.export(
            module,
            tuple(inputs),
            str(path),
            dynamo=True,
            external_data=False,
            input_names=names,
            output_names=["vectors"],
            dynamic_shapes=shapes,
            verbose=False,
        )
        expected = [(reference or module)(*case).numpy() for case in cases]
    fed = [{n: x.numpy() for n, x in zip(names, rows, strict=True)} for rows in cases]
    graph: dict[str, Any] = {"inputs": names, "given": fed, "expected": expected}
    graph.update(_measure(path, graph, runtime))
    if not graph["error"] <= TOLERANCE:
        raise InferenceError(
            f"{path}: expected what PyTorch computes to {TOLERANCE}, found a difference"
            f" of {graph['error']:.1e}. Install another onnxruntime or torch."
        )
    return graph


def _measure(path: Path, graph: dict[str, Any], runtime: Any) -> dict[str, float]:
    """Largest difference from PyTorch, and the median time of the first inputs."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = [session.run(None, fed)[0] for fed in graph["given"]]
    error = max(
        float(np.abs(one - other).max())
        for one, other in zip(found, graph["expected"], strict=True)
    )
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        session.run(None, graph["given"][0])
        seconds.append(time.perf_counter() - started)
    return {"error": error, "milliseconds": 1e3 * float(np.median(seconds))}


def _quantized(
    name: str, folder: Path, graph: dict[str, Any], runtime: Any
) -> dict[str, Any]:
    """The graph with matrices of 8 bits: smaller, and no longer within TOLERANCE."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = folder / f"{name}.int8.onnx"
    with tempfile.TemporaryDirectory() as temporary, _quiet():
        prepared = Path(temporary) / "prepared.onnx"
        source = folder / f"{name}.onnx"
        try:
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        except Exception as error:  # of its own kinds; it is only a preparation
            logging.debug("%s: not prepared: %s", source, error)
            shutil.copyfile(source, prepared)
        quantize_dynamic(
            str(prepared),
            str(path),
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
    return {**graph, **_measure(path, graph, runtime)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of packages that nothing here uses."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "root")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _reason(error: Exception) -> str:
    """The line of an exporter's long message that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("- Received", "<class"))]
    return (told or lines or [type(error).__name__])[0][:300]
