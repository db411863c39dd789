"""SLITTask: an ESPnet task, from options to the models of the three trainings.

`slit_task` builds and optimizes, `options` owns what a training can be told, and
`identities` what its frozen parts were. May import `common` to `model` and `scoring`.
"""

from espnet2_slit.task.identities import IdentityError
from espnet2_slit.task.slit_task import SLITTask, model_choices

__all__ = ["IdentityError", "SLITTask", "model_choices"]
