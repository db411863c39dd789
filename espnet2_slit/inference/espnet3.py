"""SLIT as a system of ESPnet3: what `run.py --stages ...` of a recipe runs.

Owns the stages and the form in which ESPnet3 takes results: one `.scp` a task and set,
read by the metrics of `espnet3_metrics`. What a stage does is done by the modules that
the ESPnet2 recipe uses. Needs ESPnet 202609 or newer (espnet[train]).

| stage | configuration | does |
|---|---|---|
| create_dataset | training | data directories made (`create_dataset`) and checked |
| encode | training | every clip through the frozen audio encoder, once |
| train | training | representation, generative or instruction, by its configuration |
| infer | inference | test sets decoded: all tasks that a set and the system have |
| measure | metrics | scores |
| pack_model | publication | an archive for `SLIT.from_pretrained` |
| pack_demo | demo | a folder with a page for the browser |
"""

from __future__ import annotations

import json
import logging
import shutil
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from espnet2_slit.common import compat
from espnet2_slit.common.archives import extract
from espnet2_slit.common.files import write_text
from espnet2_slit.common.precision import choose_precision
from espnet2_slit.data import feature_cache
from espnet2_slit.data.kaldi_dir import read_map
from espnet2_slit.inference.decode_options import DecodeOptions
from espnet2_slit.inference.decoding import decode_set
from espnet2_slit.inference.pack import pack
from espnet2_slit.inference.slit import SLIT
from espnet2_slit.inference.system import find_model_file, link_training
from espnet2_slit.scoring.labels import SCORERS, read_labels
from espnet2_slit.scoring.read import load_arrays, read_references, strings
from espnet2_slit.task import SLITTask
from espnet2_slit.train.checkpoint import load_init_params

try:
    from espnet3.contract.stages import StageSpec
    from espnet3.systems.base.metric import measure
    from espnet3.systems.base.system import BaseSystem
    from lightning.pytorch import Callback
    from omegaconf import DictConfig, OmegaConf, open_dict
except ImportError as error:
    raise compat.no_espnet3(error) from error

APP = """from pathlib import Path

from espnet2_slit import SLIT
from espnet2_slit.inference.demo import launch

launch(SLIT.from_pretrained(Path(__file__).parent / "model"), host="0.0.0.0")
"""
# Text files of a decoded set -> names of what ESPnet3's metrics read.
DECODED = {"caption/text": "caption", "question_answering/text": "answer"}
RETRIEVAL, CLASSIFICATION = "retrieval/scores.npz", "classification/scores.npz"


