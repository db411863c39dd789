# shellcheck shell=bash
# Sourced by slit.sh: messages, done-markers, locks, progress of long work.

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

# is_done MARKER WORDS: whether this was done, to the end, with the same settings.
is_done() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

mark_done() { printf '%s\n' "$2" >"$1.tmp" && mv "$1.tmp" "$1"; }

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

# follow LOG COMMAND ...: run it, showing milestones of the log.
follow() { python3 "$(dirname "${BASH_SOURCE[0]}")/follow_log.py" "$@"; }

# for_ssh WORD ...: the words, each ended by a zero byte, as ESPnet's launcher needs them
# beside --host: it joins them, and the other machine's shell reads them twice, as a
# here-document and as a command.
for_ssh() {
    local word
    for word in "$@"; do
        word=$(printf '%q' "${word}")
        word=${word//\\/\\\\}
        word=${word//\$/\\\$}
        printf '%s\0' "${word//\`/\\\`}"
    done
}
