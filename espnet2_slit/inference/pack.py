"""A SLIT system in one file: packed, with its model card, and published.

Owns the layout of an archive, which is one of ESPnet's model zoo (`meta.yaml`, as
`espnet2.bin.pack` writes):

    meta.yaml  slit.json  README.md  LICENSE  RESULTS.md
    representation/{config.yaml,model.pth}    generator/{config.yaml,model.pth}
    qformer_tokenizer/  frozen/{audio_encoder,language_model}/  (weights if asked for)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import yaml

from espnet2_slit.common.archives import extract
from espnet2_slit.common.files import write_json, write_text
from espnet2_slit.common.identity import comes_from_hub
from espnet2_slit.inference.system import (
    ARCHIVES,
    SCHEMA,
    SYSTEM_FILE,
    PackingError,
    read_config,
    read_system,
    resolve,
)

# Tasks of scores.json by the names that the Hub has for them.
HUB_TASKS = {
    "caption": "audio-text-to-text",
    "question_answering": "audio-text-to-text",
    "classification": "zero-shot-audio-classification",
    "retrieval": "feature-extraction",
}
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


def pack(
    folder,
    outpath,
    include_frozen=False,
    results=(),
    licence="",
    licence_file=None,
    name="",
    card="",
    datasets=(),
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
        datasets: names on the Hugging Face Hub of what it was trained on.

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
        scores = [row for file in results for row in _scores_beside(Path(file))]
        write_text(
            stage / "README.md",
            model_card(content, card, results_text, scores, datasets),
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


def _scores_beside(results):
    """Rows of the scores.json that a RESULTS.md was written from."""
    file = results.with_name("scores.json")
    if results.name != "RESULTS.md" or not file.is_file():
        return []
    return json.loads(file.read_text(encoding="utf-8"))["scores"]


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
        if identity:  # a connector of stacked frames has none
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


def model_card(content, card="", results="", scores=(), datasets=()):
    """README.md of an archive, in the form that Hugging Face reads.

    Args:
        content: of slit.json.
        card: opening text.
        results: content of RESULTS.md.
        scores: rows of scores.json; those with a value become its model-index.
        datasets: names on the Hub of what it was trained on.
    """
    from huggingface_hub import EvalResult, ModelCardData

    generates = "generator" in content
    measured = [
        EvalResult(
            task_type=HUB_TASKS.get(row["task"], row["task"]),
            dataset_type=row["set"],
            dataset_name=row["set"],
            metric_type=row["metric"],
            metric_value=round(row["value"], 6),
            # the protocol of a value: two of other names are not comparable
            metric_name=row["key"].partition("/")[2],
        )
        for row in scores
        if row["value"] is not None
    ]
    header = ModelCardData(
        license=content.get("licence") or "other",
        library_name="espnet2_slit",
        tags=["espnet", "espnet2_slit", "audio", "audio-captioning"],
        pipeline_tag="audio-text-to-text" if generates else "feature-extraction",
        datasets=list(datasets) or None,
        model_name=content["name"],
        eval_results=measured or None,
    )
    lines = ["---", header.to_yaml().strip(), "---", ""]
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
        extract(archive, folder, PackingError)
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
