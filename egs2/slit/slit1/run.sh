#!/usr/bin/env bash
# Usage: ./run.sh [--stage 1] [--stop-stage 6] [--name value ...]
#
# The mini recipe: makes its own corpus, audio encoder and language model, then trains,
# decodes and scores, in minutes on two cores. With --manifest, the same on your own data.
#
#   ./run.sh --stage 1 --stop-stage 6
#   ./run.sh --manifest my.csv
#   ./run.sh --manifest my.csv --config flan_t5_base --audio_encoder_path BEATs_iter3_plus_AS2M.pt
#       --language_model google/flan-t5-base --qformer_tokenizer bert-base-uncased --ngpu 1

set -euo pipefail
SLIT_CALLER_DIR=${SLIT_CALLER_DIR:-${PWD}}
export SLIT_CALLER_DIR
# shellcheck disable=SC2034  # read by parse_options.sh; before cd, which $0 is relative to
option_file=$(readlink -f "$0")
cd "$(dirname "$0")"

# Options
manifest=           # CSV or JSONL of your own data instead of the mini corpus
tag=                # name of the experiments (default: mini, or the manifest's name)
nj=2                # processes that make and check audio
ngpu=0              # GPUs; the mini models need none
threads=            # CPU threads of a training (default: 2 where there are 2 cores)
config=mini         # conf/train_<training stage>_<config>.yaml
audio_encoder_path= # default: the mini encoder, made when it is missing
language_model=     # default: the mini language model, made when it is missing
qformer_tokenizer=  # default: the mini tokenizer
# End of options

. utils/parse_options.sh
. utils/stages.sh
# shellcheck disable=SC2034  # read by parse_options.sh: --help shows its options as well
next_script=slit.sh
parse_known_options "$@"

if [ -z "${threads}" ]; then threads=$(($(nproc) > 1 ? 2 : 1)); fi
options=(--nj "${nj}" --encode_nj 1 --inference_nj "${nj}" --train_threads "${threads}"
    --ngpu "${ngpu}" --config "${config}"
    --train_set train_caption --valid_set valid_caption
    --instruction_train_set train_instruction --instruction_valid_set valid_instruction
    --audio_encoder_path "${audio_encoder_path:-downloads/mini/audio_encoder.pt}"
    --language_model "${language_model:-downloads/mini/language_model}"
    --qformer_tokenizer "${qformer_tokenizer:-downloads/mini/qformer_tokenizer}")
if [ -z "${audio_encoder_path}" ]; then options+=(--encoder_tag mini_beats); fi
if [ -n "${manifest}" ]; then
    manifest=$(given "${manifest}")
    name=$(basename "${manifest%.*}")
    options+=(--manifest "${manifest}" --tag "${tag:-${name}}" --datadir "data/${name}"
        --dumpdir "dump/${name}")
    if [ -z "${audio_encoder_path}" ] || [ -z "${language_model}" ]; then
        # The mini parts are made from the mini corpus; what is there is not made again.
        options+=(--before_data "mini --data_dir data --nj ${nj}")
    fi
else
    options+=(--tag "${tag:-mini}" --local_data_opts "mini --nj ${nj}")
fi
exec ./slit.sh "${options[@]}" "${rest[@]}"
