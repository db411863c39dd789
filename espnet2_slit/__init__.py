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

from typing import Any

__version__ = "0.1.0"


def register(lightning: bool = False) -> list[str]:
    """Add this task to ESPnet's own tables, where the installed version has them.

    Afterwards `espnet.load(tag, task="slit")` opens a system (espnet 202611), also
    without `task` where its model card is ours.

    Args:
        lightning: also to the tasks of espnet2.bin.lightning_train, which imports all
            of ESPnet's; call its main afterwards.

    Returns:
        Names of the tables that were there.
    """
    import espnet

    tables = []
    if hasattr(espnet, "TASKS"):
        espnet.TASKS["slit"] = (__name__, "SLIT")
        tables.append("espnet.TASKS")
    labels = getattr(espnet, "_HUB_LABELS", None)
    if labels is not None:  # the first that a repository has decides
        ours = (__name__, "slit")
        espnet._HUB_LABELS = (ours, *(row for row in labels if row != ours))
        tables.append("espnet._HUB_LABELS")
    if lightning:
        from espnet2_slit.common.compat import prepare_espnet_import

        prepare_espnet_import()
        from espnet2.train.lightning_espnet_model import task_choices

        from espnet2_slit.task import SLITTask

        task_choices["slit"] = SLITTask
        tables.append("espnet2.train.lightning_espnet_model.task_choices")
    return tables


def __getattr__(name: str) -> Any:
    """`SLIT`, imported when asked for: the package itself imports nothing slow."""
    if name == "SLIT":
        from espnet2_slit.inference.slit import SLIT

        return SLIT
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
