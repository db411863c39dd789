#!/usr/bin/env python3
"""Train one stage: everything that ESPnet's own *_train commands do."""

from espnet2_slit.task import SLITTask


def get_parser():
    """All options: ESPnet's and the task's."""
    return SLITTask.get_parser()


def main(cmd=None):
    r"""Train a representation, generative or instruction model.

    Example:
        % python -m espnet2_slit.bin.slit_train --config conf/train_x.yaml \
              --output_dir exp/x --train_data_path_and_name_and_type ...
        % python -m espnet2_slit.bin.slit_train --print_config --model generative
    """
    SLITTask.main(cmd=cmd)


if __name__ == "__main__":
    main()
