"""Frozen audio encoders behind one interface: speech (B, S) -> frames (B, T, D_a).

Owns the choice of an encoder by name. `base` owns windows, lengths and batching; the
other files load one kind of pretrained encoder each. To add a kind: subclass
`AudioEncoder` in a new file and name it in `build_audio_encoder`.
"""

from typing import Any

from espnet2_slit.model.audio_encoder.base import AudioEncoder

AUDIO_ENCODERS = ("beats", "hugging_face", "espnet", "python")

__all__ = ["AUDIO_ENCODERS", "AudioEncoder", "build_audio_encoder"]


def build_audio_encoder(name: str, **conf: Any) -> AudioEncoder:
    """Load a pretrained audio encoder, frozen.

    Args:
        name: beats (BEATs and OpenBEATs checkpoints), hugging_face (AST, CLAP, Whisper,
            wav2vec 2.0 and its relatives), espnet (the encoder of a trained ESPnet
            model) or python (a module of your own, by the name of what makes it).
        **conf: keywords of the encoder's constructor, `path` first of all.

    Returns:
        The encoder, in eval mode.

    Raises:
        ValueError: no encoder of that name.
        TypeError: a keyword that the encoder does not have, or no path.
    """
    # Imported here: each kind needs other, partly slow, libraries.
    if name == "beats":
        from espnet2_slit.model.audio_encoder.beats import BeatsAudioEncoder

        return BeatsAudioEncoder(**conf)
    if name == "hugging_face":
        from espnet2_slit.model.audio_encoder.hugging_face import load_hugging_face

        return load_hugging_face(**conf)
    if name == "espnet":
        from espnet2_slit.model.audio_encoder.espnet import EspnetAudioEncoder

        return EspnetAudioEncoder(**conf)
    if name == "python":
        from espnet2_slit.model.audio_encoder.python import PythonAudioEncoder

        return PythonAudioEncoder(**conf)
    raise ValueError(
        f"audio_encoder: expected one of {', '.join(AUDIO_ENCODERS)}, found {name!r}"
    )
