"""A SLIT system as files: linked in an experiment folder, packed, opened, published.

Owns slit.json (which parts make a system), the layout of an archive, and opening one
that may come from anywhere. It leaves building the models to `inference`.

An archive is a model-zoo archive of ESPnet (`meta.yaml`, as `espnet2.bin.pack` writes):

    meta.yaml  slit.json  README.md  LICENSE  RESULTS.md
    representation/{config.yaml,model.pth}    generator/{config.yaml,model.pth}
    qformer_tokenizer/  frozen/{audio_encoder,language_model}/  (weights if asked for)
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml

from espnet2_slit.common.files import read_json, read_yaml, sha256, write_json
from espnet2_slit.common.identity import comes_from_hub

SCHEMA = 1
SYSTEM_FILE = "slit.json"
PARTS = ("representation", "generator")
# Best first; what ESPnet leaves in an experiment folder.
MODEL_FILES = ("valid.*.ave.pth", "valid.*.best.pth", "latest.pth")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".tbz2", ".txz")
TOKENIZER_SUFFIXES = (".json", ".txt", ".model", ".jinja")
# Facts of the machine that trained it; they say nothing about the model.
LOCAL_KEYS = (
    "output_dir",
    "config",
    "model_file",
    "train_dir",
    "train_shape_file",
    "valid_dir",
    "valid_shape_file",
    "init_param",
    "qformer_init",
    "dist_init_method",
    "dist_master_addr",
    "dist_master_port",
    "fold_length",
    "wandb_entity",
    "wandb_id",
    "wandb_name",
    "wandb_project",
    "print_config",
    "dry_run",
    "required",
)


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
    if kind not in ("representation", "generative", "instruction"):
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
        extract(archive, target)
        # A folder under its final name is whole; another process may have been faster.
        with contextlib.suppress(OSError):
            os.rename(target, folder)
    if not folder.is_dir():
        raise PackingError(f"{folder}: could not be written.")
    logging.info("%s: unpacked to %s", archive, folder)
    return folder


def extract(archive, folder):
    """Extract an archive whose author is not trusted.

    Args:
        archive: zip or tar file.
        folder: existing empty folder.

    Raises:
        PackingError: as `unpack`.
    """
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            for entry in entries:
                mode = entry.external_attr >> 16
                regular = not stat.S_IFMT(mode) or stat.S_ISREG(mode)
                _check_entry(archive, entry.filename, regular or entry.is_dir())
            files = [entry for entry in entries if not entry.is_dir()]
            _extract_all(
                archive,
                folder,
                [(entry.filename, entry) for entry in files],
                opened.open,
            )
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened:
            entries = opened.getmembers()
            for entry in entries:
                _check_entry(archive, entry.name, entry.isreg() or entry.isdir())
            files = [entry for entry in entries if entry.isreg()]
            _extract_all(
                archive, folder, [(entry.name, entry) for entry in files],
                opened.extractfile,
            )  # fmt: skip
    else:
        raise PackingError(
            f"{archive}: neither a zip nor a tar archive, or truncated. Copy it again."
        )


def _check_entry(archive, name, regular):
    path = PurePosixPath(name)
    if not regular:
        raise PackingError(
            f"{archive}: {name!r} is a link or a device, expected plain files only."
            " Do not use this archive."
        )
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise PackingError(
            f"{archive}: {name!r} leads outside the archive's folder."
            " Do not use this archive."
        )


def _extract_all(archive, folder, files, open_entry):
    names = [str(PurePosixPath(name)) for name, _ in files]
    if len(set(names)) != len(names):
        raise PackingError(f"{archive}: two entries have one name. Do not use it.")
    for name, (_, entry) in zip(names, files, strict=True):
        target = Path(folder) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_entry(entry) as source, open(target, "xb") as stream:
            shutil.copyfileobj(source, stream)


# ---------------------------------------------------------------------- frozen parts


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


# ------------------------------------------------------------------------ packing


def pack(
    folder,
    outpath,
    include_frozen=False,
    results=(),
    licence="",
    licence_file=None,
    name="",
    card="",
):
    """Pack a system into an archive of ESPnet's model zoo.

    Args:
        folder: system folder, with slit.json.
        outpath: archive to write, .zip or .tgz.
        include_frozen: put the frozen weights into the archive too.
        results: files to add as they are, RESULTS.md for instance.
        licence: SPDX name of the licence that the trained weights are given under.
        licence_file: its text.
        name: of the system, for the model card.
        card: text that the model card opens with.

    Returns:
        Path of the archive.

    Raises:
        PackingError: a part is missing, or frozen weights to be included are not here.
    """
    system = read_system(folder)
    outpath = Path(outpath)
    if outpath.suffix not in ARCHIVES:
        raise PackingError(
            f"{outpath}: expected an archive's name, ending in one of"
            f" {', '.join(ARCHIVES)}; found {outpath.suffix!r}."
            f" Take {outpath.stem}.zip."
        )
    name = name or Path(folder).resolve().name
    outpath.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pack-", dir=outpath.parent) as temporary:
        stage = Path(temporary) / "stage"
        stage.mkdir()
        packed = _stage_frozen(system, stage, include_frozen)
        content = {"schema": SCHEMA, "name": name, "licence": licence}
        files, yaml_files = {}, {}
        for part, (config_file, model_file) in system.parts.items():
            (stage / part).mkdir()
            config = portable_config(read_config(config_file), packed)
            with open(stage / part / "config.yaml", "w", encoding="utf-8") as stream:
                yaml.safe_dump(config, stream, sort_keys=False, allow_unicode=True)
            shutil.copyfile(model_file, stage / part / "model.pth")
            content[part] = {
                "train_config": f"{part}/config.yaml",
                "model_file": f"{part}/model.pth",
            }
            # These names are keywords of SLIT, as ESPnet's model zoo expects.
            yaml_files[f"{part}_train_config"] = f"{part}/config.yaml"
            files[f"{part}_model_file"] = f"{part}/model.pth"
        content["frozen"] = packed["frozen"]
        write_json(stage / SYSTEM_FILE, content)
        for file in results:
            shutil.copyfile(file, stage / Path(file).name)
        if licence_file:
            shutil.copyfile(licence_file, stage / "LICENSE")
        results_text = ""
        if (stage / "RESULTS.md").is_file():
            results_text = (stage / "RESULTS.md").read_text(encoding="utf-8")
        (stage / "README.md").write_text(
            model_card(content, card, results_text), encoding="utf-8"
        )
        listed = {*files.values(), *yaml_files.values()}
        option = sorted(
            str(path.relative_to(stage))
            for path in stage.rglob("*")
            if path.is_file() and str(path.relative_to(stage)) not in listed
        )
        part_file = (
            Path(temporary).resolve() / f"archive{''.join(outpath.suffixes[-1:])}"
        )
        from espnet2.main_funcs.pack_funcs import pack as espnet_pack

        # ESPnet names entries relative to the working directory and prints each.
        with contextlib.chdir(stage), contextlib.redirect_stdout(None):
            espnet_pack(
                files=files, yaml_files=yaml_files, outpath=part_file, option=option
            )
        os.replace(part_file, outpath)
    return outpath


def _stage_frozen(system, stage, include_frozen):
    """Copy tokenizers (and weights) to the staging folder; what was put where.

    Returns:
        {name: path in the archive}, and under "frozen" the facts about the parts.
    """
    packed = {"frozen": {}}
    tokenizers = set()
    for config_file, _ in system.parts.values():
        config = read_config(config_file)
        identity = config.get("qformer_tokenizer_identity") or {}
        tokenizers.add(identity.get("fingerprint"))
        if len(tokenizers) > 1:
            raise PackingError(
                f"{config_file}: the parts were trained with different Q-Former"
                " tokenizers. Train them with one."
            )
        conf = config.get("audio_encoder_conf") or {}
        named = {
            "qformer_tokenizer": config.get("qformer_tokenizer"),
            "audio_encoder": conf.get("path"),
            "language_model": config.get("language_model"),
        }
        for name, value in named.items():
            if not value or name in packed:
                continue
            source = Path(resolve(value, config_file))
            if name == "qformer_tokenizer":
                if source.is_dir():
                    _copy_folder(source, stage / name, TOKENIZER_SUFFIXES)
                    packed[name] = name
                continue
            facts = dict(config.get(f"{name}_identity") or {})
            # The folders of the training machine say nothing; a hub name is an id.
            facts["path"] = value if comes_from_hub(value, facts) else source.name
            facts["included"] = include_frozen
            packed["frozen"].setdefault(name, facts)
            if not include_frozen:
                continue
            target = stage / "frozen" / name
            if source.is_dir():
                _copy_folder(source, target)
                packed[name] = f"frozen/{name}"
            elif source.is_file():
                target.mkdir(parents=True)
                shutil.copyfile(source, target / source.name)
                packed[name] = f"frozen/{name}/{source.name}"
            else:
                raise PackingError(
                    f"{name}: expected a file or folder to put into the archive, found"
                    f" nothing at {value!r}. Run from the recipe's folder, or pack"
                    " without --include_frozen."
                )
    return packed


def _copy_folder(source, target, suffixes=None):
    """Copy the files of a folder, those of some suffixes or all; no hidden ones."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(Path(source).iterdir()):
        wanted = suffixes is None or file.suffix in suffixes
        if file.is_file() and wanted and not file.name.startswith("."):
            shutil.copyfile(file, target / file.name)


