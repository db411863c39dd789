# shellcheck shell=bash disable=SC2154
# Sourced by run_esc50.sh and run_pretrained.sh: a system for each fold that is held out.

# find_folds: checks ${esc50}, and fills ${folds} with all there are unless it is given.
find_folds() {
    esc50=$(given "${esc50:-${ESC50}}")
    [ -n "${esc50}" ] || usage_error "where is ESC-50? --esc50 DIR, or ESC50 in db.sh"
    [ -f "${esc50}/meta/esc50.csv" ] || die "no ${esc50}/meta/esc50.csv: expected ESC-50's own layout"
    esc50=$(realpath "${esc50}")
    folds=${folds:-$(cut -d, -f2 "${esc50}/meta/esc50.csv" | grep -E '^[0-9]+$' | sort -un | xargs)}
    decoded=()
}

# run_fold FOLD DATA_OPTIONS OPTIONS ...: one system through all stages, trained on the
# other folds; its scores are noted in ${decoded}.
run_fold() {
    local name=${tag}_fold$1 dir
    log "Fold $1 of ${folds} is held out"
    ./slit.sh --nj "${nj}" --encode_nj 1 --ngpu "${ngpu}" --tag "${name}" --expdir "${expdir}" \
        --datadir "data/${name}" --dumpdir "dump/${name}" --stop_stage score \
        --local_data_opts "esc50 --corpus ${esc50} --fold $1 --data_dir data/${name} --nj ${nj} $2" \
        --train_set train_caption --valid_set valid_caption \
        --instruction_train_set train_instruction --instruction_valid_set valid_instruction \
        --score_args "${score_args}" "${@:3}" "${rest[@]}"
    for dir in "${expdir}/${name}_instruction"/decode_*; do
        if [ -f "${dir}/scores.json" ]; then decoded+=("${dir}"); fi
    done
}

# mean_of_folds: of two and more.
mean_of_folds() {
    [ ${#decoded[@]} -gt 1 ] || return 0
    # shellcheck disable=SC2086  # a list of options
    python3 -m espnet2_slit.bin.slit_score --folds "${decoded[@]}" --output_dir "${expdir}/${tag}" \
        ${score_args}
    log "Mean of the folds: ${expdir}/${tag}/RESULTS.md"
}
