#!/usr/bin/env bash
# Usage: ./run_pretrained.sh --esc50 DIR [--folds "1 2"] [--parts DIR] [--name value ...]
#
# Classification and captions of labelled real recordings (ESC-50, or ESC-10 in its layout:
# meta/esc50.csv and audio/) between released frozen parts: Whisper, SmolLM2 and MiniLM, from
# Hugging Face or a folder. One system for each fold that is held out; then the mean. No GPU
# is needed.

# shellcheck disable=SC2034  # options are read in utils/, too
set -euo pipefail
SLIT_CALLER_DIR=${SLIT_CALLER_DIR:-${PWD}}
export SLIT_CALLER_DIR
# before cd, which $0 is relative to
option_file=$(readlink -f "$0")
cd "$(dirname "$0")"

# Options
esc50=              # the corpus (default: ESC50 of db.sh)
folds=              # folds to hold out, one system each (default: all there are)
parts=hub           # frozen parts: hub, or a folder that holds them
tag=pretrained      # experiments are <tag>_fold<fold>_...
expdir=exp          # where experiments go
nj=2                # processes that check audio
ngpu=0              # GPUs
threads=            # CPU threads of a training (default: 2 where there are 2 cores)
config=             # conf/train_<training stage>_<config>.yaml (default: pretrained)
audio_encoder_path= # default: of the parts
language_model=     # default: of the parts
qformer_tokenizer=  # default: of the parts
score_args=         # more arguments of slit_score
# End of options

. utils/parse_options.sh
. utils/stages.sh
. utils/parts.sh
. utils/folds.sh
# --help shows its options as well
next_script=slit.sh
parse_known_options "$@"
. ./path.sh
. ./db.sh
find_folds
pretrained_parts 5.0 # s, the length of ESC-50's clips
if [ -z "${threads}" ]; then threads=$(($(nproc) > 1 ? 2 : 1)); fi
for fold in ${folds}; do
    run_fold "${fold}" "" --train_threads "${threads}" "${part_options[@]}"
done
mean_of_folds
