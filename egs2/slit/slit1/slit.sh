#!/usr/bin/env bash
# Usage: ./slit.sh [--name value ...]      (in a recipe directory; run.sh calls it)
#
#   1 data            makes and checks data/<set>, writes dump/raw/<set>, and encodes each clip
#                     once with the frozen audio encoder: dump/<encoder tag>/<set>
#   2 representation, 3 generative learning, 4 instruction tuning: exp/<tag>_<stage>
#   5 decode          the test sets: exp/<tag>_instruction/decode_<config>/<set>
#   6 score           RESULTS.md, scores.json and report/ beside them
#   7 pack            for ESPnet's model zoo      8 upload  to Hugging Face
#
# Stages are numbers or names. Each can be run again: it goes on, and repeats nothing that is done.

set -euo pipefail

# Options
#   Which stages
stage=data              # first stage, by number or name
stop_stage=upload       # last stage
skip_upload=true        # false: the upload stage uploads (needs hf_repo)
#   Machine
ngpu=1                  # GPUs per node (0: CPU)
num_nodes=1             # machines for training
host=                   # train on these through ssh, e.g. "host1:0:1,host2" (not num_nodes)
nj=4                    # processes that check audio; encoding jobs without a GPU
encode_nj=              # encoding jobs (default: ngpu, or nj without a GPU)
inference_nj=1          # decoding jobs
train_threads=          # CPU threads of a training or a lone encoding job (else OMP_NUM_THREADS)
#   Data
train_set=train         # training directory of representation and generative learning
valid_set=valid         # their validation directory
instruction_train_set=  # training directory of instruction tuning (default: train_set)
instruction_valid_set=  # its validation directory (default: valid_set)
test_sets=              # "set1 set2" (default: all whose set.json says test)
datadir=data            # where the data directories are made
dumpdir=dump            # where checked audio and encoded clips go
local_data_opts=        # corpus and options for local/data.sh
local_data_dir=         # use the data directories there, of any ESPnet recipe, as they are
manifest=               # CSV or JSONL with audio,text[,instruction,task,split,start,end]
fs=16000                # Hz of the audio that the encoder gets, e.g. 48000 for one that hears more
bad_audio=drop          # clips that the encoder cannot read: drop (counted, named) or stop
reuse_features=         # finished "dump/a/set dump/b/set" whose clips need no encoding again
cache_features=true     # false: the encoder runs inside training and decoding
leakage=report          # clips both trained and scored on: report, stop or ignore
#   Model
config=flan_t5_base     # configs are conf/[full/]train_<training stage>_<config>.yaml
representation_config=  # another file for representation learning
generative_config=      # likewise
instruction_config=     # likewise
audio_encoder=beats     # beats, hugging_face or espnet
audio_encoder_path=     # its weights
audio_encoder_conf=     # more of its settings, "name=value name=value"
encoder_tag=            # name of dump/<encoder tag> (default: from audio_encoder_path)
language_model=         # folder or Hugging Face name
qformer_tokenizer=      # folder or Hugging Face name
qformer_init=           # BERT, LAVIS or transformers weights that representation starts from
pretrained_model=       # checkpoint(s) for the first training stage, as --init_param
ignore_init_mismatch=false # true: leave out weights of other shapes in --init_param
train_args=             # more arguments of all trainings, e.g. "--max_epoch 1"
skip_representation=false # true: generative learning starts from scratch (ablation)
generator=instruction   # what is decoded: instruction or generative
download_model=         # decode this packed system (Hugging Face, folder, .zip) and train none
model_file=valid.loss.best.pth # which checkpoint goes on to the next stage
expdir=exp              # where experiments go
tag=                    # name of the experiments (default: config)
#   Decoding, scoring, packing
inference_config=       # default: conf/decode_<config>.yaml, else conf/decode.yaml
inference_args=         # more arguments of slit_inference
inference_tag=          # decode_<inference tag> (default: name of the config)
score_args=             # more arguments of slit_score
hf_repo=                # where upload puts it, e.g. "me/my-model"
# End of options

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
. "${here}/utils/parse_options.sh"
. "${here}/utils/stages.sh"
parse_options "$@"