class InitialWeights(Callback):
    """Starts a training from the weights of an earlier one; every weight is checked.

    Args:
        files: as for --init_param.
    """

    def __init__(self, files: Sequence[str]):
        self.files = list(files)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Load them before the first step."""
        if stage == "fit":
            load_init_params(pl_module.model, self.files)


class SLITSystem(BaseSystem):
    """Stages of an audio-language system."""

    stages: ClassVar[tuple[StageSpec, ...]] = (
        StageSpec(name="create_dataset", config="training", log_dir="data_dir"),
        StageSpec(name="encode", config="training", log_dir="features_dir"),
        StageSpec(name="train", config="training", log_dir="exp_dir"),
        StageSpec(name="infer", config="inference", log_dir="inference_dir"),
        StageSpec(name="measure", config="metrics", log_dir="inference_dir"),
        StageSpec(name="pack_model", config="publication"),
        StageSpec(name="pack_demo", config="demo", log_dir="pack.out_dir"),
    )

    def encode(self, *args: Any, **kwargs: Any) -> None:
        """Frames of every set of `create_dataset.sets`, below `features_dir`."""
        self._reject_stage_args("encode", args, kwargs)
        from espnet2_slit.model.audio_encoder import build_audio_encoder

        config = self.training_config
        conf = plain(config.encoder)
        name = conf.pop("name")
        if conf.get("precision") == "auto":
            conf["precision"] = choose_precision("auto", "cpu")
        encoder = build_audio_encoder(name, **conf)
        finished: list[str] = []
        for part in config.create_dataset.sets:
            source = Path(config.create_dataset.raw) / part
            target = Path(config.features_dir) / part
            work = feature_cache.plan(source, encoder.identity(), finished)
            feature_cache.encode(work, encoder, target)
            facts = feature_cache.encoder_facts(encoder)
            feature_cache.merge(work, source, target, facts)
            finished.append(str(target))

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Train; a generator's folder then is a system (slit.json)."""
        config = self.training_config
        files = [
            str(find_model_file(file) if Path(file).is_dir() else file)
            for file in config.get("init_param") or []
        ]
        if files:
            start = {"_target_": f"{__name__}.InitialWeights", "files": files}
            with open_dict(config):
                config.trainer.callbacks = [*(config.trainer.get("callbacks") or []),
                                            start]  # fmt: skip
        super().train(*args, **kwargs)
        folder = Path(config.exp_dir)
        name_average(folder)
        record_identities(folder, files)
        if config.model.model != "representation":
            link_training(folder)

    def infer(self, *args: Any, **kwargs: Any) -> None:
        """Decode the test sets of `dataset.test` by what they and the system have."""
        self._reject_stage_args("infer", args, kwargs)
        config = self.inference_config
        slit = SLIT.from_pretrained(config.exp_dir, device=config.get("device", "cpu"))
        options = config.get("inference") or config.get("decoding") or DictConfig({})
        for test in config.dataset.test:
            source = Path(test.data_src_args.path)
            target = Path(config.inference_dir) / test.name
            decode_set(slit, source, target, DecodeOptions(**plain(options)))
            write_scp_files(source, target)

    def measure(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Score every set by the metrics whose inputs it has; writes metrics.json.

        A metric with a `name` stands under it, others under their class.
        """
        self._reject_stage_args("measure", args, kwargs)
        config = self.metrics_config
        folder = Path(config.inference_dir)
        found: dict[str, Any] = {}
        for metric in config.metrics:
            wanted = [f"{name}.scp" for name in metric.inputs.values()]
            sets = sorted(
                path.name
                for path in folder.iterdir()
                if all((path / name).is_file() for name in wanted)
            )
            if not sets:
                logging.warning("no set has %s: not measured", ", ".join(wanted))
                continue
            one = OmegaConf.merge(
                config, {"metrics": [metric], "dataset": {"test": [{"name": name}
                                                                  for name in sets]}}
            )  # fmt: skip
            for kind, scores in measure(one).items():
                found.setdefault(metric.get("name", kind), {}).update(scores)
        write_text(folder / "metrics.json", json.dumps(found, indent=2) + "\n")
        return found

    def pack_model(self, *args: Any, **kwargs: Any) -> None:
        """An archive of the system, as `archive` says."""
        self._reject_stage_args("pack_model", args, kwargs)
        config = self.publication_config
        conf = plain(config.archive)
        pack(config.exp_dir, **conf)

    def pack_demo(self, *args: Any, **kwargs: Any) -> None:
        """A folder that `python app.py` serves: the system with its frozen parts."""
        self._reject_stage_args("pack_demo", args, kwargs)
        config = self.demo_config
        out = Path(config.pack.out_dir)
        archive = pack(config.exp_dir, out / "model.zip", include_frozen=True)
        shutil.rmtree(out / "model", ignore_errors=True)  # of an earlier run
        (out / "model").mkdir()
        extract(archive, out / "model")
        archive.unlink()
        write_text(out / "app.py", APP)
        write_text(out / "requirements.txt", "espnet2_slit[demo]\n")


def plain(config: Any) -> Any:
    """A configuration as dicts, lists and values, interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True)


