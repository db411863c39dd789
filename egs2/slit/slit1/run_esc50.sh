#!/usr/bin/env bash
# Usage: ./run_esc50.sh --esc50 DIR [--folds "1 2 3 4"] [--name value ...]
#
# Classification of real recordings (ESC-50, or ESC-10 in its layout: meta/esc50.csv and
# audio/) by held-out fold. What the mini system (run.sh) has learnt is gone on from, on the
# other folds alone: its audio encoder, then its Q-Former through the three stages. The
# language model is new: it knows sentences with the labels' names. Then the mean.

set -euo pipefail
SLIT_CALLER_DIR=${SLIT_CALLER_DIR:-${PWD}}
export SLIT_CALLER_DIR
# shellcheck disable=SC2034  # read by parse_options.sh; before cd, which $0 is relative to
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
init=        # stage-2 model to go on from (default: the mini system's, trained if missing)
data_args=   # more arguments of local/esc50_data.sh, e.g. "--epochs 40"
score_args=  # more arguments of slit_score
# End of options

. utils/parse_options.sh
. utils/stages.sh
# shellcheck disable=SC2034  # read by parse_options.sh: --help shows its options as well
next_script=slit.sh
parse_known_options "$@"
. ./path.sh
. ./db.sh
esc50=$(given "${esc50:-${ESC50}}")
[ -n "${esc50}" ] || usage_error "where is ESC-50? --esc50 DIR, or ESC50 in db.sh"
[ -f "${esc50}/meta/esc50.csv" ] || die "no ${esc50}/meta/esc50.csv: expected ESC-50's own layout"
folds=${folds:-$(cut -d, -f2 "${esc50}/meta/esc50.csv" | grep -E '^[0-9]+$' | sort -un | xargs)}

init=$(given "${init}")
if [ -z "${init}" ]; then
    init=${expdir}/mini_representation/valid.loss.best.pth
    if [ ! -e "${init}" ]; then
        log "First the mini system's stages 1 and 2, to go on from: ${init}"
        ./run.sh --stop_stage 2 --expdir "${expdir}" --ngpu "${ngpu}" --nj "${nj}"
    fi
fi

decoded=()
for fold in ${folds}; do
    log "Fold ${fold} of ${folds} is held out"
    name=${tag}_fold${fold}
    ./slit.sh --nj "${nj}" --encode_nj 1 --ngpu "${ngpu}" --config "${config}" --tag "${name}" \
        --expdir "${expdir}" --datadir "data/${name}" --dumpdir "dump/${name}" \
        --local_data_opts "esc50 --corpus $(realpath "${esc50}") --fold ${fold}
            --data_dir data/${name} --encoder downloads/${name}.pt
            --parts downloads/${tag} --nj ${nj} ${data_args}" \
        --train_set train_caption --valid_set valid_caption \
        --instruction_train_set train_instruction --instruction_valid_set valid_instruction \
        --audio_encoder_path "downloads/${name}.pt" --language_model "downloads/${tag}/language_model" \
        --qformer_tokenizer "downloads/${tag}/qformer_tokenizer" --stop_stage 6 \
        --pretrained_model "${init}" --ignore_init_mismatch true \
        --score_args "${score_args}" "${rest[@]}"
    for dir in "${expdir}/${name}_instruction"/decode_*; do
        if [ -f "${dir}/scores.json" ]; then decoded+=("${dir}"); fi
    done
done
if [ ${#decoded[@]} -gt 1 ]; then
    # shellcheck disable=SC2086  # a list of options
    python3 -m espnet2_slit.bin.slit_score --folds "${decoded[@]}" --output_dir "${expdir}/${tag}" \
        ${score_args}
    log "Mean of the folds: ${expdir}/${tag}/RESULTS.md"
fi