stages=("" data representation generative instruction decode score pack upload)
number() { # STAGE: its number
    local n
    for n in {1..8}; do
        if [ "$1" = "${n}" ] || [ "$1" = "${stages[n]}" ]; then echo "${n}" && return; fi
    done
    usage_error "stages are 1 to 8, or ${stages[*]:1}; found '$1'"
}
stage=$(number "${stage}")
stop_stage=$(number "${stop_stage}")
[ "${stage}" -le "${stop_stage}" ] || usage_error "the last stage comes before the first:" \
    "--stage ${stages[stage]} --stop_stage ${stages[stop_stage]}"
[[ ${generator} =~ ^(instruction|generative)$ ]] || usage_error \
    "--generator is instruction or generative, found '${generator}'"
[[ ${leakage} =~ ^(report|stop|ignore)$ ]] || usage_error \
    "--leakage is report, stop or ignore, found '${leakage}'"
[ -f path.sh ] && [ -f cmd.sh ] || die "no path.sh and cmd.sh in ${PWD}: run slit.sh in a recipe" \
    "directory (${here}/setup.sh DIR makes one)"

log "$0 $(printf '%q ' "$@")"
. ./path.sh
. ./cmd.sh
python=$(command -v python3) # by its path: a job may find another one first

for name in manifest local_data_dir audio_encoder_path language_model qformer_tokenizer; do
    printf -v "${name}" '%s' "$(given "${!name}")"
done
datadir=${local_data_dir:-${datadir}} tag=${tag:-${config}}
instruction_train_set=${instruction_train_set:-${train_set}}
instruction_valid_set=${instruction_valid_set:-${valid_set}}
if [ -z "${encoder_tag}" ]; then
    encoder_tag=$(basename "${audio_encoder_path:-${audio_encoder}}")
    if [ -f "${audio_encoder_path}" ]; then encoder_tag=${encoder_tag%.*}; fi
    encoder_tag=$(plain "${audio_encoder}_${encoder_tag}")
fi
for name in tag encoder_tag expdir dumpdir inference_tag; do
    [ "${!name}" = "$(plain "${!name}")" ] || usage_error "--${name} names folders that job" \
        "runners meet: expected letters, digits and / . _ + = , @ % : -, found '${!name}'"
done
encoder=(--audio_encoder "${audio_encoder}")
for word in ${audio_encoder_path:+"path=${audio_encoder_path}"} ${audio_encoder_conf}; do
    encoder+=(--audio_encoder_conf "${word}")
done
checkpoints=("${pretrained_model}") # a path with blanks is one
[ -e "${pretrained_model%%:*}" ] || read -ra checkpoints <<<"${pretrained_model}"
base_config=conf/full/train_representation_base.yaml # the same beside all full-size language models
[ -f "conf/full/train_generative_${config}.yaml" ] || base_config=
choose_system
if "${cache_features}"; then feats=${dumpdir}/${encoder_tag}; else feats=${dumpdir}/raw; fi
# shellcheck disable=SC2034  # read by run_jobs
gpu=$((ngpu > 0))
inference_config=$(first "${inference_config}" "conf/decode_${config}.yaml" conf/decode.yaml)
[ -z "${inference_config}" ] || [ -f "${inference_config}" ] || die "no ${inference_config}." \
    "There are: $(find -L conf -name 'decode*.yaml' | sort | xargs); --inference_config chooses"
