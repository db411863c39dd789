#!/usr/bin/env bash
# Usage: ./run_ablation.sh [--name value ...]      (after, or instead of, run.sh)
#
# Does each training stage earn its place? On the mini corpus: the whole system, without
# representation, without instruction tuning, with stacked frames in place of the Q-Former, and with
# an audio encoder left at random weights.
# Every system is trained with the same settings and scored on the same test sets.
# Writes exp/ablation.md. All options are those of slit.sh.

set -euo pipefail
# shellcheck disable=SC2034  # read by parse_options.sh; before cd, which $0 is relative to
option_file=$(readlink -f "$0")
cd "$(dirname "$0")"

# Options
seeds=     # "1 2 3": each system trained with each of them, mean and range in the table
expdir=exp # where experiments go
nj=2       # processes that make and check audio
# End of options

. utils/parse_options.sh
. utils/stages.sh
# shellcheck disable=SC2034  # read by parse_options.sh: --help shows its options as well
next_script=slit.sh
parse_known_options "$@"
options=(--seeds "${seeds}" --expdir "${expdir}" --nj "${nj}" --stop_stage score "${rest[@]}")

log "The whole system"
./run.sh "${options[@]}"

log "Without representation learning: the Q-Former starts generative learning from scratch"
./run.sh "${options[@]}" --tag mini_no_representation --skip_representation true

log "Without instruction tuning: the generative system"
./run.sh "${options[@]}" --generator generative --stage decode

for connector in linear mlp; do
    log "Stacked frames in place of the Q-Former: ${connector}"
    ./run.sh "${options[@]}" --tag "mini_${connector}" --skip_representation true \
        --train_args "--connector ${connector} --connector_conf stack=8 --connector_conf hidden=512"
done

log "With a random frozen audio encoder"
random=downloads/mini_random
./run.sh "${options[@]}" --tag mini_random_encoder --encoder_tag mini_random \
    --audio_encoder_path "${random}/audio_encoder.pt" --datadir data_random \
    --local_data_opts "random_encoder --output ${random}/audio_encoder.pt --data_dir data_random"

. ./path.sh
python3 local/ablation_table.py --output "${expdir}/ablation.md" \
    "whole system=$(runs_of mini instruction)" \
    "no representation=$(runs_of mini_no_representation instruction)" \
    "no instruction tuning=$(runs_of mini generative)" \
    "linear connector=$(runs_of mini_linear instruction)" \
    "mlp connector=$(runs_of mini_mlp instruction)" \
    "random frozen encoder=$(runs_of mini_random_encoder instruction)"
