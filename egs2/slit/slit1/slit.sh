#!/usr/bin/env bash
# Usage: ./slit.sh [--name value ...]      (in a recipe directory; run.sh calls it)
#
#   stage 1  data: makes data/<set>, checks the audio (dump/raw/<set>), encodes each clip
#            once with the frozen audio encoder (dump/<encoder tag>/<set>)
#   stage 2  representation learning   exp/<tag>_representation
#   stage 3  generative learning       exp/<tag>_generative
#   stage 4  instruction tuning        exp/<tag>_instruction
#   stage 5  decode the test sets      exp/<tag>_instruction/decode_<config>/<set>
#   stage 6  score                     ... decode_<config>/RESULTS.md, scores.json, report/
#   stage 7  pack for ESPnet's model zoo       stage 8  upload to Hugging Face
#   Every stage can be run again: it goes on where it stopped and repeats nothing that is
#   done with the same settings.

set -euo pipefail

# Options
#   Which stages
stage=1                 # first stage
stop_stage=8            # last stage
skip_data_prep=false    # skip stage 1
skip_train=false        # skip stages 2 to 4
skip_eval=false         # skip stages 5 and 6
skip_packing=false      # skip stage 7
skip_upload=true        # skip stage 8
#   Machine
ngpu=1                  # GPUs per node for training (0: CPU)
num_nodes=1             # machines for training
host=                   # train on these through ssh, e.g. "host1:0:1,host2" (not num_nodes)
nj=4                    # processes that check audio; encoding jobs without a GPU
encode_nj=              # encoding jobs (default: ngpu, or nj without a GPU)
inference_nj=1          # decoding jobs
train_threads=          # CPU threads of a training or a lone encoding job (else OMP_NUM_THREADS)
gpu_inference=true      # decode on a GPU if ngpu is not 0
python=python3          # Python of the jobs, usually the one that path.sh finds
#   Data
train_set=train         # training directory of stages 2 and 3
valid_set=valid         # validation directory of stages 2 and 3
instruction_train_set=  # training directory of stage 4 (default: train_set)
instruction_valid_set=  # validation directory of stage 4 (default: valid_set)
test_sets=              # "set1 set2" (default: all whose set.json says test)
datadir=data            # where the data directories are made
dumpdir=dump            # where checked audio and encoded clips go
local_data_opts=        # corpus and options for local/data.sh
before_data=            # options of another run of local/data.sh before, that makes models
local_data_dir=         # use the data directories there, of any ESPnet recipe, as they are
manifest=               # CSV or JSONL with audio,text[,instruction,task,split,start,end]
data_config=            # options for slit_data prepare, e.g. "--max-duration-s 30"
bad_audio=drop          # clips that the encoder cannot read: drop (counted, named) or stop
cache_features=true     # false: the encoder runs inside training and decoding
leakage=report          # clips both trained and scored on: report, stop or ignore
#   Model
config=flan_t5_base     # configs are conf/[full/]train_<training stage>_<config>.yaml
representation_config=  # another config for stage 2
generative_config=      # another config for stage 3
instruction_config=     # another config for stage 4
audio_encoder=beats     # beats, hugging_face, espnet or python
audio_encoder_path=     # its weights
audio_encoder_conf=     # more of its settings, "name=value name=value"
encoder_tag=            # name of dump/<encoder tag> (default: from audio_encoder_path)
language_model=         # folder or Hugging Face name
qformer_tokenizer=      # folder or Hugging Face name
qformer_init=           # BERT, LAVIS or transformers weights that stage 2 starts from
pretrained_model=       # checkpoint(s) for the first training stage, as --init_param
ignore_init_mismatch=false # true: leave out weights of other shapes in --init_param
train_args=             # more arguments of all trainings, e.g. "--max_epoch 1"
skip_representation=false # true: no stage 2, stage 3 starts from scratch (ablation)
generator=instruction   # what generates in stage 5: instruction or generative
model_file=valid.loss.best.pth # which checkpoint goes on to the next stage
expdir=exp              # where experiments go
tag=                    # name of the experiments (default: config)
#   Decoding, scoring, packing
inference_config=       # default: conf/decode_<config>.yaml, else conf/decode.yaml
inference_args=         # more arguments of slit_inference
inference_tag=          # decode_<inference tag> (default: name of the config)
score_args=             # more arguments of slit_score
hf_repo=                # for stage 8, e.g. "me/my-model"
# End of options

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
. "${here}/utils/parse_options.sh"
. "${here}/utils/stages.sh"
parse_options "$@"

