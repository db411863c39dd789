#!/usr/bin/env bash
# Usage: ./run_audiocaps_clotho.sh [--name value ...]
#
# AudioCaps and Clotho with a pretrained BEATs and FLAN-T5. db.sh says where the corpora are.

set -euo pipefail
SLIT_CALLER_DIR=${SLIT_CALLER_DIR:-${PWD}}
export SLIT_CALLER_DIR
# shellcheck disable=SC2034  # read by parse_options.sh; before cd, which $0 is relative to
option_file=$(readlink -f "$0")
cd "$(dirname "$0")"

exec ./slit.sh --config flan_t5_base --tag audiocaps_clotho --ngpu 1 --nj 16 \
    --local_data_opts "corpora --corpora audiocaps,clotho --nj 16" \
    --train_set train_caption --valid_set valid_caption \
    --instruction_train_set train_instruction --instruction_valid_set valid_instruction \
    --audio_encoder beats --audio_encoder_path downloads/BEATs_iter3_plus_AS2M.pt \
    --language_model google/flan-t5-base --qformer_tokenizer bert-base-uncased \
    --qformer_init bert-base-uncased \
    "$@"