def _last_names(path):
    """Folder and name of a file, without where that folder is."""
    return "/".join(Path(path).parts[-2:])


def portable_config(config, packed):
    """A training configuration without the paths of the machine it ran on.

    Args:
        config: as training wrote it.
        packed: {key: path in the archive} of what went into it.

    Returns:
        A copy that names frozen parts by their place in the archive, or by file name.
    """
    config = {key: value for key, value in config.items()}
    for key in LOCAL_KEYS:
        if config.get(key):
            config[key] = [] if isinstance(config[key], list) else None
    config["output_dir"] = "."
    # What it was trained on and started from, by name: "train_caption/text"
    for key in ("train", "valid"):
        key = f"{key}_data_path_and_name_and_type"
        rows = config.get(key) or []
        config[key] = [[_last_names(row[0]), *row[1:]] for row in rows]
    started = config.get("initialized_from") or []
    config["initialized_from"] = [_last_names(str(one)) for one in started]

    def place(key, value):
        if key in packed:
            return packed[key]
        # "./" says: a file that is not here, not a name to download.
        from_hub = comes_from_hub(str(value), config.get(f"{key}_identity"))
        return value if from_hub else f"./{Path(value).name}"

    if config.get("qformer_tokenizer"):
        config["qformer_tokenizer"] = place(
            "qformer_tokenizer", config["qformer_tokenizer"]
        )
    if config.get("language_model"):
        config["language_model"] = place("language_model", config["language_model"])
    conf = config.get("audio_encoder_conf")
    if conf and conf.get("path"):
        config["audio_encoder_conf"] = {
            **conf,
            "path": place("audio_encoder", conf["path"]),
        }
    config["features"] = ""
    for key in ("audio_encoder_identity", "language_model_identity"):
        identity = config.get(key)
        if identity and identity.get("path"):
            path = str(identity["path"])
            short = path if comes_from_hub(path, identity) else Path(path).name
            config[key] = {**identity, "path": short}
    return config