for number in "${stage}" "${stop_stage}" "${ngpu}" "${nj}" "${num_nodes}" "${inference_nj}" \
    "${train_threads:-1}"; do
    [[ ${number} =~ ^[0-9]+$ ]] || usage_error "expected a number, found '${number}'"
done
if [ "${stage}" -lt 1 ] || [ "${stop_stage}" -lt "${stage}" ] || [ "${stop_stage}" -gt 8 ]; then
    usage_error "stages are 1 to 8, the first before the last; found --stage ${stage}" \
        "--stop_stage ${stop_stage}"
fi
[[ ${generator} =~ ^(instruction|generative)$ ]] || usage_error \
    "--generator is instruction or generative, found '${generator}'"
[[ ${leakage} =~ ^(report|stop|ignore)$ ]] || usage_error \
    "--leakage is report, stop or ignore, found '${leakage}'"
if [ -n "${host}" ] && [[ ${PWD} =~ [^[:alnum:]/._+=,@%:-] ]]; then
    die "--host: ESPnet's launcher needs a folder whose path has no blanks or signs of the" \
        "shell, found '${PWD}'. Move or link the recipe directory"
fi
if [ ! -f path.sh ] || [ ! -f cmd.sh ]; then
    die "no path.sh and cmd.sh in ${PWD}: run slit.sh in a recipe directory" \
        "(${here}/setup.sh DIR makes one)"
fi

log "$0 $(printf '%q ' "$@")"
. ./path.sh
. ./cmd.sh

# ------------------------------------------------------------------ names derived from them
manifest=$(given "${manifest}")
local_data_dir=$(given "${local_data_dir}")
audio_encoder_path=$(given "${audio_encoder_path}")
language_model=$(given "${language_model}")
qformer_tokenizer=$(given "${qformer_tokenizer}")
if [ -n "${local_data_dir}" ]; then datadir=${local_data_dir}; fi
tag=${tag:-${config}}
instruction_train_set=${instruction_train_set:-${train_set}}
instruction_valid_set=${instruction_valid_set:-${valid_set}}
if [ -z "${encoder_tag}" ]; then
    encoder_tag=$(basename "${audio_encoder_path:-${audio_encoder}}")
    encoder_tag=${audio_encoder}_${encoder_tag%.*}
fi
encoder=(--audio_encoder "${audio_encoder}")
if [ -n "${audio_encoder_path}" ]; then
    encoder+=(--audio_encoder_conf "path=${audio_encoder_path}")
fi
for word in ${audio_encoder_conf}; do encoder+=(--audio_encoder_conf "${word}"); done
if "${cache_features}"; then feats=${dumpdir}/${encoder_tag}; else feats=${dumpdir}/raw; fi
final=${expdir}/${tag}_${generator}
for file in "conf/decode_${config}.yaml" conf/decode.yaml; do
    if [ -z "${inference_config}" ] && [ -f "${file}" ]; then inference_config=${file}; fi
done
[ -z "${inference_config}" ] || [ -f "${inference_config}" ] || die "no ${inference_config}." \
    "There are: $(find -L conf -name 'decode*.yaml' | sort | xargs); --inference_config chooses"
