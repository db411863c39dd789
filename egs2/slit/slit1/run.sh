#!/usr/bin/env bash
# Usage: ./run.sh [--stage data] [--stop_stage score] [--name value ...]
#
# The mini recipe: makes its own corpus, audio encoder and language model, then trains,
# decodes and scores, in minutes on two cores. With --manifest, the same on your own data
# between released frozen parts: Whisper, SmolLM2 and MiniLM, from Hugging Face or a folder.
#
#   ./run.sh --stop_stage score
#   ./run.sh --lang de --stop_stage score
#   ./run.sh --manifest my.csv --stop_stage score
#   ./run.sh --manifest my.csv --parts /models --stop_stage score
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
lang=en             # language of the mini corpus' texts: en or de
parts=hub           # frozen parts for --manifest: hub, a folder that holds them, or mini
tag=                # name of the experiments (default: mini, or the manifest's name)
seeds=              # "1 2 3": a training for each, and a table of mean and range
train_args=         # more arguments of all trainings, e.g. "--max_epoch 1"
expdir=exp          # where experiments go
nj=2                # processes that make and check audio
ngpu=0              # GPUs; these models need none
threads=            # CPU threads of a training (default: 2 where there are 2 cores)
config=             # conf/train_<training stage>_<config>.yaml (default: mini or pretrained)
audio_encoder_path= # default: of the parts
language_model=     # default: of the parts
qformer_tokenizer=  # default: of the parts
# End of options

. utils/parse_options.sh
. utils/stages.sh
. utils/parts.sh
# shellcheck disable=SC2034  # read by parse_options.sh: --help shows its options as well
next_script=slit.sh
parse_known_options "$@"

if [ -z "${threads}" ]; then threads=$(($(nproc) > 1 ? 2 : 1)); fi
options=(--nj "${nj}" --encode_nj 1 --inference_nj "${nj}" --train_threads "${threads}"
    --ngpu "${ngpu}" --expdir "${expdir}" --train_set train_caption --valid_set valid_caption
    --instruction_train_set train_instruction --instruction_valid_set valid_instruction)
if [ -n "${manifest}" ]; then
    [ "${lang}" = en ] || usage_error "--lang is of the mini corpus. For a table: slit data" \
        "from_manifest --language ${lang}, then slit.sh --local_data_dir"
    manifest=$(given "${manifest}")
    name=$(plain "$(basename "${manifest%.*}")")
    tag=${tag:-${name}}
    options+=(--manifest "${manifest}" --datadir "data/${name}"
        --dumpdir "dump/${name}")
else
    parts=mini
    mini=mini data_opts="mini --nj ${nj} --threads ${threads}"
    if [ "${lang}" != en ]; then # the same sounds in other words
        mini=mini_${lang}
        encoded=$(find dump -path 'dump/mini_beats/*/feats.json' -printf '%h ' 2>/dev/null || true)
        options+=(--datadir "data/${mini}" --dumpdir "dump/${mini}"
            --inference_config "conf/decode_${mini}.yaml"
            --reuse_features "${encoded}")
        data_opts+=" --lang ${lang} --data_dir data/${mini}"
        for name in preprocessor_conf inference_conf; do
            train_args="--${name} language=${lang} ${train_args}"
        done
        language_model=${language_model:-downloads/mini/${lang}/language_model}
        qformer_tokenizer=${qformer_tokenizer:-downloads/mini/${lang}/qformer_tokenizer}
    fi
    tag=${tag:-${mini}}
    options+=(--local_data_opts "${data_opts}")
fi
if [ "${parts}" = mini ]; then
    if [ -n "${manifest}" ] && [ -z "${audio_encoder_path}" ]; then make_mini_parts; fi
    options+=(--config "${config:-mini}"
        --audio_encoder_path "${audio_encoder_path:-downloads/mini/audio_encoder.pt}"
        --language_model "${language_model:-downloads/mini/language_model}"
        --qformer_tokenizer "${qformer_tokenizer:-downloads/mini/qformer_tokenizer}")
    if [ -z "${audio_encoder_path}" ]; then options+=(--encoder_tag mini_beats); fi
else
    . ./path.sh
    pretrained_parts 10.0 # s, a window of Whisper; longer clips are read window by window
    options+=("${part_options[@]}")
fi
if [ -z "${seeds}" ]; then
    exec ./slit.sh "${options[@]}" --tag "${tag}" --train_args "${train_args}" "${rest[@]}"
fi
for seed in ${seeds}; do # the data, encoded once, is the same for all
    ./slit.sh "${options[@]}" --tag "${tag}_seed${seed}" \
        --train_args "${train_args} --seed ${seed}" "${rest[@]}"
done
systems=$(runs_of "${tag}" instruction)
if compgen -G "${systems##*,}/decode_*/scores.json" >/dev/null; then
    . ./path.sh
    python3 local/ablation_table.py --output "${expdir}/${tag}_seeds.md" "${tag}=${systems}"
    log "Mean and range: ${expdir}/${tag}_seeds.md"
fi