def model_card(content, card="", results=""):
    """README.md of an archive, in the form that Hugging Face reads.

    Args:
        content: of slit.json.
        card: opening text.
        results: content of RESULTS.md.
    """
    header = {
        "tags": ["espnet", "espnet2_slit", "audio", "audio-captioning"],
        "library_name": "espnet2_slit",
        "license": content.get("licence") or "other",
    }
    lines = ["---", yaml.safe_dump(header, sort_keys=False).strip(), "---", ""]
    lines += [f"# {content['name']}", ""]
    lines += [card or "An audio-language model trained with espnet2_slit.", ""]
    lines += ["## Use", "", "```python", "from espnet2_slit import SLIT", ""]
    lines += ['slit = SLIT.from_pretrained("<this repository or archive>")']
    if "generator" in content:
        lines += ['print(slit.caption("clip.wav"))']
    if "representation" in content:
        lines += ['print(slit.search("a dog barks", ["a.wav", "b.wav"]))']
    lines += ["```", "", "## Frozen parts", ""]
    lines += [
        "| part | name | in the archive | SHA-256 of its weights |",
        "|---|---|---|---|",
    ]
    for part, facts in content["frozen"].items():
        held = "yes" if facts["included"] else "no: pass its path to from_pretrained"
        lines.append(
            f"| {part} | {facts['path']} | {held} | `{facts.get('fingerprint', '')}` |"
        )
    lines += ["", "## Licence", ""]
    lines += [
        f"Trained weights: {content.get('licence') or 'not stated by who packed them'}"
        + ". Frozen parts keep the licences of their makers."
    ]  # fmt: skip
    if results:
        lines += ["", results.strip()]
    return "\n".join(lines) + "\n"


def publish(archive, target, private=False, message="Upload a SLIT system"):
    """Put an archive's files where others can open them.

    Args:
        archive: of `pack`.
        target: an existing folder (a shared disk), or owner/name on Hugging Face.
        private: make a new repository private.
        message: of the commit.

    Returns:
        Where it is now.

    Raises:
        PackingError: not an archive of this package, a target folder that holds
            something, huggingface_hub not installed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "files"
        folder.mkdir()
        extract(archive, folder)
        read_system(folder)
        if Path(target).is_dir():
            if any(Path(target).iterdir()):
                raise PackingError(f"{target}: is not empty. Name an empty folder.")
            shutil.copytree(folder, target, dirs_exist_ok=True)
            return str(target)
        if str(target).count("/") != 1 or str(target).startswith((".", "/", "~")):
            raise PackingError(
                f"{target}: neither an existing folder nor owner/name on Hugging Face."
            )
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise PackingError(
                "upload needs huggingface_hub. Run: pip install huggingface_hub"
            ) from error
        api = HfApi()
        api.create_repo(target, private=private, exist_ok=True)
        api.upload_folder(repo_id=target, folder_path=folder, commit_message=message)
        return f"https://huggingface.co/{target}"
