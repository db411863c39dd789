"""SLIT for ESPnet: audio-language models with frozen encoders and language models.

A frozen audio encoder and a frozen language model are joined by a trained Q-Former.

Letters for shapes, used in docstrings and comments throughout the package:

    B  clips of a batch          S  samples of audio (or texts, where said)
    T  frames of the encoder     Q  learned queries
    L  tokens of a text          V  vocabulary
    E  width of the joint space  C  candidate answers or labels
    H  attention heads           W  ranks of a distributed run
    D_a, D_q, D_l  widths of the audio encoder, the Q-Former and the language model
"""

__version__ = "0.1.0"


def __getattr__(name):
    """`SLIT`, imported when asked for: the package itself imports nothing slow."""
    if name == "SLIT":
        from espnet2_slit.inference.slit import SLIT

        return SLIT
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
