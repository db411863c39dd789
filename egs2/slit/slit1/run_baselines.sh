#!/usr/bin/env bash
# Usage: ./run_baselines.sh [--name value ...]      (after run.sh)
#
# Two baselines beside SLIT: a CLAP-style dual encoder (contrastive loss alone) and an
# encoder-decoder captioner. Both read the same cached frames of the same frozen audio
# encoder, train on the same captions in the same batches with the same optimizer, as many
# epochs as SLIT's representation learning (for retrieval) or all its three stages (for captions), and are
# scored on the same test sets. Writes exp/<tag>_baselines/comparison.md, and SLIT's HTML
# report with both beside it: exp/<tag>_baselines/report/index.html.

set -euo pipefail
# shellcheck disable=SC2034  # read by parse_options.sh; before cd, which $0 is relative to
option_file=$(readlink -f "$0")
cd "$(dirname "$0")"

# Options
tag=mini                        # of SLIT's experiments
seeds=                          # "1 2 3": those of ./run.sh --seeds; mean and range as well
train_args=                     # more arguments of both trainings
config=mini                     # conf/train_<training stage>_<config>.yaml, conf/decode_<config>.yaml
expdir=exp                      # where experiments go
feats=dump/mini_beats           # cached frames
raw=dump/raw                    # data directories that are scored
train_set=train_caption         # captions to train on
valid_set=valid_caption         # captions that choose the best epoch
test_sets="test_caption test_caption_unseen" # sets with captions
language_model=downloads/mini/language_model # whose sizes and tokenizer the captioner takes
qformer_tokenizer=downloads/mini/qformer_tokenizer # of the dual encoder's text tower
dual_encoder_epochs=2           # as representation learning
captioner_epochs=6              # as SLIT's three stages together
python=python3                  # Python of the project's environment
# End of options

. utils/parse_options.sh
. utils/stages.sh
parse_options "$@"
. ./path.sh
. ./cmd.sh

if [ -n "${seeds}" ]; then
    for seed in ${seeds}; do
        "${option_file}" "$@" --tag "${tag}_seed${seed}" --seeds "" \
            --train_args "${train_args} --seed ${seed}"
    done
    baselines=$(runs_of "${tag}" baselines)
    python3 local/ablation_table.py --output "${expdir}/${tag}_baselines_seeds.md" \
        "SLIT=$(runs_of "${tag}" instruction)" \
        "dual encoder=${baselines//_baselines/_baselines/dual_encoder}" \
        "captioner=${baselines//_baselines/_baselines/captioner}"
    log "Mean and range: ${expdir}/${tag}_baselines_seeds.md"
    exit
fi

slit=${expdir}/${tag}_instruction/decode_${config}
exp=${expdir}/${tag}_baselines
[ -f "${slit}/scores.json" ] || die "no ${slit}/scores.json: run ./run.sh first"

train() { # MODEL STAGE EPOCHS OPTIONS
    local model=$1 stage=$2 folder=${exp}/$1 set words options
    for set in "${train_set}" "${valid_set}"; do
        [ -f "${feats}/${set}/feats.scp" ] || die "no ${feats}/${set}/feats.scp: run ./run.sh first"
    done
    options=(--model "${model}" --config "conf/train_${stage}_${config}.yaml" --max_epoch "$3"
        --output_dir "${folder}" --resume true --train_dir "${feats}/${train_set}"
        --valid_dir "${feats}/${valid_set}" "${@:4}")
    # shellcheck disable=SC2206  # a list of options
    options+=(${train_args})
    words="${options[*]} $(state "conf/train_${stage}_${config}.yaml" "${feats}/${train_set}/text" \
        "${feats}/${train_set}/feats.json" local/baselines.py)"
    begin "${folder}" valid.loss.best.pth "${words}" || return 0
    log "Training the ${model}: ${folder}/train.log"
    write_job "${folder}/train.sh" "${python}" local/baselines.py train "${options[@]}"
    # shellcheck disable=SC2086  # the command may have options
    follow "${folder}/train.log" ${train_cmd} "${folder}/train.log" bash "${folder}/train.sh"
    mark_done "${folder}" "${words}"
}

score() { # MODEL TASK SUFFIX
    local set sets=() predictions=()
    for set in ${test_sets}; do
        sets+=("${feats}/${set}")
        predictions+=(--predictions "${set}:$2=${exp}/$1/predictions/${set}.$3")
    done
    log "Predicting and scoring: ${exp}/$1/scores/RESULTS.md"
    "${python}" local/baselines.py predict --experiment "${exp}/$1" --data_dir "${sets[@]}" \
        --output_dir "${exp}/$1/predictions" --config "conf/decode_${config}.yaml"
    "${python}" -m espnet2_slit.bin.slit_score "${predictions[@]}" --data_dir "${raw}" \
        --system "${1//_/ }" --output_dir "${exp}/$1/scores" --report false >/dev/null
}

train dual_encoder representation "${dual_encoder_epochs}" \
    --qformer_tokenizer "${qformer_tokenizer}"
train captioner generative "${captioner_epochs}" --language_model "${language_model}"
score dual_encoder retrieval npz
score captioner caption txt

log "Comparing: ${exp}/comparison.md"
for model in dual_encoder captioner; do
    "${python}" -m espnet2_slit.bin.slit_compare "${slit}" "${exp}/${model}/scores" \
        --output "${exp}/${model}/comparison.json" \
        --metrics "recall_at_1 recall_at_10 map_at_10 bleu_4 rouge_l meteor cider_d"
    echo
done >"${exp}/comparison.md.tmp"
mv "${exp}/comparison.md.tmp" "${exp}/comparison.md"
cat "${exp}/comparison.md"
"${python}" -m espnet2_slit.bin.slit_score --decode_dir "${slit}" --data_dir "${raw}" \
    --output_dir "${exp}" --system SLIT --peers "${exp}"/{dual_encoder,captioner}/scores >/dev/null
log "Report: ${exp}/report/index.html"
