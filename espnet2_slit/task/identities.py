"""What a model was trained with must be there again when it is loaded or goes on.

Training records what its frozen parts are in its options (config.yaml); loading and
resuming compare.
"""

import argparse
from pathlib import Path
from typing import Any

from espnet2_slit.common.identity import fingerprint, identity_differences

# Which frozen part an identity in the config belongs to, and the option that names it.
IDENTITIES = {
    "audio_encoder_identity": "audio_encoder_conf.path",
    "language_model_identity": "language_model",
    "qformer_tokenizer_identity": "qformer_tokenizer",
}


class IdentityError(RuntimeError):
    """A frozen part is not the one that the model was trained with."""


def record(args: argparse.Namespace, name: str, found: dict[str, Any]) -> None:
    """Note a frozen part's identity in the options, or compare it with the noted one.

    Raises:
        IdentityError: they differ; the message names the option to correct.
    """
    expected = getattr(args, name, None)
    if expected is None:
        if Path(configured(args, name) or "").exists():
            found = {**found, "local": True}  # once moved, it is not to be downloaded
        setattr(args, name, found)
        return
    differences = identity_differences(expected, found)
    if differences:
        part = name.removesuffix("_identity").replace("_", " ")
        raise IdentityError(
            f"the {part} is not the one this model was trained with: "
            f"{'; '.join(differences)}. It was {expected.get('path', 'unnamed')} then; "
            f"correct {IDENTITIES[name]}, or train anew in another folder without "
            f"{name} in the configuration."
        )


def check_place(args: argparse.Namespace, name: str) -> None:
    """A frozen part that was a file when it was recorded is still one.

    Raises:
        IdentityError: it is not there; transformers would ask the Hub for its name.
    """
    place = configured(args, name)
    local = (getattr(args, name) or {}).get("local")
    if local and place and not Path(place).exists():
        raise IdentityError(
            f"{IDENTITIES[name]}: expected a file or folder at {place}, where there "
            "was one when this model was trained, found nothing. Put it back, or give "
            "its place now."
        )


def forget_place(args: argparse.Namespace, name: str) -> None:
    """The user says anew where a part is, which may now be on the Hub."""
    identity = getattr(args, name)
    if identity:
        kept = {key: value for key, value in identity.items() if key != "local"}
        setattr(args, name, kept)


def configured(args: argparse.Namespace, name: str) -> str:
    """What the options name as the part that an identity belongs to; "" if nothing."""
    option, _, key = IDENTITIES[name].partition(".")
    value = getattr(args, option)
    return str((value.get(key) if key else value) or "")


def check_run_so_far(args: argparse.Namespace, previous: dict[str, Any]) -> None:
    """A run goes on with the parts, the texts and from the checkpoint it began with."""
    before = argparse.Namespace(**previous)
    for name in IDENTITIES:
        if getattr(args, name) is None:
            setattr(args, name, previous.get(name))
        if configured(args, name) != configured(before, name):
            forget_place(args, name)
    began = previous.get("init_fingerprints", args.init_fingerprints)
    if began != args.init_fingerprints:
        start = " ".join(previous.get("initialized_from", [])) or "no checkpoint"
        raise IdentityError(
            f"{args.output_dir}: expected to go on with a training that began from "
            f"{' '.join(args.init_param) or 'no checkpoint'}, found one that began "
            f"from {start}, as it was then. Remove the folder, or train in another "
            "one (--output_dir; slit.sh --tag)."
        )
    learned = previous.get("text_fingerprints", args.text_fingerprints)
    if learned != args.text_fingerprints:
        raise IdentityError(
            f"{args.output_dir}: expected to go on with a training on the texts of "
            "now, found one on others: they have changed since. Remove the folder, or "
            "train in another one (--output_dir; slit.sh --tag)."
        )


def fingerprints(files: list[str]) -> list[str]:
    """What files are, as those of --init_param; missing ones are an error elsewhere."""
    paths = [spec.partition(":")[0] for spec in files]
    return [fingerprint(path) for path in paths if Path(path).exists()]