inference_tag=${inference_tag:-$(basename "${inference_config:-default}" .yaml)}
decode_dir=${final}/decode_${inference_tag#decode_}

# ------------------------------------------------------------------------------- test sets
sets() { # all sets, each once, training first
    # shellcheck disable=SC2086  # a list of names
    printf '%s\n' "${train_set}" "${valid_set}" "${instruction_train_set}" \
        "${instruction_valid_set}" ${test_sets} | awk 'NF && !seen[$0]++'
}
find_test_sets() {
    if [ -z "${test_sets}" ] && [ -d "${datadir}" ]; then
        test_sets=$("${python}" -m espnet2_slit.bin.slit_data list --split test "${datadir}" |
            tr '\n' ' ')
    fi
}

# --------------------------------------------------------------------------- stage 1: data
make_data() {
    local words script=local/data.sh
    if [ -n "${before_data}" ] && ! is_done "${datadir}/.before" "${before_data}"; then
        mkdir -p "${datadir}"
        # shellcheck disable=SC2086  # a list of options
        bash "${script}" ${before_data}
        mark_done "${datadir}/.before" "${before_data}"
    fi
    if [ -n "${local_data_dir}" ]; then
        log "Using the data directories in ${local_data_dir}"
        return
    fi
    words="${local_data_opts} ${manifest} $(state ${manifest:+"${manifest}"} ${script})"
    if is_done "${datadir}/.done" "${words}"; then
        log "Skipped: ${datadir} is made"
    elif [ -n "${manifest}" ]; then
        hold "${datadir}"
        "${python}" -m espnet2_slit.bin.slit_data from_manifest "${manifest}" "${datadir}"
    else
        [ -f "${script}" ] || die "no ${script}: write one that makes ${datadir}/<set>, or" \
            "give --manifest or --local_data_dir"
        hold "${datadir}"
        # shellcheck disable=SC2086  # a list of options
        bash "${script}" ${local_data_opts}
    fi
    mark_done "${datadir}/.done" "${words}"
}

encode_words() { # SET: what its features depend on
    local raw=${dumpdir}/raw/$1
    echo "${encoder[*]} $(state ${audio_encoder_path:+"${audio_encoder_path}"} \
        "${raw}/wav.scp" "${raw}/text" "${raw}/utt2audio" "${raw}/instruction")"
}

encode() { # SET ...: what is not encoded yet; clips that an earlier set has are pointed at
    local set jobs gpu=0 logs job open=() finished=() raw=() out=()
    for set in "$@"; do
        if is_done "${feats}/${set}/.done" "$(encode_words "${set}")" &&
            [ -f "${feats}/${set}/feats.json" ]; then
            log "Skipped: ${feats}/${set} is encoded"
            finished+=("${feats}/${set}")
        else
            open+=("${set}")
        fi
    done
    [ ${#open[@]} -gt 0 ] || return 0
    hold "${feats}"
    if [ "${ngpu}" -gt 0 ]; then gpu=1; fi
    jobs=${encode_nj:-$([ "${ngpu}" -gt 0 ] && echo "${ngpu}" || echo "${nj}")}
    logs=${feats}/logdir
    job=("${python}" -m espnet2_slit.bin.slit_encode "${encoder[@]}" --num_jobs "${jobs}"
        --bad_audio "${bad_audio}")
    log "Encoding with the frozen audio encoder: ${open[*]} (${logs})"
    if [ "${jobs}" -eq 1 ]; then
        raw=("${open[@]/#/${dumpdir}/raw/}") out=("${open[@]/#/${feats}/}")
        OMP_NUM_THREADS=${train_threads:-${OMP_NUM_THREADS}} \
            encode_array "${logs}/encode.JOB.log" --data_dir "${raw[@]}" --output_dir "${out[@]}"
    else
        for set in "${open[@]}"; do
            raw=(--data_dir "${dumpdir}/raw/${set}" --output_dir "${feats}/${set}")
            encode_array "${logs}/${set}.JOB.log" "${raw[@]}"
            # shellcheck disable=SC2086  # the command may have options
            follow "${logs}/${set}.merge.log" ${train_cmd} "${logs}/${set}.merge.log" "${job[@]}" \
                "${raw[@]}" ${finished[0]:+--reuse "${finished[@]}"} --merge true
            finished+=("${feats}/${set}")
        done
    fi
    for set in "${open[@]}"; do
        mark_done "${feats}/${set}/.done" "$(encode_words "${set}")"
    done
}

encode_array() { # LOG OPTIONS
    local log_file=$1
    shift
    # shellcheck disable=SC2086  # the command may have options
    follow "${log_file/JOB/*}" ${cuda_cmd} --gpu "${gpu}" "JOB=1:${jobs}" "${log_file}" \
        "${job[@]}" "$@" ${finished[0]:+--reuse "${finished[@]}"} --ngpu "${gpu}" --job JOB
}

stage_1() {
    local set
    make_data
    find_test_sets
    for set in $(sets); do
        [ -f "${datadir}/${set}/wav.scp" ] || die "no ${datadir}/${set}/wav.scp. There are:" \
            "$(find -L "${datadir}" -mindepth 2 -maxdepth 2 -name wav.scp | sort | xargs);" \
            "--train_set, --valid_set and --test_sets choose among them"
        if [ -f "${datadir}/${set}/text_spk1" ] && [ ! -f "${datadir}/${set}/text" ]; then
            die "${datadir}/${set} has text_spk1, ... and no text, as other ESPnet recipes keep" \
                "captions: --local_data_opts 'espnet --from ${datadir} --train SET --valid SET" \
                "--test ${set}' completes it (local/espnet_data.sh --help)"
        fi
    done
    for set in $(sets); do
        # shellcheck disable=SC2086
        "${python}" -m espnet2_slit.bin.slit_data prepare "${datadir}/${set}" \
            "${dumpdir}/raw/${set}" --nj "${nj}" ${data_config}
    done
    if [ "${leakage}" != ignore ] && [ -n "${test_sets// /}" ]; then
        check_leakage
    fi
    if ! "${cache_features}"; then
        log "No feature cache: the encoder will run inside training"
        return
    fi
    # shellcheck disable=SC2046  # a list of names
    encode $(sets)
}

check_leakage() {
    local train=("${dumpdir}/raw/${train_set}") test=() set
    if [ "${instruction_train_set}" != "${train_set}" ]; then
        train+=("${dumpdir}/raw/${instruction_train_set}")
    fi
    for set in ${test_sets}; do test+=("${dumpdir}/raw/${set}"); done
    if ! "${python}" -m espnet2_slit.bin.slit_data leakage --train "${train[@]}" \
        --test "${test[@]}" --report "${dumpdir}/leakage.json"; then
        [ "${leakage}" = report ] || die "training and test sets overlap, see above." \
            "'slit_data leakage --drop DIR' writes the training sets without these clips"
        log "Warning: training and test sets overlap (above, and in ${dumpdir}/leakage.json)"
    fi
}

# ---------------------------------------------------------------------- stages 2-4: train
# train NAME TRAIN_SET VALID_SET CONFIG [INIT]
train() {
    local name=$1 exp=${expdir}/${tag}_$1 conf=$4 init=${5:-}
    local part set dir words start file lengths=feats_shape options=() launch=() job=()
    for file in "conf/train_${name}_${config}.yaml" "conf/full/train_${name}_${config}.yaml"; do
        if [ -z "${conf}" ] && [ -f "${file}" ]; then conf=${file}; fi
    done
    if [ -z "${conf}" ] && [ -f "conf/full/train_generative_${config}.yaml" ]; then
        conf=conf/full/train_${name}_base.yaml # stage 1 is the same for all language models
    fi
    [ -f "${conf}" ] || die "no config '${conf:-${config}}' for ${name}. There are: $(find -L conf -name \
        "train_${name}_*.yaml" | sort | xargs); --config or --${name}_config chooses"
    # ESPnet's category samplers read plain numbers, not "frames,width".
    if grep -q '^iterator_type: *category' "${conf}"; then lengths=utt2num_samples; fi
    options=(--config "${conf}" --output_dir "${exp}" --resume true)
    options+=(--ignore_init_mismatch "${ignore_init_mismatch}")
    if [ -n "${qformer_tokenizer}" ]; then
        options+=(--qformer_tokenizer "${qformer_tokenizer}")
    fi
    if [ "${name}" != representation ]; then
        [ -n "${language_model}" ] || usage_error "stage 3 and 4 need --language_model, a" \
            "folder or a Hugging Face name"
        options+=(--language_model "${language_model}")
    elif [ -n "${qformer_init}" ]; then
        options+=(--qformer_init "${qformer_init}")
    fi
    options+=("${encoder[@]}")
    if "${cache_features}"; then
        options+=(--features "${feats}/$2/feats.json")
    fi
    for part in train valid; do
        if [ "${part}" = train ]; then set=$2; else set=$3; fi
        dir=${feats}/${set}
        [ -f "${dir}/text" ] || die "no ${dir}/text: run stage 1 for ${set} first"
        if "${cache_features}"; then
            options+=("--${part}_data_path_and_name_and_type" "${dir}/feats.scp,feats,kaldi_ark")
            options+=("--${part}_shape_file" "${dir}/${lengths}")
        else
            options+=("--${part}_data_path_and_name_and_type" "${dir}/wav.scp,speech,sound")
            options+=("--${part}_shape_file" "${dir}/utt2num_samples")
        fi
        options+=("--${part}_data_path_and_name_and_type" "${dir}/text,text,text")
        if [ "${name}" = instruction ] && [ -f "${dir}/instruction" ]; then
            options+=("--${part}_data_path_and_name_and_type"
                "${dir}/instruction,instruction,text")
        fi
        if [ -f "${dir}/utt2audio" ]; then
            options+=("--${part}_data_path_and_name_and_type" "${dir}/utt2audio,clip,text")
        fi
    done
    if [ -n "${init}" ]; then options+=(--init_param "${init}"); fi
    # shellcheck disable=SC2206  # a list of options
    options+=(${train_args})

    start="init $(state ${init:+"${init%%:*}"})"
    words="${start} ${options[*]} $(state "${conf}" "${feats}/$2/text" "${feats}/$2/feats.json" \
        "${feats}/$3/text" "${feats}/$3/feats.json" "${feats}/$2/instruction")"
    if is_done "${exp}/.done" "${words}" && [ -e "${exp}/${model_file}" ]; then
        log "Skipped: ${exp} is trained"
        return
    fi
    hold "${exp}"
    if [ -f "${exp}/.start" ] && { [ -f "${exp}/checkpoint.pth" ] || [ -f "${exp}/step.pth" ]; } &&
        ! is_done "${exp}/.start" "${start}"; then
        die "${exp} was begun from another checkpoint than ${init:-none at all}, and would" \
            "go on from its own. Remove it, or give another --tag"
    fi
    mark_done "${exp}/.start" "${start}"
    printf '#!/usr/bin/env bash\ncd %q || exit\n%s\n' "${PWD}" "${run_args} \"\$@\"" >"${exp}/run.sh"
    chmod +x "${exp}/run.sh"
    job=("${python}" -m espnet2_slit.bin.slit_train "${options[@]}")
    if [ -n "${host}" ]; then
        launch=(--host "${host}" --envfile path.sh)
        mapfile -d '' -t job < <(for_ssh "${job[@]}")
    else
        launch=(--num_nodes "${num_nodes}")
    fi
    log "Training ${name}: ${exp}/train.log"
    OMP_NUM_THREADS=${train_threads:-${OMP_NUM_THREADS}} follow "${exp}/train.log" \
        "${python}" -m espnet2.bin.launch \
        --cmd "${cuda_cmd} --name $(printf %q "${exp}/train.log")" --log "${exp}/train.log" \
        --ngpu "${ngpu}" "${launch[@]}" --init_file_prefix "${exp}/.dist_init_" \
        --multiprocessing_distributed true -- "${job[@]}"
    mark_done "${exp}/.done" "${words}"
}

stage_2() {
    if "${skip_representation}"; then log "Skipped: --skip_representation true"; return; fi
    train representation "${train_set}" "${valid_set}" "${representation_config}" \
        "${pretrained_model}"
}

stage_3() {
    local init=${expdir}/${tag}_representation/${model_file}
    if "${skip_representation}"; then init=${pretrained_model}; fi
    [ -z "${init}" ] || [ -e "${init%%:*}" ] ||
        die "no ${init%%:*}: run stage 2 first, or give --skip_representation true"
    train generative "${train_set}" "${valid_set}" "${generative_config}" "${init}"
}

stage_4() {
    local init=${expdir}/${tag}_generative/${model_file}
    if [ "${generator}" = instruction ]; then
        [ -e "${init}" ] || die "no ${init}: run stage 3 first"
        train instruction "${instruction_train_set}" "${instruction_valid_set}" \
            "${instruction_config}" "${init}"
    fi
    link_parts
}

link_parts() { # the two trained parts that make a system, named in slit.json
    local parts=(--generator "${final}") dir=${expdir}/${tag}_representation
    if ! "${skip_representation}" && [ -e "${dir}/${model_file}" ]; then
        parts+=(--representation "${dir}")
    fi
    "${python}" -m espnet2_slit.bin.slit_pack --link "${final}" "${parts[@]}" \
        --model_file "${model_file}"
}

# -------------------------------------------------------------- stages 5-8: use the system
decode_words() { # SET: what its decoding depends on
    echo "${inference_args} ${model_file} $(state "${inference_config}" "${final}/slit.json" \
        "${final}/${model_file}" "${expdir}/${tag}_representation/${model_file}" \
        "${feats}/$1/text" "${feats}/$1/wav.scp" "${feats}/$1/instruction" \
        "${feats}/$1/feats.json")"
}

stage_5() {
    local set gpu=0 logs=${decode_dir}/logdir open=() job=()
    find_test_sets
    [ -n "${test_sets// /}" ] || die "no test set: --test_sets, or set.json with split test"
    [ -f "${final}/slit.json" ] || die "no ${final}/slit.json: run stage 4 first"
    if "${gpu_inference}" && [ "${ngpu}" -gt 0 ]; then gpu=1; fi
    for set in ${test_sets}; do
        [ -f "${feats}/${set}/wav.scp" ] || die "no ${feats}/${set}: run stage 1 for ${set} first"
        if is_done "${decode_dir}/${set}/.done" "$(decode_words "${set}")" &&
            [ -f "${decode_dir}/${set}/decode.json" ]; then
            log "Skipped: ${decode_dir}/${set} is decoded"
        else
            open+=("${set}")
        fi
    done
    [ ${#open[@]} -gt 0 ] || return 0
    hold "${decode_dir}"
    log "Decoding ${open[*]} (${logs}/decode.*.log)"
    # shellcheck disable=SC2206  # a list of options
    job=("${python}" -m espnet2_slit.bin.slit_inference ${inference_config:+--config "${inference_config}"}
        --model "${final}" --num_jobs "${inference_nj}" --data_dir "${open[@]/#/${feats}/}"
        --output_dir "${open[@]/#/${decode_dir}/}" ${inference_args})
    # shellcheck disable=SC2086  # the command may have options
    follow "${logs}/decode.*.log" ${decode_cmd} --gpu "${gpu}" "JOB=1:${inference_nj}" \
        "${logs}/decode.JOB.log" "${job[@]}" --ngpu "${gpu}" --job JOB
    if [ "${inference_nj}" -gt 1 ]; then
        # shellcheck disable=SC2086
        follow "${logs}/merge.log" ${decode_cmd} "${logs}/merge.log" "${job[@]}" --merge true
    fi
    for set in "${open[@]}"; do
        mark_done "${decode_dir}/${set}/.done" "$(decode_words "${set}")"
    done
}

stage_6() {
    local set words
    find_test_sets
    words="${score_args} ${test_sets}"
    for set in ${test_sets}; do
        [ -f "${decode_dir}/${set}/decode.json" ] ||
            die "no ${decode_dir}/${set}/decode.json: run stage 5 first"
        words+=" $(state "${decode_dir}/${set}/.done" "${dumpdir}/raw/${set}/references" \
            "${dumpdir}/raw/${set}/text")"
    done
    if is_done "${decode_dir}/.scored" "${words}" && [ -f "${decode_dir}/RESULTS.md" ]; then
        log "Skipped: ${decode_dir}/RESULTS.md is there"
        return
    fi
    # shellcheck disable=SC2086
    "${python}" -m espnet2_slit.bin.slit_score --decode_dir "${decode_dir}" \
        --data_dir "${dumpdir}/raw" --test_sets "${test_sets}" ${score_args}
    mark_done "${decode_dir}/.scored" "${words}"
    log "Scores: ${decode_dir}/RESULTS.md"
}

stage_7() {
    "${python}" -m espnet2_slit.bin.slit_pack --exp "${final}" --outpath "${final}/slit_${tag}.zip"
    log "Packed: ${final}/slit_${tag}.zip"
}

stage_8() {
    [ -n "${hf_repo}" ] || usage_error "stage 8 needs --hf_repo, e.g. me/my-model"
    "${python}" -m espnet2_slit.bin.slit_pack --exp "${final}" --upload "${hf_repo}"
}

run_args=$(printf '%q ' "./$(basename "$0")" "$@")
names=("" "data" "representation learning" "generative learning" "instruction tuning"
    "decoding" "scoring" "packing" "upload")
skips=("" "${skip_data_prep}" "${skip_train}" "${skip_train}" "${skip_train}" "${skip_eval}"
    "${skip_eval}" "${skip_packing}" "${skip_upload}")
for number in 1 2 3 4 5 6 7 8; do
    if [ "${number}" -lt "${stage}" ] || [ "${number}" -gt "${stop_stage}" ]; then continue; fi
    if "${skips[number]}"; then
        log "Stage ${number}: ${names[number]}: skipped by option"
    else
        log "Stage ${number}: ${names[number]}"
        "stage_${number}"
    fi
done
log "Successfully finished. [elapsed=${SECONDS}s]"
