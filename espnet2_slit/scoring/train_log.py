"""What ESPnet's trainer writes into train.log, read in one place.

Curves by epoch, values by training step, and whether a stage has learned anything.
Nothing but the standard library is imported, so that a script that follows a running
training starts at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from espnet2_slit.common.names import STAGES

# "3epoch results: [train] loss=1.2, ... [valid] loss=1.3, ..."
EPOCH_LINE = re.compile(r"(\d+)epoch results: (.*)")
# "2epoch:train:51-100batch: iter_time=0.03, loss=4.2, ..."
STEP_LINE = re.compile(r"(\d+)epoch:train:\d+-(\d+)batch: (.*)")
VALUE = re.compile(r"(\w+)=(nan|-?inf|[-+]?\d[\d.]*(?:e[-+]?\d+)?)(?=,|$)")
DURATION = re.compile(r"(?:^|[ ,])time=([^,]*)")
# Stats that ESPnet's reporter mixes among the model's own.
NOT_A_CURVE = re.compile(
    r"(^|_)time$|^total_count$|^gpu_|^clip$|^grad_norm$|^loss_scale$|_lr\d+$|^lr"
)


@dataclass(frozen=True)
class Epoch:
    """One `epoch results` line.

    Attributes:
        number: of the epoch, from 1.
        values: section (train, valid) -> stat -> value.
        took: ESPnet's words for how long training took, or "".
    """

    number: int
    values: dict[str, dict[str, float]]
    took: str = ""


@dataclass(frozen=True)
class Step:
    """One line of a running epoch: means since the line before.

    Attributes:
        epoch: from 1.
        batch: last batch of the line, from 1.
        values: stat -> value.
    """

    epoch: int
    batch: int
    values: dict[str, float]


@dataclass
class Stage:
    """Learning curves of one training stage.

    Attributes:
        name: of the experiment folder.
        curves: stat -> {"train" | "valid": {epoch: value}}.
        note: why there are none, or "".
    """

    name: str
    curves: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    note: str = ""


def parse_line(line: str) -> Epoch | Step | None:
    """What a line of train.log says of training; None: nothing."""
    found = EPOCH_LINE.search(line)
    if found:
        parts = re.split(r"\[(\w+)\] ", found[2])
        sections = dict(zip(parts[1::2], parts[2::2], strict=True))
        took = DURATION.search(sections.get("train", ""))
        values = {name: _values(text) for name, text in sections.items()}
        return Epoch(int(found[1]), values, took[1] if took else "")
    found = STEP_LINE.search(line)
    if found:
        return Step(int(found[1]), int(found[2]), _values(found[3]))
    return None


def _values(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in VALUE.findall(text)}


def read_lines_of(path: Path) -> Iterator[Epoch | Step]:
    """Epochs and steps of a log, in its order."""
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            found = parse_line(line)
            if found is not None:
                yield found


def read_training_log(folder: Path) -> Stage:
    """Learning curves from the logs ESPnet writes.

    Args:
        folder: experiment folder with train.log; train.1.log, ... are older runs of the
            same training, whose epochs are kept unless a later run repeats them.

    Returns:
        Stage.
    """
    folder = Path(folder)
    stage = Stage(folder.name)
    logs = [p for p in (*_older_logs(folder), folder / "train.log") if p.is_file()]
    if not logs:
        stage.note = f"no train.log in {folder}"
        return stage
    for path in logs:
        for epoch in read_lines_of(path):
            if isinstance(epoch, Epoch):
                _add_epoch(stage, epoch)
    if not stage.curves:
        stage.note = f"{folder / 'train.log'} has no finished epoch"
    return stage


def _older_logs(folder: Path) -> list[Path]:
    """train.<n>.log, oldest first."""

    def number(path: Path) -> int:
        suffix = path.suffixes[0][1:]
        return int(suffix) if suffix.isdigit() else 0

    return sorted(folder.glob("train.*.log"), key=number, reverse=True)


def _add_epoch(stage: Stage, epoch: Epoch) -> None:
    for section in ("train", "valid"):
        for name, value in epoch.values.get(section, {}).items():
            if not NOT_A_CURVE.search(name):
                curve = stage.curves.setdefault(name, {}).setdefault(section, {})
                curve[epoch.number] = value


def training_stages(
    decode_dir: Path | None = None, exp_dirs: Iterable[Path] | None = None
) -> list[Stage]:
    """Curves of the folders given, else of the decoded experiment's three stages.

    Args:
        decode_dir: `exp/<tag>_instruction/decode_x`; `<tag>_representation` and
            `<tag>_generative` beside it belong to the same system.
        exp_dirs: folders, or None.

    Returns:
        One Stage a folder.
    """
    if exp_dirs is None:
        exp_dirs = experiment_folders(decode_dir) if decode_dir is not None else []
    return [read_training_log(folder) for folder in exp_dirs]


def experiment_folders(decode_dir: Path) -> list[Path]:
    """The training folders of a decoded experiment, in the order of the stages."""
    experiment = Path(decode_dir).resolve().parent
    tag = re.sub(rf"_({'|'.join(STAGES)})$", "", experiment.name)
    siblings = [experiment.parent / f"{tag}_{stage}" for stage in STAGES]
    return [p for p in siblings if p.is_dir()] or [experiment]


# Where the curves of a model start that knows nothing, and how far off them a model has
# learned something (docs/learning_curves.md).
MATCHING_ACCURACY_OF_NO = 0.67  # one right pair to two wrong ones
LEARNED_MATCHING_ACCURACY = 0.70
LEARNED_FALL = 0.99  # of the language model's loss, last epoch against first lines


def stage_warnings(folder: Path) -> list[str]:
    """What a finished stage has not learned.

    Args:
        folder: experiment folder with train.log.

    Returns:
        One sentence each, with the values that show it; [] for a healthy stage, and
        for one without a finished epoch.
    """
    stage = read_training_log(folder)
    name = f"stage {stage.name}"
    nothing = _unlearned_representation(stage)
    if len(nothing) == 2:
        return [f"{name} has learned nothing: {', '.join(nothing.values())}{_SEE}"]
    found = [
        f"{name}: the {part} objective has learned nothing: {said}{_SEE}"
        for part, said in nothing.items()
    ]
    first, last = _first_loss(folder), _last(stage, "loss_language_model", "train")
    if first is not None and last is not None and last > LEARNED_FALL * first:
        found.append(
            f"{name} has learned nothing: loss_language_model {first:.3g} in the first"
            f" steps, {last:.3g} in the last epoch{_SEE}"
        )
    return found


_SEE = ". Too few steps, or see docs/learning_curves.md, what broken looks like"


def _unlearned_representation(stage: Stage) -> dict[str, str]:
    """Objective of representation learning -> the values of one that knows nothing."""
    found = {}
    accuracy = _last(stage, "accuracy_matching")
    if accuracy is not None and accuracy < LEARNED_MATCHING_ACCURACY:
        found["matching"] = (
            f'matching accuracy {accuracy:.2f} (always "no": '
            f"{MATCHING_ACCURACY_OF_NO:.2f})"
        )
    loss = _last(stage, "loss_contrastive")
    recalls = [_last(stage, f"recall_{d}") for d in ("audio_to_text", "text_to_audio")]
    known = [recall for recall in recalls if recall is not None]
    if loss is not None and known:
        recall = sum(known) / len(known)
        # Of B pairs, knowing nothing gives the loss ln B and the recall 1 / B.
        if recall < 0.5 and math.exp(loss) * recall < 1.5:
            found["contrastive"] = (
                f"contrastive loss {loss:.2f} with in-batch recall {recall:.3f}"
                " (chance)"
            )
    return found


def _last(stage: Stage, name: str, section: str = "") -> float | None:
    """A curve's value in the last epoch: of validation, where it has any."""
    curves = stage.curves.get(name, {})
    curve = curves.get(section or "valid") or curves.get(section or "train")
    if not curve or math.isnan(value := curve[max(curve)]):
        return None
    return value


def _first_loss(folder: Path) -> float | None:
    """The language model's loss in the first line of the first run."""
    folder = Path(folder)
    for path in (*_older_logs(folder), folder / "train.log"):
        for line in read_lines_of(path) if path.is_file() else ():
            if isinstance(line, Step) and "loss_language_model" in line.values:
                return line.values["loss_language_model"]
    return None
