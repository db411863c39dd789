"""A SLIT system as files: the parts that are linked, and opening one from anywhere.

Owns slit.json (which parts make a system) and where the files lie that it names. It
leaves building the models to `engine`, making archives to `pack`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from espnet2_slit.common.archives import extract
from espnet2_slit.common.files import read_json, read_yaml, sha256, write_json
from espnet2_slit.common.names import STAGES

SCHEMA = 1
SYSTEM_FILE = "slit.json"
PARTS = ("representation", "generator")
# Best first; what ESPnet leaves in an experiment folder.
MODEL_FILES = ("valid.*.ave.pth", "valid.*.best.pth", "latest.pth")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".tbz2", ".txz")


class PackingError(ValueError):
    """Files that do not make a system; the message gives expected, found and remedy."""


@dataclass(frozen=True)
class System:
    """Where the parts of a system lie.

    Attributes:
        root: folder that relative paths refer to.
        parts: {part: (train_config, model_file)}.
        frozen: facts about the frozen parts, by name; from an archive's slit.json.
    """

    root: Path
    parts: dict
    frozen: dict = field(default_factory=dict)


# ------------------------------------------------------------------------ linking


def find_model_file(folder, name=""):
    """The weights in an experiment folder: `name`, or the best that is there.

    Raises:
        PackingError: none is there.
    """
    folder = Path(folder)
    patterns = (name,) if name else MODEL_FILES
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
    raise PackingError(
        f"{folder}: no weights ({' or '.join(patterns)}). Train this stage first, or"
        " name the file."
    )


def part_of(config_file):
    """Which part of a system a training configuration makes."""
    config = read_config(config_file)
    kind = config.get("model")
    if kind not in STAGES:
        raise PackingError(
            f"{config_file}: expected the key model to be representation, generative or"
            f" instruction, found {kind!r}. Is it the config.yaml of a SLIT experiment?"
        )
    return "representation" if kind == "representation" else "generator"


def read_config(config_file):
    """A training configuration as a dict."""
    remedy = "Correct it, or give the right file: training writes it."
    return read_yaml(config_file, remedy, PackingError)


def link(folder, experiments, model_file=""):
    """Write slit.json: the experiments that together make a system.

    Args:
        folder: where slit.json goes; usually the instruction experiment.
        experiments: experiment folders; each is put where its configuration says.
        model_file: name of the weights file in all of them; "" takes the best.

    Returns:
        Path of slit.json.

    Raises:
        PackingError: an experiment without weights, or two for one part.
    """
    folder = Path(folder)
    content = {"schema": SCHEMA}
    for experiment in experiments:
        experiment = Path(experiment)
        config_file = experiment / "config.yaml"
        part = part_of(config_file)
        if part in content:
            raise PackingError(
                f"{experiment}: the system already has a {part} part,"
                f" {content[part]['train_config']}. Name one experiment for each part."
            )
        weights = find_model_file(experiment, model_file)
        content[part] = {
            "train_config": os.path.relpath(config_file, folder),
            "model_file": os.path.relpath(weights, folder),
        }
    if len(content) == 1:
        raise PackingError("no experiment given; name at least one.")
    path = folder / SYSTEM_FILE
    write_json(path, content)
    return path


def link_training(experiment, model_file=""):
    """Write the slit.json of a generator that has been trained.

    Args:
        experiment: its folder; slit.json goes there.
        model_file: as for `link`.

    Returns:
        Path of slit.json. It also names the representation model that the training goes
        back to, if that is still there and reads the same audio encoder.
    """
    experiment = Path(experiment)
    parts, folder, encoder = [experiment], experiment, {}
    while part_of(folder / "config.yaml") == "generator":
        config = read_config(folder / "config.yaml")
        encoder = encoder or config.get("audio_encoder_identity")
        started = config.get("initialized_from") or [""]
        folder = Path(str(started[0]).partition(":")[0]).parent
        if not started[0] or not (folder / "config.yaml").is_file():
            return link(experiment, parts, model_file)
    other = read_config(folder / "config.yaml").get("audio_encoder_identity") or {}
    if {**encoder, "path": ""} == {**other, "path": ""}:
        parts.append(folder)
    return link(experiment, parts, model_file)


def read_system(folder):
    """The system of a folder: slit.json, or a lone experiment.

    Raises:
        PackingError: neither is there, or a file that it names is missing.
    """
    folder = Path(folder)
    path = folder / SYSTEM_FILE
    if not path.is_file():
        config_file = folder / "config.yaml"
        if not config_file.is_file():
            raise PackingError(
                f"{folder}: neither {SYSTEM_FILE} nor config.yaml. Give an experiment"
                " folder, an archive of slit_pack, or a Hugging Face repository."
            )
        weights = find_model_file(folder)
        return System(folder, {part_of(config_file): (config_file, weights)})
    content = read_json(
        path, SCHEMA, "Link again with slit_pack --link true.", PackingError
    )
    parts = {}
    for part in PARTS:
        if part in content:
            files = [
                folder / content[part][key] for key in ("train_config", "model_file")
            ]
            for file in files:
                if not file.is_file():
                    raise PackingError(
                        f"{path}: names {file} as its {part} part, which is not there."
                        " Link again with slit_pack --link true."
                    )
            parts[part] = tuple(files)
    if not parts:
        raise PackingError(f"{path}: names no part, expected {' or '.join(PARTS)}.")
    return System(folder, parts, content.get("frozen", {}))


# ------------------------------------------------------------------------ opening


def open_system(source, cache_dir=None, revision=None):
    """Find a system, wherever it lies.

    Args:
        source: experiment folder, unpacked archive, archive file, or the name of a
            Hugging Face repository.
        cache_dir: where archives are unpacked; by default
            ~/.cache/espnet2_slit (or below XDG_CACHE_HOME).
        revision: of the repository.

    Returns:
        System.

    Raises:
        PackingError: nothing usable there, or an archive that must not be unpacked.
    """
    path = Path(source).expanduser()
    if path.name == SYSTEM_FILE and path.is_file():
        path = path.parent
    if path.is_dir():
        if not (path / SYSTEM_FILE).is_file() and not (path / "config.yaml").is_file():
            archives = sorted(p for p in path.iterdir() if p.suffix in ARCHIVES)
            if len(archives) == 1:
                return open_system(archives[0], cache_dir)
        return read_system(path)
    if path.is_file():
        return read_system(unpack(path, cache_dir))
    name = str(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise PackingError(
            f"{source}: no such folder or archive, and not the name of a Hugging Face"
            " repository (owner/name). Check the path."
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise PackingError(
            f"{source}: needs huggingface_hub to download it."
            " Run: pip install huggingface_hub"
        ) from error
    return open_system(snapshot_download(name, revision=revision), cache_dir)


def default_cache_dir():
    """Folder for unpacked archives."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "espnet2_slit"


