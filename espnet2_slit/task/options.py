"""Options of a training beside ESPnet's: declared, filled in, checked, read again."""

import argparse
import inspect
from pathlib import Path
from typing import Any

from espnet2_slit.common import compat
from espnet2_slit.common.files import read_yaml
from espnet2_slit.data.training_files import training_files
from espnet2_slit.model.frame_stack import CONNECTORS
from espnet2_slit.task.identities import IDENTITIES, forget_place

compat.prepare_espnet_import()

from espnet2.utils.nested_dict_action import NestedDictAction  # noqa: E402
from espnet2.utils.types import str_or_none  # noqa: E402


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options beside ESPnet's and beside --model."""
    # Defaults of ESPnet that do not fit: pictures of attention take seconds, plots
    # need optional packages, and averaging over two criteria is wrong in 202511.
    parser.set_defaults(
        num_att_plot=0,
        use_tensorboard=compat.is_installed("tensorboard"),
        use_matplotlib=compat.is_installed("matplotlib"),
        best_model_criterion=[("valid", "loss", "min")],
        optim="adamw",
    )
    _add_parts(parser)
    _add_data(parser)
    group = parser.add_argument_group(description="Preprocess related")
    _add_keywords(
        group, "preprocessor_conf", "SLITPreprocessor: max_text_length, prompt, ..."
    )
    group = parser.add_argument_group(description="Inference related")
    group.add_argument(
        "--inference_conf",
        action=NestedDictAction,
        default=dict(),
        help="How SLIT asks the trained model where a call does not say, by task: "
        "{caption: {instruction: ..., options: {...}}, question_answering: ...}. "
        "Empty: in the words of the templates",
    )
    group = parser.add_argument_group(
        description="Recorded in config.yaml by training, checked when loading"
    )
    for name in IDENTITIES:
        group.add_argument(f"--{name}", action=NestedDictAction, default=None)
    group.add_argument("--initialized_from", type=str, nargs="*", default=[])
    group.add_argument("--init_fingerprints", type=str, nargs="*", default=[])
    group.add_argument("--text_fingerprints", type=str, nargs="*", default=[])


