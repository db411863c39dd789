#!/usr/bin/env bash
# Usage: ./run_esc50.sh --esc50 DIR [--folds "1 2 3 4"] [--name value ...]
#
# Classification of real recordings (ESC-50, or ESC-10 in its layout: meta/esc50.csv and
# audio/) by held-out fold. What the mini system (run.sh) has learnt is gone on from, on the
# other folds alone: its audio encoder, then its Q-Former through the three stages. The
# language model is new: it knows sentences with the labels' names. Then the mean.

# shellcheck disable=SC2034  # options are read in utils/, too
set -euo pipefail
SLIT_CALLER_DIR=${SLIT_CALLER_DIR:-${PWD}}
export SLIT_CALLER_DIR
# before cd, which $0 is relative to
option_file=$(readlink -f "$0")
cd "$(dirname "$0")"

# Options
esc50=       # the corpus (default: ESC50 of db.sh)
folds=       # folds to hold out, one system each (default: all there are)
tag=esc50    # experiments are <tag>_fold<fold>_...
expdir=exp   # where experiments go
nj=2         # processes that check audio
ngpu=0       # GPUs; the mini models need none
config=esc50 # conf/train_<training stage>_<config>.yaml
init=        # representation model to go on from (default: the mini system's, trained if missing)
data_args=   # more arguments of local/esc50_data.sh, e.g. "--epochs 40"
score_args=  # more arguments of slit_score
# End of options

. utils/parse_options.sh
. utils/stages.sh
. utils/folds.sh
# --help shows its options as well
next_script=slit.sh
parse_known_options "$@"
. ./path.sh
. ./db.sh
find_folds

init=$(given "${init}")
if [ -z "${init}" ]; then
    init=${expdir}/mini_representation/valid.loss.best.pth
    if [ ! -e "${init}" ]; then
        log "First the mini system's representation learning, to go on from: ${init}"
        ./run.sh --stop_stage representation --expdir "${expdir}" --ngpu "${ngpu}" --nj "${nj}"
    fi
fi

for fold in ${folds}; do
    name=${tag}_fold${fold}
    run_fold "${fold}" "--encoder downloads/${name}.pt --parts downloads/${tag} ${data_args}" \
        --config "${config}" --audio_encoder_path "downloads/${name}.pt" \
        --language_model "downloads/${tag}/language_model" \
        --qformer_tokenizer "downloads/${tag}/qformer_tokenizer" \
        --pretrained_model "${init}" --ignore_init_mismatch true
done
mean_of_folds
