#!/usr/bin/env bash
# Usage: ./run_full.sh [--name value ...]
#
# All corpora of db.sh through the three training stages; ESC-50, UrbanSound8K and VGGSound
# are only tested on (zero-shot; clips of theirs are taken out of the training sets).

set -euo pipefail
SLIT_CALLER_DIR=${SLIT_CALLER_DIR:-${PWD}}
export SLIT_CALLER_DIR
# shellcheck disable=SC2034  # read by parse_options.sh; before cd, which $0 is relative to
option_file=$(readlink -f "$0")
cd "$(dirname "$0")"

exec ./slit.sh --config flan_t5_xl --tag full --ngpu 8 --nj 32 \
    --local_data_opts "corpora --nj 32
        --corpora audiocaps,clotho,wavcaps,macs,clotho_aqa,audioset,fsd50k,nsynth
        --zero_shot esc50,urbansound8k,vggsound --max_duration 30 --long crop" \
    --train_set train_caption --valid_set valid_caption \
    --instruction_train_set train_instruction --instruction_valid_set valid_instruction \
    --audio_encoder beats --audio_encoder_path downloads/BEATs_iter3_plus_AS2M.pt \
    --language_model google/flan-t5-xl --qformer_tokenizer bert-base-uncased \
    --qformer_init bert-base-uncased \
    "$@"
