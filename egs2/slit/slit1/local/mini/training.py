"""What the programs that train the mini recipe's frozen parts share.

Owns their common options, one loop, and whether a part is there already.
"""

import argparse
import logging
import time

import torch

from espnet2_slit.common.precision import PRECISIONS, autocast, choose_precision

LOGGER = logging.getLogger("mini")


def make_parser(about, **settings):
    """A command line that shows its defaults.

    Args:
        about: what the program does; the first line is shown.
        **settings: the default of each option that is a number or a Path.

    Returns:
        ArgumentParser, also with --precision and --threads.
    """
    parser = argparse.ArgumentParser(
        description=about.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, value in settings.items():
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=type(value), default=value)
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def prepare(threads: int):
    """Logging and arithmetic of this process."""
    # Only our own progress: ESPnet reports every layer it initialises.
    logging.basicConfig(format="%(asctime)s %(message)s", force=True)
    LOGGER.setLevel(logging.INFO)
    torch.set_num_threads(threads)  # another number gives other last digits
    torch.set_float32_matmul_precision("medium")  # oneDNN: faster on AMD and with AMX


def made_alike(found: dict, wanted: dict, precision: str) -> bool:
    """True if `found`, of a file that is there, says that it was made as `wanted`.

    The precision "auto" takes what another machine made as well.
    """
    if {key: found.get(key) for key in wanted} != wanted:
        return False
    # before there was a choice, all was made in bfloat16
    made_in = found.get("precision", "bfloat16")
    return precision == "auto" or made_in == choose_precision(precision)


def is_there(path, found, wanted, precision):
    """`made_alike`, and says so of the part at `path`."""
    alike = made_alike(found, wanted, precision)
    LOGGER.info("%s%s", path, " is there" if alike else ": other settings, made anew")
    return alike


def fit(
    name,
    modules,
    batches,
    steps,
    loss_of,
    precision,
    warm_up,
    every,
    groups=None,
    end_threads=None,
    **how,
):
    """A step for each batch, at rates that rise and fall once.

    Args:
        name: in the log.
        modules: what is trained; in eval mode afterwards.
        batches: as many as `steps`.
        steps: int.
        loss_of: batch -> loss.
        precision: of the products: auto, float32 or bfloat16; weights stay float32.
        warm_up: part of the steps in which the rates rise.
        every: steps between two lines of the log.
        groups: of parameters, those with another rate than others.
        end_threads: of the last quarter of the steps, whatever runs beside.
        **how: of AdamW; the rates are the highest.
    """
    weights = [weight for module in modules for weight in module.parameters()]
    optimizer = torch.optim.AdamW(groups or weights, fused=True, **how)
    rates = [group["lr"] for group in optimizer.param_groups]
    if steps * warm_up == 1:  # PyTorch would divide by the steps before the peak, 0
        warm_up *= 1.5
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, steps, pct_start=warm_up
    )
    for module in modules:
        module.train()
    started, losses = time.monotonic(), []
    for step, batch in enumerate(batches, start=1):
        if end_threads and step == 3 * steps // 4:
            torch.set_num_threads(end_threads)
        with autocast(precision):
            loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % every == 0 or step == steps:
            mean, seconds = sum(losses) / len(losses), time.monotonic() - started
            LOGGER.info(
                f"{name}: step {step} of {steps}, loss {mean:.4f}, {seconds:.0f} s"
            )
            losses.clear()
    for module in modules:
        module.eval()
