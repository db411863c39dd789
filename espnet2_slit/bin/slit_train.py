#!/usr/bin/env python3
"""Train one stage: everything that ESPnet's own *_train commands do, and slit.json."""

import argparse
from collections.abc import Sequence

from espnet2_slit.task import SLITTask


def get_parser() -> argparse.ArgumentParser:
    """All options: ESPnet's and the task's."""
    return SLITTask.get_parser()


def main(cmd: Sequence[str] | None = None) -> None:
    r"""Train a representation, generative or instruction model.

    A generative or instruction model is a system when it is trained: slit.json names it
    and the representation model that it started from.

    Example:
        % python -m espnet2_slit.bin.slit_train --config conf/train_x.yaml \
              --output_dir exp/x --train_dir dump/x/train --valid_dir dump/x/valid ...
        % python -m espnet2_slit.bin.slit_train --print_config --model generative
    """
    SLITTask.main(cmd=cmd)
    args = get_parser().parse_args(cmd)
    if args.model != "representation" and not (args.collect_stats or args.dry_run):
        from espnet2_slit.inference.system import link_training

        link_training(args.output_dir, args.model_file)


if __name__ == "__main__":
    main()
