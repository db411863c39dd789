"""What the two processes of the `two_ranks` fixture do: one start pays for all."""

from pathlib import Path

import torch


def rank_main(rank, folder, lm_folder, commands, bad_command):
    """One of two gloo ranks.

    Args:
        rank: 0 or 1.
        folder: takes the results.
        lm_folder: of the tiny language model.
        commands: trainings to run, one after the other.
        bad_command: a training that meets NaN on rank 1 and must stop on both.
    """
    from test_espnet_model import losses_and_gradients

    from espnet2_slit.task import SLITTask
    from espnet2_slit.trainer import NotFiniteError

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", world_size=2, rank=rank
    )
    torch.save(losses_and_gradients(rank, lm_folder), f"{folder}/steps{rank}.pt")
    torch.distributed.destroy_process_group()
    for i, command in enumerate([*commands, bad_command]):
        options = [
            *["--ngpu", "0", "--dist_backend", "gloo"],
            *["--dist_init_method", f"file://{folder}/store{i}"],
            *["--dist_world_size", "2", "--dist_rank", str(rank)],
        ]
        try:
            SLITTask.main(cmd=[*command, *options])
        except NotFiniteError as error:
            if command is not bad_command:
                raise
            Path(folder, f"stopped{rank}").write_text(str(error))
        torch.distributed.destroy_process_group()