inference_tag=${inference_tag:-$(basename "${inference_config:-default}" .yaml)}
decode_dir=${final}/decode_${inference_tag#decode_}

tool() { "${python}" -m "espnet2_slit.bin.slit_$1" "${@:2}"; }
sets() { # all sets, each once, training first
    # shellcheck disable=SC2086  # a list of names
    printf '%s\n' "${train_set}" "${valid_set}" "${instruction_train_set}" \
        "${instruction_valid_set}" ${test_sets} | awk 'NF && !seen[$0]++'
}
find_test_sets() {
    if [ -n "${test_sets// /}" ] || [ ! -d "${datadir}" ]; then return; fi
    test_sets=$(tool data list --split test "${datadir}" | tr '\n' ' ')
}

# -------------------------------------------------------------------------- stage data
make_data() {
    local script=local/data.sh words
    words="${local_data_opts} ${manifest} $(state ${manifest:+"${manifest}"} ${script})"
    begin "${datadir}" "" "${words}" || return 0
    if [ -n "${manifest}" ]; then
        tool data from_manifest "${manifest}" "${datadir}"
    elif [ -f "${script}" ]; then
        # shellcheck disable=SC2086  # a list of options
        bash "${script}" ${local_data_opts}
    else
        die "no ${script}: write it to make ${datadir}/<set>, or give --manifest or --local_data_dir"
    fi
    mark_done "${datadir}" "${words}"
}

encode() { # SET ...: clips that an earlier set has are pointed at
    local jobs=${encode_nj:-$((ngpu > 0 ? ngpu : nj))} groups=("$@") group finished
    read -ra finished <<<"${reuse_features}"
    log "Encoding with the frozen audio encoder: $* (${feats}/logdir)"
    hold "${feats}"
    if [ "${jobs}" -eq 1 ]; then # one process for all, with the threads of a training
        groups=("$*")
        local -x OMP_NUM_THREADS=${train_threads:-${OMP_NUM_THREADS}}
    fi
    for group in "${groups[@]}"; do
        read -ra group <<<"${group}"
        run_jobs "${cuda_cmd}" "${jobs}" "${feats}/logdir/${group[0]}" \
            encode "${encoder[@]}" --bad_audio "${bad_audio}" ${finished[0]:+--reuse "${finished[@]}"} \
            --data_dir "${group[@]/#/${dumpdir}/raw/}" --output_dir "${group[@]/#/${feats}/}"
        finished+=("${group[@]/#/${feats}/}")
    done
}

stage_data() {
    local all
    if [ -z "${local_data_dir}" ]; then make_data; fi
    find_test_sets
    mapfile -t all < <(sets)
    # shellcheck disable=SC2086  # a list of names
    tool data prepare "${all[@]/#/${datadir}/}" --out "${dumpdir}/raw" --nj "${nj}" --sample-rate "${fs}" \
        --leakage "${leakage}" --train ${train_set} ${instruction_train_set} --test ${test_sets}
    if "${cache_features}"; then encode "${all[@]}"; fi
}

# ---------------------------------------------------------------------- training stages
# train NAME TRAIN_SET VALID_SET CONFIG [CHECKPOINT ...]
train() {
    local name=$1 exp=${expdir}/${tag}_$1 train_dir=${feats}/$2 valid_dir=${feats}/$3 init=("${@:5}")
    local conf words options launch=(--num_nodes "${num_nodes}")
    conf=$(first "$4" conf/{,full/}"train_${name}_${config}.yaml" "${base_config}")
    [ -f "${conf}" ] || die "no config '${conf:-${config}}' for ${name}. There are: $(find -L conf \
        -name "train_${name}_*.yaml" | sort | xargs); --config chooses"
    options=(--config "${conf}" --output_dir "${exp}" --resume true --model_file "${model_file}"
        --train_dir "${train_dir}" --valid_dir "${valid_dir}" "${encoder[@]}"
        --qformer_tokenizer "${qformer_tokenizer}" --ignore_init_mismatch "${ignore_init_mismatch}")
    if [ "${name}" = representation ]; then
        options+=(--qformer_init "${qformer_init}")
    else
        [ -n "${language_model}" ] || usage_error "stage ${name} needs --language_model, a" \
            "folder or a Hugging Face name"
        options+=(--language_model "${language_model}")
    fi
    # shellcheck disable=SC2206  # a list of options
    options+=(${init[0]:+--init_param "${init[@]}"} ${train_args})

    words="${options[*]} $(state "${conf}" "${init[@]%%:*}" \
        {"${train_dir}","${valid_dir}"}/{text,feats.json,instruction})"
    begin "${exp}" "${model_file}" "${words}" || return 0
    write_job "${exp}/run.sh" "./$(basename "$0")" "${arguments[@]}"
    local -x OMP_NUM_THREADS=${train_threads:-${OMP_NUM_THREADS}}
    write_job "${exp}/train.sh" "${python}" -m espnet2_slit.bin.slit_train "${options[@]}"
    if [ -n "${host}" ]; then launch=(--host "${host}" --envfile path.sh); fi
    log "Training ${name}: ${exp}/train.log"
    follow "${exp}/train.log" "${python}" -m espnet2.bin.launch \
        --cmd "${cuda_cmd} --name slit_$(basename "${exp}") --num_threads ${OMP_NUM_THREADS}" \
        --log "${exp}/train.log" --ngpu "${ngpu}" "${launch[@]}" --init_file_prefix "${exp}/.dist_init_" \
        --multiprocessing_distributed true -- bash "${exp}/train.sh"
    mark_done "${exp}" "${words}"
}

stage_representation() {
    if "${skip_representation}"; then log "Skipped: --skip_representation true" && return; fi
    train representation "${train_set}" "${valid_set}" "${representation_config}" "${checkpoints[@]}"
}

stage_generative() {
    local init=("${expdir}/${tag}_representation/${model_file}")
    "${skip_representation}" || [ -e "${init[0]}" ] || die "no ${init[0]}: run stage representation" \
        "first, or give --skip_representation true"
    if "${skip_representation}"; then init=("${checkpoints[@]}"); fi
    train generative "${train_set}" "${valid_set}" "${generative_config}" "${init[@]}"
}

stage_instruction() {
    local start=${expdir}/${tag}_generative/${model_file}
    if [ "${generator}" = generative ]; then log "Skipped: --generator generative" && return; fi
    [ -e "${start}" ] || die "no ${start}: run stage generative first"
    train instruction "${instruction_train_set}" "${instruction_valid_set}" \
        "${instruction_config}" "${start}"
}

# ------------------------------------------------------------ stages that use the system
stage_decode() {
    local set open
    read -ra open <<<"${test_sets}"
    [ ${#open[@]} -gt 0 ] || die "no test set: --test_sets, or set.json with split test"
    [ -n "${download_model}" ] || [ -f "${final}/slit.json" ] ||
        die "no ${final}/slit.json: run stage ${generator} first"
    for set in "${open[@]}"; do
        [ -f "${feats}/${set}/wav.scp" ] || die "no ${feats}/${set}: run stage data for ${set} first"
    done
    hold "${decode_dir}"
    log "Decoding ${open[*]} (${decode_dir}/logdir)"
    # shellcheck disable=SC2086  # a list of options
    run_jobs "${decode_cmd}" "${inference_nj}" "${decode_dir}/logdir/decode" inference \
        ${inference_config:+--config "${inference_config}"} "${system[@]}" ${inference_args} \
        --data_dir "${open[@]/#/${feats}/}" --output_dir "${open[@]/#/${decode_dir}/}"
}

stage_score() {
    local set words="${score_args} ${test_sets}"
    for set in ${test_sets}; do
        [ -f "${decode_dir}/${set}/decode.json" ] ||
            die "no ${decode_dir}/${set}/decode.json: run stage decode first"
        words+=" $(state "${decode_dir}"/{,control_*/}"${set}"/decode.json "${dumpdir}/raw/${set}"/{references,text})"
    done
    begin "${decode_dir}" RESULTS.md "${words}" || return 0
    # shellcheck disable=SC2086  # a list of options
    tool score --decode_dir "${decode_dir}" --data_dir "${dumpdir}/raw" \
        --test_sets "${test_sets}" ${score_args}
    mark_done "${decode_dir}" "${words}"
    log "Scores: ${decode_dir}/RESULTS.md"
}

stage_pack() {
    tool pack --exp "${final}" --outpath "${final}/slit_${tag}.zip"
    log "Packed: ${final}/slit_${tag}.zip"
}

stage_upload() {
    if "${skip_upload}"; then log "Skipped: --skip_upload false uploads" && return; fi
    [ -n "${hf_repo}" ] || usage_error "stage upload needs --hf_repo, e.g. me/my-model"
    tool pack --exp "${final}" --upload "${hf_repo}"
}

arguments=("$@")
for ((number = stage; number <= stop_stage; number++)); do
    begin_stage "${number}" "${stages[number]}" || continue
    [ "${number}" -eq 1 ] || find_test_sets # which stage data makes first
    "stage_${stages[number]}"
done
log "Successfully finished. [elapsed=${SECONDS}s]"
