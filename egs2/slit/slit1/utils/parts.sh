# shellcheck shell=bash disable=SC2154
# Sourced by run.sh and run_pretrained.sh: the frozen parts that their systems stand on.

hub_names=(openai/whisper-tiny.en HuggingFaceTB/SmolLM2-135M-Instruct
    sentence-transformers/all-MiniLM-L6-v2)

# part NAME: its hub name, or its folder in --parts, in whatever case that is written.
part() {
    local folder
    if [ "${parts}" = hub ]; then echo "$1" && return; fi
    folder=$(find -L "$(given "${parts}")" -maxdepth 2 -type d -iname "${1##*/}" | sort | head -n 1)
    [ -n "${folder}" ] || die "--parts ${parts}: expected a folder ${1##*/} in it, found:" \
        "$(find -L "$(given "${parts}")" -mindepth 1 -maxdepth 1 -type d -exec basename {} \; | sort | xargs)"
    realpath "${folder}"
}

# pretrained_parts WINDOW_S: fills part_options, options of slit.sh, where the caller's own
# ${audio_encoder_path}, ${language_model} and ${qformer_tokenizer} come first; says what
# will be read, and stops where it cannot be had.
pretrained_parts() {
    local chosen=() one encoder writer reader
    if [ "${parts}" != hub ] && [ ! -d "$(given "${parts}")" ]; then
        die "--parts is hub, mini or a folder with $(printf '%s ' "${hub_names[@]##*/}"); no" \
            "folder ${parts} is there"
    fi
    part_options=(--config "${config:-pretrained}")
    if [ -n "${audio_encoder_path}" ]; then
        part_options+=(--audio_encoder_path "${audio_encoder_path}")
    else
        encoder=$(part "${hub_names[0]}")
        chosen+=("audio_encoder=${encoder}")
        part_options+=(--audio_encoder hugging_face --audio_encoder_path "${encoder}"
            --audio_encoder_conf "window_s=$1 layer=concatenated pool=2")
    fi
    writer=$(given "${language_model:-$(part "${hub_names[1]}")}")
    reader=$(given "${qformer_tokenizer:-$(part "${hub_names[2]}")}")
    part_options+=(--language_model "${writer}" --qformer_tokenizer "${reader}")
    if [ "${config:-pretrained}" = pretrained ]; then # whose sizes are this part's
        part_options+=(--qformer_init "${reader}")
    fi
    if [ -z "${language_model}" ]; then chosen+=("language_model=${writer}"); fi
    if [ -z "${qformer_tokenizer}" ]; then chosen+=("qformer=${reader}"); fi
    for one in "${chosen[@]}"; do about_part "${one%%=*}" "${one#*=}"; done
}

# about_part PART NAME: its size, licence and checksum, before anything is downloaded or
# trained; stops with the ways out where it is neither a folder, nor in Hugging Face's
# cache, nor to be had from the hub.
about_part() {
    local facts
    facts=$(python3 -m espnet2_slit.bin.slit_fetch --about "$2") || die "$1 $2 cannot be had." \
        "Ways out:
  * on a machine with a network: the same command (what is downloaded stays in HF_HOME)
  * \`hf download NAME --local-dir DIR/NAME\` there, copy DIR, then --parts DIR
  * a mirror: HF_ENDPOINT=https://...
  * --parts mini: parts made here in minutes, without a network. They know the sounds
    and sentences of the mini corpus and no others: to try the recipe, not to caption"
    echo "${1//_/ }: ${facts}"
}

# make_mini_parts: from the mini corpus, which is made where it is missing.
make_mini_parts() {
    log "Warning: the mini parts know the sounds and the sentences of the mini corpus alone." \
        "On other data the recipe runs through, and its captions are sentences of that" \
        "corpus. Leave out --parts mini for captions of yours"
    if [ ! -f downloads/mini/audio_encoder.pt ] || [ ! -d downloads/mini/language_model ]; then
        local/data.sh mini --nj "${nj}"
    fi
}
