# shellcheck shell=bash disable=SC2034
# Where the corpora lie, as their publishers ship them. Empty: not there. A path given in the
# environment wins, e.g. AUDIOCAPS=/data/audiocaps ./run_audiocaps_clotho.sh

AUDIOCAPS=${AUDIOCAPS:-}         # audio/ and the csv files of 1.0 or 2.0
CLOTHO=${CLOTHO:-}               # v2.1: development/ validation/ evaluation/ and csv files
WAVCAPS=${WAVCAPS:-}             # json_files/ and the audio of its parts
MACS=${MACS:-}                   # MACS.yaml and the audio of TAU Urban 2019
CLOTHO_AQA=${CLOTHO_AQA:-}       # clotho_aqa_*.csv and audio_files/
AUDIOSET=${AUDIOSET:-}           # segment csv files, ontology.json and audio
ESC50=${ESC50:-}                 # meta/esc50.csv and audio/
URBANSOUND8K=${URBANSOUND8K:-}   # metadata/ and audio/fold*/
VGGSOUND=${VGGSOUND:-}           # vggsound.csv and audio
FSD50K=${FSD50K:-}               # FSD50K.ground_truth/ and FSD50K.*_audio/
NSYNTH=${NSYNTH:-}               # nsynth-train/ nsynth-valid/ nsynth-test/
