"""Frozen parts by a short name: where they can be had, fetched whole and checked.

Owns the table of well-known parts and what a folder says of itself. It leaves
what a part is used for to the recipe, and other models' names to whoever gives them.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import fnmatch
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from espnet2_slit.common.files import sha256, write_json

NOT_STATED = "not stated: read its page before use"
SOURCE = "source.json"  # beside the files: what they are and where from
TEXTS = ("*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICEN[CS]E*", "NOTICE*")
# The first of these that a repository has is fetched, and nothing that is a program.
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
BEATS = "--audio_encoder beats --audio_encoder_path {file}"
OPENBEATS = f'{BEATS} --audio_encoder_conf "fbank_mean=15.29130 fbank_std=5.90532"'
ENCODER = "--audio_encoder hugging_face --audio_encoder_path {folder}"
LANGUAGE_MODEL = "--language_model {folder}"
QFORMER = "--qformer_tokenizer {folder}"


class HubError(ValueError):
    """A part that cannot be fetched; the message says what to do instead."""


@dataclass(frozen=True)
class Published:
    """A frozen part as its makers, or a mirror, publish it.

    Attributes:
        repository: on the Hugging Face Hub.
        use: options of the recipe that take it.
        weights: patterns of weights files, by preference.
        kind: of repository, "model" or "dataset".
        revision: commit that is fetched where none is asked for; None: the newest.
        checksums: SHA-256 of files of that commit, where they are known beforehand.
    """

    repository: str
    use: str
    weights: tuple[str, ...] = WEIGHTS
    kind: str = "model"
    revision: str | None = None
    checksums: dict[str, str] = field(default_factory=dict)


_OPENBEATS_FILES = ("*epoch_latest.pt", "*.pt")
PARTS = {
    "openbeats-base": Published(
        "shikhar7ssu/OpenBEATs-Base-i3", OPENBEATS, _OPENBEATS_FILES
    ),
    "openbeats-large": Published(
        "shikhar7ssu/OpenBEATs-Large-i3", OPENBEATS, _OPENBEATS_FILES
    ),
    # The links of its authors are dead at times; a mirror with a known checksum.
    "beats-iter3": Published(
        "Bencr/beats-checkpoints",
        BEATS,
        ("BEATs_iter3_plus_AS2M.pt",),
        "dataset",
        "082fb1849d55bef1ee52ee8d8910b3adc69d4bc8",
        {
            "BEATs_iter3_plus_AS2M.pt": (
                "d43cbfad4d7b56381c061d7a24774f908d4d94c72961f6eb1d9090ff18cd8d34"
            )
        },
    ),
    "whisper-tiny.en": Published("openai/whisper-tiny.en", ENCODER),
    "whisper-tiny": Published("openai/whisper-tiny", ENCODER),
    "whisper-base": Published("openai/whisper-base", ENCODER),
    "whisper-small": Published("openai/whisper-small", ENCODER),
    "whisper-large-v3": Published("openai/whisper-large-v3", ENCODER),
    "ast": Published("MIT/ast-finetuned-audioset-10-10-0.4593", ENCODER),
    "clap": Published("laion/clap-htsat-unfused", ENCODER),
    "clap-large": Published("laion/larger_clap_general", ENCODER),
    "flan-t5-small": Published("google/flan-t5-small", LANGUAGE_MODEL),
    "flan-t5-base": Published("google/flan-t5-base", LANGUAGE_MODEL),
    "flan-t5-large": Published("google/flan-t5-large", LANGUAGE_MODEL),
    "flan-t5-xl": Published("google/flan-t5-xl", LANGUAGE_MODEL),
    "smollm2-135m": Published("HuggingFaceTB/SmolLM2-135M-Instruct", LANGUAGE_MODEL),
    "smollm2-360m": Published("HuggingFaceTB/SmolLM2-360M-Instruct", LANGUAGE_MODEL),
    "smollm2-1.7b": Published("HuggingFaceTB/SmolLM2-1.7B-Instruct", LANGUAGE_MODEL),
    "qwen2.5-0.5b": Published("Qwen/Qwen2.5-0.5B-Instruct", LANGUAGE_MODEL),
    "qwen2.5-1.5b": Published("Qwen/Qwen2.5-1.5B-Instruct", LANGUAGE_MODEL),
    "qwen3-0.6b": Published("Qwen/Qwen3-0.6B", LANGUAGE_MODEL),
    "qwen3-1.7b": Published("Qwen/Qwen3-1.7B", LANGUAGE_MODEL),
    "bert-base": Published("google-bert/bert-base-uncased", QFORMER),
    "minilm": Published("sentence-transformers/all-MiniLM-L6-v2", QFORMER),
}


def find_part(name: str) -> Published:
    """The part that a short name, or a repository "owner/name", stands for.

    Raises:
        HubError: neither; the nearest short names are given.
    """
    if name.lower() in PARTS:
        return PARTS[name.lower()]
    if name.count("/") == 1 and all(name.split("/")):
        return Published(name, "")
    near = difflib.get_close_matches(name.lower(), PARTS, 3, 0.4)
    raise HubError(
        f"{name}: no part of this name"
        + (f"; did you mean {', '.join(near)}?" if near else ".")
        + " slit fetch --list shows all; a repository is named owner/name."
    )


def fetch(
    name: str,
    out: str | os.PathLike,
    revision: str | None = None,
    say: Callable[[str], None] = logging.info,
) -> dict[str, Any]:
    """Fetch a frozen part into a folder of its own.

    Files that are there and whole are not fetched again; what was cut short goes on.

    Args:
        name: see `find_part`.
        out: the folder.
        revision: branch, tag or commit; default: the table's, else the newest.
        say: is told what is to be fetched, before it is.

    Returns:
        What is also written to `out`/source.json: repository, revision (the commit),
        licence, files with bytes and SHA-256, and `use`.

    Raises:
        HubError: no such part, no network, no permission, no room, or a file whose
            checksum is another.
    """
    out = Path(out)
    part = find_part(name)
    wanted = revision or part.revision
    there = _known(out, part, wanted)
    if there is not None:
        say(f"{out}: is there and whole ({there['repository']})")
        return there
    info = _ask(name, part, wanted)
    files = _choose(name, part, [file.rfilename for file in info.siblings])
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    licence = _licence(info.card_data, info.tags)
    total = sum(sizes[file] for file in files)
    say(
        f"{part.repository} at {info.sha}: {len(files)} files, {total / 1e6:,.1f} MB,"
        f" licence {licence}, to {out}"
    )
    expected = {
        file.rfilename: file.lfs.sha256
        for file in info.siblings
        if file.lfs is not None
    }
    if info.sha == part.revision:
        expected.update(part.checksums)
    found = {}
    for file in files:
        path = _download(name, part, info.sha, file, out)
        digest = sha256(path)
        if digest != expected.get(file, digest):  # perhaps changed since it came
            path = _download(name, part, info.sha, file, out, again=True)
            digest = sha256(path)
        if digest != expected.get(file, digest):
            path.unlink()
            raise HubError(
                f"{path}: expected SHA-256 {expected[file]}, found {digest}: damaged on"
                " its way, or not what was published. It was removed; fetch it again."
            )
        found[file] = {"bytes": path.stat().st_size, "sha256": digest}
    facts = {
        "name": name,
        "repository": part.repository,
        "kind": part.kind,
        "revision": info.sha,
        "licence": licence,
        "use": _use(part, out, files),
        "files": found,
    }
    write_json(out / SOURCE, facts)
    return facts


def about(name: str) -> dict[str, Any]:
    """Weights of a part, before it is fetched or read; downloads nothing.

    Args:
        name: a folder, or see `find_part`.

    Returns:
        files of weights, their bytes, licence, sha256 of each (None: not stated), and
        where they are: the folder, the Hub's cache, or to be downloaded.

    Raises:
        HubError: a folder without weights, no such part, or no network.
    """
    if Path(name).is_dir():
        return _about_folder(Path(name), name)
    from huggingface_hub import try_to_load_from_cache

    part = find_part(name)
    for file in ("model.safetensors", "pytorch_model.bin"):
        cached = try_to_load_from_cache(part.repository, file, repo_type=part.kind)
        if isinstance(cached, str):
            return _about_folder(Path(cached).parent, "downloaded before")
    info = _ask(name, part, part.revision)
    known = {file.rfilename: file for file in info.siblings}
    files = _weights(name, part, list(known))
    return {
        "files": files,
        "bytes": sum(known[file].size or 0 for file in files),
        "licence": _licence(info.card_data, info.tags),
        "sha256": [getattr(known[file].lfs, "sha256", None) for file in files],
        "where": "will be downloaded",
    }


def _about_folder(folder: Path, where: str) -> dict[str, Any]:
    found = [sorted(folder.glob(pattern)) for pattern in (*WEIGHTS, "*.pt")]
    files = next(filter(None, found), None)
    if files is None:
        raise HubError(
            f"{folder}: expected weights ({', '.join(WEIGHTS)} or *.pt), found none."
            " Give the folder of a whole part."
        )
    try:
        licence = json.loads((folder / SOURCE).read_text(encoding="utf-8"))["licence"]
    except (OSError, ValueError, KeyError, TypeError):  # not of `fetch`
        licence = _licence(_card(folder))
    return {
        "files": [file.name for file in files],
        "bytes": sum(file.stat().st_size for file in files),
        "licence": licence,
        "sha256": [sha256(file) for file in files],
        "where": where,
    }


def _card(folder: Path) -> dict[str, Any]:
    """The YAML with which a model card begins; {} where there is none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8-sig")
        before, _, rest = text.partition("---\n")
        card = yaml.safe_load(rest.partition("\n---")[0]) if not before else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return card if isinstance(card, dict) else {}


