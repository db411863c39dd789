"""What a process of the kill tests does; it is started by a fork server.

The fork server imports the package once, so that a process starts in a moment and the
moments of the kills fall into the work, not into imports.
"""

import os
import sys

PRELOAD = ["kill_target"]


def command(name, words, log):
    """Run one of the package's commands, with its output in `log`."""
    with open(log, "ab", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if name == "decode":  # pieces of 3 clips, so that there is something to resume
        from espnet2_slit.inference import decode_parts

        decode_parts.CHUNK = 3
    sys.exit(MAINS[name](words))


def _train(words):
    from espnet2_slit.bin import slit_train

    slit_train.main(cmd=words)


def _mains():
    from espnet2_slit.bin import slit_data, slit_encode, slit_inference, slit_score

    return {
        "prepare": slit_data.main,
        "encode": slit_encode.main,
        **dict.fromkeys(("representation", "generative", "instruction"), _train),
        "decode": slit_inference.main,
        "score": slit_score.main,
    }


def _warm_up():
    """Import what the commands import late."""
    import torch

    import espnet2_slit.inference.decoding  # noqa: F401
    import espnet2_slit.inference.slit  # noqa: F401
    import espnet2_slit.model.audio_encoder  # noqa: F401
    import espnet2_slit.task  # noqa: F401

    torch.set_num_threads(1)


MAINS = _mains()
_warm_up()