def unpack(archive, cache_dir=None):
    """Unpack an archive into the cache, once.

    Args:
        archive: zip or tar file.
        cache_dir: as for `open_system`.

    Returns:
        Folder with its files, named by the archive's checksum.

    Raises:
        PackingError: not an archive, or one with entries outside its own folder, links,
            or two entries of one name; nothing of it is left behind.
    """
    archive = Path(archive)
    folder = Path(cache_dir or default_cache_dir()) / sha256(archive)[:32]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder.parent) as temporary:
        target = Path(temporary) / "files"
        target.mkdir()
        extract(archive, target, PackingError)
        # A folder under its final name is whole; another process may have been faster.
        with contextlib.suppress(OSError):
            os.rename(target, folder)
    if not folder.is_dir():
        raise PackingError(f"{folder}: could not be written.")
    logging.info("%s: unpacked to %s", archive, folder)
    return folder


# ------------------------------------------------------------------- frozen parts


def resolve(value, config_file):
    """Where a path of a training configuration leads now.

    Experiments name their frozen parts relative to the recipe they ran in, archives
    relative to their own root, and both may have been moved: the folders above the
    configuration are searched, nearest first, then the working directory.

    Args:
        value: path, or the name of a Hugging Face repository.
        config_file: the configuration that names it.

    Returns:
        Path that exists, or `value` unchanged if nothing of that name is here.
    """
    if not value:
        return value
    # Not Path.resolve: Hugging Face's cache links each file to a store elsewhere.
    config_file = Path(os.path.abspath(config_file))
    for place in (*config_file.parents, Path.cwd()):
        if (place / value).exists():
            return str(place / value)
    return value
