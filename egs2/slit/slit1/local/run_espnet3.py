#!/usr/bin/env python3
"""Train with ESPnet3: --stages train --training_config conf/espnet3/..."""

from espnet3.systems.base.system import BaseSystem
from espnet3.systems.launch import launch

if __name__ == "__main__":  # data workers import this file
    launch(BaseSystem, conf_package="egs3.TEMPLATE.esp2_asr")