def _add_parts(parser: argparse.ArgumentParser) -> None:
    """What the model is made of: frozen parts, connector, start values."""
    group = parser.add_argument_group(description="Parts of the model")
    group.add_argument(
        "--audio_encoder",
        type=str_or_none,
        default=None,
        help="Frozen audio encoder: beats, hugging_face, espnet or python. "
        "Not needed beside --features",
    )
    _add_keywords(group, "audio_encoder_conf", "the audio encoder, path first of all")
    _add_place(
        group,
        "features",
        "feats.json of the training set's cached features. The audio encoder "
        "is then not built, and the data name is feats instead of speech",
    )
    _add_keywords(
        group, "qformer_conf", "QFormer: width, layers, heads, num_queries, ..."
    )
    group.add_argument(
        "--connector",
        choices=CONNECTORS,
        default="qformer",
        help="What turns frames into the language model's prompt: the Q-Former, or "
        "stacked frames with one layer (linear) or two (mlp); the latter are for "
        "generative and instruction, without --init_param of representation",
    )
    _add_keywords(group, "connector_conf", "build_frame_stack: stack, hidden")
    _add_place(
        group,
        "qformer_tokenizer",
        "Folder or hub name of the Q-Former's BERT-style tokenizer",
    )
    _add_place(
        group,
        "qformer_init",
        "Folder, hub name or file of BERT, LAVIS or transformers weights to "
        "start from. Left out when --init_param gives the Q-Former",
    )
    _add_keywords(
        group, "qformer_init_conf", "load_pretrained_qformer: reinitialise, modality"
    )
    _add_place(
        group,
        "language_model",
        "Folder or hub name of the frozen language model; not for representation",
    )
    _add_keywords(
        group, "language_model_conf", "load_language_model: dtype, revision, lora, ..."
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    """Sets by their folders, and the weights that a system takes of a training."""
    group = parser.add_argument_group(
        description="Data: instead of --train_data_path_and_name_and_type, "
        "--train_shape_file, --valid_... and --features"
    )
    for part in ("train", "valid"):
        _add_place(
            group,
            f"{part}_dir",
            "Set that `slit encode` or `slit data prepare` made: its files are found "
            "by their names",
        )
    _add_place(
        group,
        "model_file",
        "Weights that slit.json names when the training is over, e.g. "
        "valid.loss.ave.pth; default: the best. For slit_train",
    )


def _add_place(group: Any, name: str, text: str) -> None:
    group.add_argument(f"--{name}", type=str, default="", help=text)


def _add_keywords(group: Any, name: str, of: str) -> None:
    group.add_argument(
        f"--{name}", action=NestedDictAction, default=dict(), help=f"Keywords of {of}"
    )


def find_data(args: argparse.Namespace) -> None:
    """Fill in ESPnet's data options from --train_dir and --valid_dir.

    Raises:
        ValueError: both ways are used and name different files.
        FileNotFoundError: a directory lacks a file.
    """
    for part in ("train", "valid"):
        folder = getattr(args, f"{part}_dir", "")  # ESPnet-EZ has no such option
        if not folder:
            continue
        files = training_files(
            folder, args.model == "instruction", args.iterator_type == "category"
        )
        found = {
            f"{part}_data_path_and_name_and_type": files.data,
            f"{part}_shape_file": [files.lengths],
        }
        if part == "train":
            found["features"] = files.features
        for option, value in found.items():
            given = getattr(args, option)
            if given:
                raise ValueError(
                    f"--{option}: expected nothing beside --{part}_dir {folder}, "
                    f"found {given}. Give the folder or the files, not both."
                )
            setattr(args, option, value)


def check_data_names(args: argparse.Namespace) -> None:
    """Data is frames where features are given, else audio.

    Raises:
        ValueError: says which, and what to give.
    """
    wanted = "feats" if args.features else "speech"
    other = "speech" if args.features else "feats"
    for option in (
        "train_data_path_and_name_and_type",
        "valid_data_path_and_name_and_type",
    ):
        names = [name for _, name, _ in getattr(args, option)]
        if wanted not in names or other in names:
            raise ValueError(
                f"--{option}: expected {wanted} "
                + (
                    f"(--features {args.features} is given)"
                    if args.features
                    else "(no --features is given)"
                )
                + f" and not {other}, found the names {', '.join(names) or 'none'}."
                " Give wav.scp,speech,sound; or feats.scp,feats,kaldi_ark with "
                "--features feats.json."
            )


def read_options(config_file: Path, overrides: dict[str, Any]) -> argparse.Namespace:
    """Options of a training, without what only its start needed."""
    if not config_file.is_file():
        raise FileNotFoundError(
            f"{config_file}: expected the config.yaml of a training, found "
            "nothing. It lies in the experiment folder, beside the model file."
        )
    options = read_yaml(config_file, "Give the one that training wrote.")
    needed = ("model", "model_conf", "qformer_conf", *IDENTITIES)
    absent = [name for name in needed if name not in options]
    if absent:
        raise ValueError(
            f"{config_file}: expected the config.yaml of a SLIT training, found "
            f"no {', '.join(absent)}. Give the one that training wrote (not a "
            "file of conf/)."
        )
    unknown = sorted(set(overrides) - set(options))
    if unknown:
        raise ValueError(
            f"overrides: expected options of {config_file}, found "
            f"{', '.join(unknown)}."
        )
    for name, value in overrides.items():
        if isinstance(value, dict) and isinstance(options[name], dict):
            value = {**options[name], **value}
        options[name] = value
    # of trainings before there were others
    options = {"connector": "qformer", "connector_conf": {}, **options}
    # the cache is of the training set; weights come from the model file
    options.update(features="", qformer_init="", init_param=[])
    args = argparse.Namespace(**options)
    for name, option in IDENTITIES.items():
        if option.partition(".")[0] in overrides:
            forget_place(args, name)
    return args


def setting(owner: Any, conf: dict[str, Any], name: str) -> Any:
    """A configured keyword, or its default where the constructor states it."""
    return conf.get(name, inspect.signature(owner).parameters[name].default)