def name_average(folder: Path) -> None:
    """Give the averaged weights the name that ESPnet2 gives them.

    Raises:
        FileNotFoundError: there are none: ESPnet3 averages from the second epoch on.
    """
    found = sorted(folder.glob("valid.*.ave_*best.pth"))
    if not found:
        raise FileNotFoundError(
            f"{folder}: expected valid.loss.ave_*best.pth, found none. ESPnet3 writes"
            " it from the second epoch on: trainer.max_epochs must be 2 or more."
        )
    link = folder / "valid.loss.ave.pth"
    link.unlink(missing_ok=True)
    link.symlink_to(found[-1].name)


def record_identities(folder: Path, initialized_from: Sequence[str]) -> None:
    """Complete a config.yaml of ESPnet3, which writes it before a model is built.

    Args:
        folder: of the training.
        initialized_from: files that it started from.
    """
    file = folder / "config.yaml"
    options = yaml.safe_load(file.read_text(encoding="utf-8"))
    args = Namespace(**options)
    SLITTask.build_model(args)
    args.initialized_from = list(initialized_from)
    content = json.loads(json.dumps(vars(args)))
    write_text(file, yaml.safe_dump(content, sort_keys=False))


def write_scp_files(data_dir: Path, decoded: Path) -> None:
    """What a set's metrics read, one line of id and value each.

    Args:
        data_dir: the set; its truth goes beside what was decoded.
        decoded: its decode directory.
    """
    for file, name in DECODED.items():
        if (decoded / file).is_file():
            found = read_map(decoded / file)
            if name == "caption":
                references = read_references(data_dir)
                truth = {key: json.dumps(references[key]) for key in found}
            else:
                texts = read_map(data_dir / "text")
                truth = {key: texts[key] for key in found}
            _write_scp(decoded / f"{name}.scp", found)
            _write_scp(decoded / f"{name}_reference.scp", truth)
    if (decoded / RETRIEVAL).is_file():
        _write_retrieval(decoded)
    if (decoded / CLASSIFICATION).is_file():
        _write_labels(data_dir, decoded)


def _write_retrieval(decoded: Path) -> None:
    """For each clip its scores with all texts, and which of them are its own."""
    arrays = load_arrays(
        decoded / RETRIEVAL, [("audio_ids", "text_audio_ids", "contrastive")]
    )
    clips = strings(arrays["audio_ids"])
    own: dict[str, list[int]] = {clip: [] for clip in clips}
    for place, clip in enumerate(strings(arrays["text_audio_ids"])):
        own[clip].append(place)
    _write_scp(decoded / "own_texts.scp", own)
    for name in ("contrastive", "reranked_text_to_audio", "reranked_audio_to_text"):
        if name in arrays:
            rows = arrays[name].T.tolist()
            _write_scp(decoded / f"{name}.scp", dict(zip(clips, rows, strict=True)))


def _write_labels(data_dir: Path, decoded: Path) -> None:
    """For each clip the scores of the labels by each route, and which one is true."""
    labels, ids, truth = read_labels(data_dir)
    if truth.ndim == 2:
        logging.warning("%s: its clips have several labels: not measured", data_dir)
        return
    arrays = load_arrays(decoded / CLASSIFICATION, [("ids", "labels")])
    column = {label: i for i, label in enumerate(strings(arrays["labels"]))}
    columns = [column[label] for label in labels]
    decoded_ids = strings(arrays["ids"])
    _write_scp(
        decoded / "label_reference.scp", dict(zip(ids, truth.tolist(), strict=True))
    )
    for name in SCORERS:
        if name in arrays:
            rows = dict(
                zip(decoded_ids, arrays[name][:, columns].tolist(), strict=True)
            )
            _write_scp(decoded / f"label_{name}.scp", {key: rows[key] for key in ids})


def _write_scp(path: Path, values: Mapping[str, Any]) -> None:
    """Lines of id and value; lists as JSON."""
    texts = (
        (key, value if isinstance(value, str) else json.dumps(value))
        for key, value in values.items()
    )
    write_text(path, "".join(f"{key} {text}\n" for key, text in texts))
