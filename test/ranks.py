"""What the two processes of the `two_ranks` fixture do: one start pays for all."""

import importlib
from pathlib import Path

import torch
import torch.multiprocessing as mp


def spawn(module, function, *args):
    """Run a test module's function(rank, *args) in two processes of their own.

    The processes find it by the module's plain name: pytest's own name for a test
    module is not one that Python can import.
    """
    mp.spawn(_call, args=(module, function, args), nprocs=2)


def _call(rank, module, function, args):
    getattr(importlib.import_module(module), function)(rank, *args)


def rank_main(rank, folder, lm_folder, commands, bad_command, whole, killed):
    """One of two gloo ranks.

    Args:
        rank: 0 or 1.
        folder: takes the results.
        lm_folder: of the tiny language model.
        commands: trainings to run, one after the other.
        bad_command: a training that meets NaN on rank 1 and must stop on both.
        whole: a training of 2 epochs of 3 batches.
        killed: the same in another folder; is stopped in step 5 and goes on.
    """
    from test_espnet_model import losses_and_gradients
    from test_step_checkpoint import run_until

    from espnet2_slit.task import SLITTask
    from espnet2_slit.train.trainer import NotFiniteError

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", world_size=2, rank=rank
    )
    torch.save(losses_and_gradients(rank, lm_folder), f"{folder}/steps{rank}.pt")
    torch.distributed.destroy_process_group()
    for i, command in enumerate([*commands, bad_command, whole, killed, killed]):
        options = [
            *["--ngpu", "0", "--dist_backend", "gloo"],
            *["--dist_init_method", f"file://{folder}/store{i}"],
            *["--dist_world_size", "2", "--dist_rank", str(rank)],
        ]
        if i == len(commands) + 2:
            run_until(5, [*command, *options])
            _note_ranks(rank, Path(command[command.index("--output_dir") + 1]))
        else:
            try:
                SLITTask.main(cmd=[*command, *options])
            except NotFiniteError as error:
                if command is not bad_command:
                    raise
                Path(folder, f"stopped{rank}").write_text(str(error))
        torch.distributed.destroy_process_group()


def _note_ranks(rank, folder):
    """What the second run will find."""
    from espnet2_slit.common.weights import read_checkpoint
    from espnet2_slit.train.checkpoint import STEP_FILE

    if rank == 0:
        states = read_checkpoint(folder / STEP_FILE)
        note = f"epoch {states['epoch']}, step {states['step']}"
        (folder.parent / "resumed").write_text(note)
