"""The embedder as ONNX graphs: search without PyTorch, ESPnet or transformers.

Owns which graphs a system gives, and the check that they compute what PyTorch does.
`frames.onnx` takes the frames of the audio encoder, `audio.onnx` a waveform, where the
encoder can be traced; `text.onnx` takes ids of `tokenizer.json`. onnx.json says how.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espnet2_slit.common.files import write_json
from espnet2_slit.common.padded import Padded
from espnet2_slit.inference.engine import Engine, computes
from espnet2_slit.inference.requests import InferenceError

SCHEMA = 1
TOLERANCE = 1e-4  # largest difference of an embedding, whose rows have unit length
ROUNDS = 5  # of the clock
MEL_BINS = 128  # that BEATs reads


class FramesToEmbedding(nn.Module):
    """(B, T, D_a) frames and (B,) lengths -> (B, Q, E)."""

    def __init__(self, model: Any):
        super().__init__()
        self.model: Any = model

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """See the class."""
        return self.model.embed_audio(Padded(frames, lengths))[0]


class Filterbank(nn.Module):
    """Kaldi's logarithmic mel filterbank of whole batches, in operations that trace.

    Mean removal, pre-emphasis, window and Fourier transform of a frame are linear: one
    convolution does them all. torchaudio's own is for one clip of a fixed length.

    Args:
        sample_rate: Hz.
        bins: mel bands.
        mean: subtracted from the logarithms.
        std: half of what they are then divided by.
    """

    def __init__(self, sample_rate: int, bins: int, mean: float, std: float):
        super().__init__()
        from torchaudio.compliance import kaldi

        length, self.shift = sample_rate * 25 // 1000, sample_rate * 10 // 1000
        padded = 1 << (length - 1).bit_length()
        frame = torch.eye(length, dtype=torch.float64)  # row i: what sample i does
        frame = frame - frame.mean(dim=1, keepdim=True)
        frame = frame - 0.97 * torch.cat([frame[:, :1], frame[:, :-1]], dim=1)
        window = torch.hann_window(length, periodic=False, dtype=torch.float64) ** 0.85
        spectrum = torch.fft.rfft(frame * window, n=padded)  # (length, K)
        kernel = torch.cat([spectrum.real, spectrum.imag], dim=1).t()[:, None]
        # 20 Hz to the Nyquist frequency; warping is off
        mel = kaldi.get_mel_banks(
            bins, padded, float(sample_rate), 20.0, 0.0, 100.0, -500.0, 1.0
        )[0]
        self.register_buffer("kernel", kernel.float() * 2**15)  # of 16-bit samples
        self.register_buffer("mel", nn.functional.pad(mel, (0, 1)))
        self.mean, self.std = mean, std

    def forward(self, speech: Tensor) -> Tensor:
        """(B, S) in [-1, 1] -> (B, T, bins)."""
        kernel, mel = self.get_buffer("kernel"), self.get_buffer("mel")
        parts = nn.functional.conv1d(speech[:, None], kernel, stride=self.shift)
        real, imaginary = parts.chunk(2, dim=1)
        energy = torch.matmul(mel, real.square() + imaginary.square())
        floor = torch.finfo(torch.float32).eps
        logarithms = energy.transpose(1, 2).clamp(min=floor).log()
        return (logarithms - self.mean) / (2 * self.std)


class AudioToEmbedding(nn.Module):
    """(1, S), a clip of one window of the encoder at most -> (1, Q, E)."""

    def __init__(self, model: Any, encoder: Any, filterbank: nn.Module | None):
        super().__init__()
        self.embed, self.encoder = FramesToEmbedding(model), encoder
        # outside torch's registry until here
        self.held, self.filterbank = encoder.frozen.module, filterbank

    def forward(self, speech: Tensor) -> Tensor:
        """See the class."""
        encoder: Any = self.encoder
        frames = encoder._encode(speech).float()
        lengths = torch.full((frames.shape[0],), frames.shape[1])
        return self.embed(frames, lengths)


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
    graphs: dict[str, Any] = {}
    todo: dict[str, tuple[nn.Module, list[Tensor]]] = {
        "frames": (FramesToEmbedding(model), [frames, torch.tensor([41, 30])]),
        "text": (TextToEmbedding(model), [ids, torch.tensor([width, width - 2])]),
    }
    encoder, left_out = engine.encoder, ""
    # one clip: ESPnet's BEATs makes a constant of the batch it is traced with
    audio = 0.1 * torch.randn(1, 2 * engine.sample_rate + 123)
    try:
        with _traceable(encoder) as filterbank:
            whole = AudioToEmbedding(model, encoder, filterbank)
            graphs["audio"] = _export("audio", whole, [audio], folder, runtime)
    except (InferenceError, RuntimeError, ValueError) as error:
        left_out = f"{encoder.kind}: {_reason(error)}"
        for file in folder.glob("audio.onnx*"):
            file.unlink()
    for name, (module, inputs) in todo.items():
        graphs[name] = _export(name, module, inputs, folder, runtime)
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
    name: str, module: nn.Module, inputs: list[Tensor], folder: Path, runtime: Any
) -> dict[str, Any]:
    """Trace a module, write its graph, compare it on other sizes than those traced."""
    names = {"audio": ["speech"], "frames": ["frames", "lengths"]}.get(
        name, ["ids", "lengths"]
    )
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
        # one row fewer (of a batch) and shorter than what was traced
        given = [x[:1, : x.shape[1] - 3] if x.dim() > 1 else x[:1] - 3 for x in inputs]
        if name == "audio":
            given = [inputs[0][:1, : inputs[0].shape[1] * 2 // 3]]
        expected = [module(*inputs).numpy(), module(*given).numpy()]
    fed = [
        {n: x.numpy() for n, x in zip(names, rows, strict=True)}
        for rows in (inputs, given)
    ]
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
def _traceable(encoder: Any) -> Iterator[nn.Module | None]:
    """BEATs with a filterbank that traces, for the time of the export."""
    if encoder.kind != "beats":
        yield None
        return
    attributes = encoder.frozen.module.__dict__
    mean, std = encoder.fbank_mean, encoder.fbank_std
    filterbank = Filterbank(encoder.sample_rate, MEL_BINS, mean, std)
    attributes["preprocess"] = filterbank.forward  # before the method of that name
    try:
        yield filterbank
    finally:
        del attributes["preprocess"]


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
