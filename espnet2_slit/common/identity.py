"""What makes a frozen part the same when it is loaded again, wherever it then lies.

Owns the digest of weights, which facts about a part are compared and which are free to
change, and whether a name leads to a folder here or to the Hugging Face Hub.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from espnet2_slit.common.files import sha256

if TYPE_CHECKING:
    from torch.nn import Module

# Files that hold weights, by preference: a folder with both formats (common on the
# Hub) is identified by its safetensors alone, which is what `from_pretrained` loads.
WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.ckpt")
# Where weights lay and how they are held in memory is free to change.
NOT_IDENTITY = ("path", "local", "revision", "dtype", "load_in_bits")

_file_digests: dict[tuple[str, int, int], str] = {}


def identity_differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names and values in which two identities of a frozen part differ.

    Args:
        expected: `identity()` of the part as it was; keys it lacks are not compared,
            so that a few known facts can be checked on their own.
        found: `identity()` of the part as it is.

    Returns:
        Lines "name: expected ..., found ...".
    """
    return [
        f"{name}: expected {expected[name]!r}, found {found.get(name)!r}"
        for name in expected
        if name not in NOT_IDENTITY and expected[name] != found.get(name)
    ]


def comes_from_hub(name: str, identity: dict[str, Any] | None = None) -> bool:
    """Whether a name that leads nowhere here may be asked from the Hugging Face Hub.

    Args:
        name: as configured.
        identity: recorded by training; "local" in it says that the part was a file or
            a folder then, so that a relative path of two parts is no "owner/name".

    Returns:
        True for "owner/name" or "name".
    """
    if (identity or {}).get("local"):
        return False
    path = PurePosixPath(name)
    return (
        bool(name)
        and len(path.parts) <= 2
        and not path.is_absolute()
        and not name.startswith((".", "~"))
        and path.suffix not in (".pt", ".pth", ".bin", ".safetensors", ".ckpt")
        and path.parts[0] not in ("downloads", "exp", "frozen")
    )


def fingerprint(path_or_module: str | Path | Module) -> str:
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
    if not isinstance(path_or_module, (str, Path)):
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
        _file_digests[key] = sha256(real)
    return _file_digests[key]


def _module_digest(module: Module) -> str:
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
