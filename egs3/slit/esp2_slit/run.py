from espnet3.systems.launch import launch

from espnet2_slit.inference.espnet3 import SLITSystem

if __name__ == "__main__":  # data workers import this file
    launch(SLITSystem, conf_package="egs3.TEMPLATE.esp2_asr")
