#!/usr/bin/env python3
"""Names the released frozen parts of a run, before anything is downloaded or trained.

    show_parts.py audio_encoder=openai/whisper-tiny.en language_model=/models/smollm2

For each part, its weights' size, licence and SHA-256, of a local folder or as Hugging
Face states them. Exit code 1, with the ways out, where a part is neither in a folder,
nor in Hugging Face's cache, nor to be had from the hub.
"""

import logging
import sys
from pathlib import Path

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WAYS_OUT = """Ways out:
  * on a machine with a network: the same command (what is downloaded stays in HF_HOME)
  * `hf download NAME --local-dir DIR/NAME` there, copy DIR, then --parts DIR
  * a mirror: HF_ENDPOINT=https://...
  * --parts mini: parts made here in minutes, without a network. They know the sounds
    and sentences of the mini corpus and no others: to try the recipe, not to caption"""


def licence_of(folder):
    """What the model card of a folder says."""
    card = folder / "README.md"
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    for line in lines[1:40]:  # between the two "---" at its beginning
        if line.startswith("license:"):
            return line.partition(":")[2].strip()
    return "not stated in the folder"


def in_folder(folder):
    """(bytes, licence, SHA-256, where) of weights on this machine."""
    from espnet2_slit.common.files import sha256

    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        raise OSError(f"{folder}: expected {' or '.join(WEIGHTS)}, found neither")
    size = found[0].stat().st_size
    return size, licence_of(folder), sha256(found[0]), str(folder)


def on_hub(name):
    """(bytes, licence, SHA-256, where) of weights in the hub's cache or on the hub."""
    import huggingface_hub

    for file in WEIGHTS:
        cached = huggingface_hub.try_to_load_from_cache(name, file)
        if isinstance(cached, str):
            return (*in_folder(Path(cached).parent)[:3], "downloaded before")
    info = huggingface_hub.HfApi().model_info(name, files_metadata=True)
    files = {file.rfilename: file for file in info.siblings}
    for file in WEIGHTS:
        if file in files:
            digest = files[file].lfs.sha256 if files[file].lfs else "not stated"
            licence = (info.card_data or {}).get("license") or "not stated"
            return files[file].size, licence, digest, "will be downloaded"
    raise OSError(f"{name}: expected {' or '.join(WEIGHTS)}, found neither on the hub")


def main(words):
    """Entry point."""
    logging.basicConfig(level=logging.ERROR)
    for word in words:
        part, _, name = word.partition("=")
        try:
            found = in_folder(Path(name)) if Path(name).is_dir() else on_hub(name)
        except Exception as error:  # of the hub's client, its network or the disk
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"Error: {part} {name} cannot be had: {reason}", file=sys.stderr)
            print(WAYS_OUT, file=sys.stderr)
            return 1
        size, licence, digest, where = found
        print(
            f"{part.replace('_', ' ')}: {name}, {size / 1e6:.0f} MB, licence {licence},"
            f" {where}, sha256 {digest}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