def _known(out: Path, part: Published, revision: str | None) -> dict[str, Any] | None:
    """source.json of an earlier fetch that still holds; None if there is none."""
    try:
        facts = json.loads((out / SOURCE).read_text(encoding="utf-8"))
        whole = all(
            (out / file).stat().st_size == entry["bytes"]
            for file, entry in facts["files"].items()
        )
        same = facts["repository"] == part.repository
        same = same and revision in (None, facts["revision"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if whole and same else None


def _ask(name: str, part: Published, revision: str | None) -> Any:
    """What the Hub says of a repository."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=_endpoint())
    with _explained(name, part, revision):
        return api.repo_info(
            part.repository, repo_type=part.kind, revision=revision, files_metadata=True
        )


def _download(
    name: str, part: Published, commit: str, file: str, out: Path, again: bool = False
) -> Path:
    from huggingface_hub import hf_hub_download

    with _explained(name, part, commit):
        path = hf_hub_download(
            part.repository,
            file,
            repo_type=part.kind,
            revision=commit,
            local_dir=out,
            force_download=again,
            endpoint=_endpoint(),
        )
    return Path(path)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


@contextlib.contextmanager
def _explained(name: str, part: Published, revision: str | None) -> Iterator[None]:
    """Turns what the Hub's library raises into a HubError with a remedy."""
    try:
        yield
    except Exception as error:
        fault = _fault(error, part, revision)
        where = f"{name} ({part.repository} at {_endpoint()})"
        raise HubError(f"{where}: {fault}.") from error


def _fault(error: Exception, part: Published, revision: str | None) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"its makers ask for consent first. Agree at {_endpoint()}/"
            f"{part.repository}, then log in: hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no revision {revision!r}. Leave --revision out for the newest"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "no such repository, or a private one. Check the name; for a private one"
            " log in: hf auth login"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return f"the server answers: {str(error).splitlines()[0]}. Try again later"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no room is left. Give another --out, or make room"
    return (
        f"cannot be reached ({type(error).__name__}: {error}). Without a network, copy"
        " the folder from a machine that has one; the variable HF_ENDPOINT names a"
        " mirror, and HF_HUB_OFFLINE must not be 1"
    )


def _choose(name: str, part: Published, files: list[str]) -> list[str]:
    """Files of a repository that are wanted: weights of one form, and texts."""
    weights = _weights(name, part, files)
    texts = [
        file
        for file in files
        if any(fnmatch.fnmatch(file, pattern) for pattern in TEXTS)
        and "/" not in file
        and file != SOURCE
    ]
    return sorted({*weights, *texts})


def _weights(name: str, part: Published, files: list[str]) -> list[str]:
    """Files of a repository that are weights, of its first form."""
    for pattern in part.weights:
        weights = [f for f in files if fnmatch.fnmatch(f, pattern) and _plain(f, part)]
        if weights:
            break
    else:
        raise HubError(
            f"{name} ({part.repository}): expected weights ({', '.join(part.weights)}),"
            f" found {', '.join(files[:10]) or 'no file'}. Name another revision."
        )
    # one checkpoint is what an encoder takes
    return weights if part.weights is WEIGHTS else weights[:1]


def _plain(file: str, part: Published) -> bool:
    """Not in a folder (other formats lie there), but for checkpoints of trainings."""
    return "/" not in file or part.weights is not WEIGHTS


def _licence(card: Any, tags: Iterable[str] | None = ()) -> str:
    """What a model card says, else the repository's tags."""
    stated = (card.get("license") if card else None) or next(
        (tag[8:] for tag in tags or () if tag.startswith("license:")), None
    )
    stated = ", ".join(stated) if isinstance(stated, list) else stated
    return stated or NOT_STATED


def _use(part: Published, out: Path, files: list[str]) -> str:
    weights = [file for file in files if file.endswith((".pt", ".pth"))]
    file = out / weights[0] if weights else out
    return part.use.format(folder=out, file=file)
