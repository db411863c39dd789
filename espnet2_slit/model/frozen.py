"""Keeps pretrained modules frozen: eval mode, own dtype, outside checkpoints and DDP.

Owns the holder (`Frozen`) and the identity of pretrained weights (`fingerprint`);
what the held module computes is the business of `audio_encoder` and `language_model`.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import torch
from torch import nn

# Files that hold weights, by preference: a folder with both formats (common on the
# Hub) is identified by its safetensors alone, which is what `from_pretrained` loads.
WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.ckpt")
CHUNK_BYTES = 1 << 22

_file_digests: dict[tuple[str, int, int], str] = {}


class Frozen(nn.Module):
    """Holds a pretrained module that training must neither change nor save.

    The module is kept outside torch's registry, so `parameters()`, `state_dict()`,
    the optimizer, ESPnet's `--init_param`, n-best averaging and DDP's broadcast do not
    see it. It stays in eval mode through `model.train()`, follows `.to(device)`, and
    keeps its own dtype through `.half()` and ESPnet's `.to(dtype=..., device=...)`.
    Its parameters take no gradient; gradients do flow through it to its inputs.

    Args:
        module: the pretrained module. It is changed in place: eval, no gradients.
        dtype: cast its floating-point tensors to this dtype once; None leaves them.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None = None):
        super().__init__()
        module.requires_grad_(False).eval()
        if dtype is not None:
            module.to(dtype=dtype)
        # A tuple is not a Module, so nn.Module.__setattr__ does not register it.
        self._held = (module,)
        super().train(False)

    @property
    def module(self) -> nn.Module:
        """The held module."""
        return self._held[0]

    @property
    def device(self) -> torch.device:
        """Where the held module's first tensor is; cpu if it has none."""
        for tensors in (self.module.parameters(), self.module.buffers()):
            for tensor in tensors:
                return tensor.device
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point tensor; float32 if there is none."""
        for tensors in (self.module.parameters(), self.module.buffers()):
            for tensor in tensors:
                if tensor.is_floating_point():
                    return tensor.dtype
        return torch.float32

    def forward(self, *args, **kwargs):
        """Forwards to the held module."""
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> "Frozen":
        """Stays in eval mode whatever `mode` says."""
        return super().train(False)

    def _apply(self, fn, recurse: bool = True):
        # `.to()`, `.cuda()`, `.half()`, ... all arrive here as a function of tensors.
        # An empty probe tells which device it leads to; its dtype is not followed.
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device=self.device, dtype=self.dtype)).device
        if device != self.device:
            if getattr(self.module, "is_quantized", False):
                raise RuntimeError(
                    f"{type(self.module).__name__} was loaded in 8 or 4 bits on "
                    f"{self.device} and cannot be moved to {device}. Start the process "
                    f"with {device} as its current device (CUDA_VISIBLE_DEVICES), or "
                    "load without load_in_bits."
                )
            self.module.to(device=device)
        return self

    def __deepcopy__(self, memo) -> "Frozen":
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for key, value in self.__dict__.items():
            twin.__dict__[key] = copy.deepcopy(value, memo)
        return twin

    def __reduce_ex__(self, protocol):
        raise TypeError(
            f"Frozen holds a pretrained {type(self.module).__name__} that is left out "
            "of checkpoints on purpose, so it is not pickled. Save the state_dict() of "
            "the model around it, and build the model again from its config to load."
        )

    def extra_repr(self) -> str:
        """Shows what is held, since torch cannot see it."""
        count = sum(p.numel() for p in self.module.parameters())
        kind = type(self.module).__name__
        return f"{kind}, {count:,} frozen parameters, {self.dtype}"


def fingerprint(path_or_module: str | Path | nn.Module) -> str:
    """SHA-256 of pretrained weights, to recognise them when a model is loaded again.

    Args:
        path_or_module: a weights file; a folder with weights files (a Hugging Face
            model: its configuration is not part of the digest, its weights are); or a
            module, whose named tensors are digested with dtype and shape.

    Returns:
        64 hexadecimal digits. A file's digest is kept for this process as long as its
        size and modification time stay the same.

    Raises:
        FileNotFoundError: the path does not exist or the folder holds no weights.
    """
    if isinstance(path_or_module, nn.Module):
        return _module_digest(path_or_module)
    path = Path(path_or_module)
    if path.is_file():
        return _file_digest(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"expected a weights file or a folder with weights, found nothing at "
            f"{path}. Check the path in the config."
        )
    for pattern in WEIGHT_PATTERNS:
        files = sorted(path.glob(pattern))
        if files:
            break
    else:
        raise FileNotFoundError(
            f"expected weights ({', '.join(WEIGHT_PATTERNS)}) in {path}, found "
            f"{sorted(p.name for p in path.iterdir())}. Check the path in the config."
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {_file_digest(file)}\n".encode())
    return digest.hexdigest()


def weights_folder(path: str | Path, revision: str | None = None) -> Path:
    """The local folder of a Hugging Face model, also when it came from the Hub.

    Args:
        path: folder, or a Hub name that was loaded before.
        revision: branch, tag or commit on the Hub.

    Returns:
        The folder; for a Hub name the snapshot in the local cache.
    """
    if Path(path).exists():
        return Path(path)
    from huggingface_hub import snapshot_download

    snapshot = snapshot_download(str(path), revision=revision, local_files_only=True)
    return Path(snapshot)


def _file_digest(file: Path) -> str:
    real = file.resolve()
    stat = real.stat()
    key = (str(real), stat.st_size, stat.st_mtime_ns)
    if key not in _file_digests:
        digest = hashlib.sha256()
        with open(real, "rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
        _file_digests[key] = digest.hexdigest()
    return _file_digests[key]


def _module_digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
