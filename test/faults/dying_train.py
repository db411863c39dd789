"""slit_train for the tests of a rank that dies: rank 1 fails in its second batch.

How is said by the environment variable DIE: "raise" an error, or "kill" by SIGKILL.
"""

import os
import signal
import time
from pathlib import Path

import torch

from espnet2_slit.bin import slit_train
from espnet2_slit.model.espnet_model import RepresentationModel

forward = RepresentationModel.forward
batches = []


def failing(self, *args, **batch):
    """The model's forward, which ends badly the second time."""
    batches.append(1)
    if len(batches) == 2 and torch.distributed.get_rank() == 1:
        Path(os.environ["DIED"]).write_text(str(time.time()))
        if os.environ["DIE"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError("rank 1 fails here on purpose")
    return forward(self, *args, **batch)


if __name__ == "__main__":
    RepresentationModel.forward = failing
    slit_train.main()
