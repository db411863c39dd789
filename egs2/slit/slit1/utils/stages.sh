# shellcheck shell=bash
# Sourced by slit.sh: messages, done-markers, locks, jobs, progress of long work.

log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') ($(basename "$0")) $*"; }

die() {
    echo "Error: $*" >&2
    exit 1
}

# given FILE: the path, relative to where the user called run.sh if the file is there.
given() {
    if [ -n "$1" ] && [ ! -e "$1" ] && [ -e "${SLIT_CALLER_DIR:-.}/$1" ]; then
        echo "${SLIT_CALLER_DIR}/$1"
    else
        echo "$1"
    fi
}

# first CHOSEN FILE ...: what the user chose, else the first file that is there.
first() {
    local file
    for file in "${@:2}"; do
        if [ -n "$1" ] || [ -f "${file}" ]; then echo "${1:-${file}}" && return; fi
    done
}

# plain NAME: with "_" for what a shell, or a scheduler's script, would not take as it is.
plain() { echo "${1//[^[:alnum:]\/._+=,@%:-]/_}"; }

# runs_of STEM PART: experiments exp/<stem>_<part>, with commas; one for each of ${seeds}.
runs_of() {
    local seed found=
    # shellcheck disable=SC2154  # set by the caller
    for seed in ${seeds:-none}; do
        [ "${seed}" = none ] && seed='' || seed=_seed${seed}
        found+=,${expdir}/$1${seed}_$2
    done
    echo "${found#,}"
}

# choose_system: what slit.sh decodes and scores, and where that goes: what it trains, or
# ${download_model}, whose own encoder reads the clips unless --audio_encoder_path names it.
# shellcheck disable=SC2034,SC2154  # variables of slit.sh
choose_system() {
    final=${expdir}/${tag}_${generator}
    system=(--model "${final}")
    if [ -z "${download_model}" ]; then return; fi
    download_model=$(given "${download_model}")
    final=${download_model//\//_} # of the Hub: two owners may have one of that name
    if [ -e "${download_model}" ]; then final=$(basename "${download_model%.zip}"); fi
    final=${expdir}/$(plain "${final}")
    train_set='' valid_set='' instruction_train_set='' instruction_valid_set='' leakage=ignore
    if [ -z "${audio_encoder_path}" ]; then cache_features=false; fi
    system=(--model "${download_model}" ${audio_encoder_path:+--audio_encoder "${audio_encoder_path}"}
        ${language_model:+--language_model "${language_model}"}
        ${qformer_tokenizer:+--qformer_tokenizer "${qformer_tokenizer}"})
}

# begin_stage NUMBER NAME: says so; status 1 if a downloaded system has no such stage.
begin_stage() {
    if [ -n "${download_model}" ] && [[ ! $2 =~ ^(data|decode|score)$ ]]; then
        log "Skipped: stage $1 ($2), as --download_model is given"
        return 1
    fi
    log "Stage $1: $2"
}

# state PATH ...: changes when one of them does; a folder stands for the files in it.
state() {
    local path
    for path in "$@"; do
        if [ -d "${path}" ]; then
            find -L "${path}" -type f -printf '%p %s %T@\n' | sort
        elif [ -f "${path}" ]; then
            cksum <"${path}"
        else
            echo "${path}"
        fi
    done | cksum
}

# hold FOLDER: one run at a time works there. Jobs inherit the lock, so that one that has
# outlived its script is noticed, too.
hold() {
    mkdir -p "$1"
    exec 8>"$1/.lock"
    if command -v flock >/dev/null && ! flock -n 8; then
        die "another run works in $1 (or a job of one that was killed): wait for it, or end" \
            "it$(fuser "$1/.lock" 2>/dev/null | sed 's/^ */; process ids: /')"
    fi
}

# begin FOLDER FILE WORDS: hold the folder, unless work with the same words was done there,
# to the end, and has left the file.
begin() {
    if [ -e "$1/$2" ] && [ -f "$1/.done" ] && [ "$(cat "$1/.done")" = "$3" ]; then
        log "Skipped: $1 is up to date"
        return 1
    fi
    hold "$1"
}

mark_done() { printf '%s\n' "$2" >"$1/.done.tmp" && mv "$1/.done.tmp" "$1/.done"; }

# write_job FILE WORD ...: a script that runs the words here, and what is added to them. Job
# runners, schedulers and shells on the way get `bash FILE`, which each reads alike, however
# the words are spelt. Variables travel in it: schedulers pass on few or none.
write_job() {
    local file=$1 name
    shift
    mkdir -p "$(dirname "${file}")"
    {
        printf '#!/usr/bin/env bash\ncd %q || exit\n' "${PWD}"
        # shellcheck disable=SC2154  # set by path.sh
        for name in ${job_variables}; do
            if [ -n "${!name+set}" ]; then printf 'export %s=%q\n' "${name}" "${!name}"; fi
        done
        printf '. %q\nexec' "$(readlink -f "$(dirname "${BASH_SOURCE[0]}")")/spin.sh"
        printf ' %q' "$@"
        printf ' "$@"\n'
    } >"${file}.tmp"
    chmod +x "${file}.tmp"
    mv "${file}.tmp" "${file}"
}

# follow LOG COMMAND ...: run it, showing milestones of the log.
follow() { python3 "$(dirname "${BASH_SOURCE[0]}")/follow_log.py" "$@"; }

# run_jobs RUNNER JOBS LOGS PROGRAM WORD ...: slit_PROGRAM as an array of jobs, and once
# more to join what they wrote.
run_jobs() {
    local runner=$1 jobs=$2 logs=$3
    # shellcheck disable=SC2154  # set by slit.sh
    write_job "${logs}.sh" "${python}" -m "espnet2_slit.bin.slit_$4" "${@:5}" --num_jobs "${jobs}"
    # shellcheck disable=SC2086,SC2154  # the runner may have options
    follow "${logs}.*.log" ${runner} --gpu "${gpu}" --num_threads "${OMP_NUM_THREADS}" \
        "JOB=1:${jobs}" "${logs}.JOB.log" bash "${logs}.sh" --ngpu "${gpu}" --job JOB
    # shellcheck disable=SC2086
    [ "${jobs}" -eq 1 ] || follow "${logs}.merge.log" ${runner} "${logs}.merge.log" \
        bash "${logs}.sh" --merge true
}
