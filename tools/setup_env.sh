#!/usr/bin/env bash
# Makes the Python environment of espnet2_slit, or finds the one to use.
#
# Usage: tools/setup_env.sh [--prefix DIR] [--python PROGRAM] [--install] [--help]
#
#   --prefix DIR      make the environment there (default: .venv in this checkout), whatever
#                     environment is active
#   --python PROGRAM  as the variable PYTHON, see below
#   --install         add what is missing to that Python's environment, or to the active one
#
# Without --prefix:
#   * the variable PYTHON, else an active virtualenv or conda environment, else python3 is
#     used where it has everything (a container, a cluster's node);
#   * otherwise .venv is made from it (or, for lack of one that serves, from python3.13,
#     python3.12 or python3.11). An environment that is not ours is changed only if --install
#     asks for it, a system Python or conda's base never.
#
# TORCH_VERSION (default 2.13.0) is installed where torch is missing. pip's own settings
# (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) decide where packages come from, so also between
# a CPU and a CUDA build. An installation that was cut short goes on where it stopped.
#
# SLIT_NO_INSTALL=1 (a machine without network): never install anything, end with an error
# where something is missing. So it is inside a job of Slurm, SGE or PBS.
#
# Messages go to stderr; the last line on stdout is the environment's Python.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
torch_version=${TORCH_VERSION:-2.13.0}
prefix=
install_wanted=false
wanted=${PYTHON:-}
named=${wanted} # by the user: it must serve
# Modules whose presence says that an environment is complete (looked up, not imported).
modules="espnet2 torch torchaudio transformers sentencepiece safetensors soundfile soxr
    sklearn matplotlib tensorboard espnet_model_zoo pycocoevalcap peft pytest hypothesis"

log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') (setup_env.sh) $*" >&2; }
die() {
    echo "Error: $*" >&2
    exit "${code:-1}"
}

while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help)
            sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        --install)
            install_wanted=true
            shift
            ;;
        --prefix | --python)
            [ $# -ge 2 ] || code=2 die "option $1 needs a value"
            if [ "$1" = --prefix ]; then prefix=$2; else wanted=$2 named=$2; fi
            shift 2
            ;;
        *) code=2 die "unknown option '$1' (tools/setup_env.sh --help lists them)" ;;
    esac
done

# ask PYTHON: "environment|system <version>", nothing when the program does not run.
ask() {
    "$1" - 2>/dev/null <<'PY' || true
import os, sys
conda = os.path.isdir(os.path.join(sys.prefix, "conda-meta"))
base = conda and os.path.isdir(os.path.join(sys.prefix, "envs"))
environment = sys.prefix != sys.base_prefix or (conda and not base)
kind = "environment" if environment else "system"
print(kind, "%d.%d" % sys.version_info[:2])
PY
}

# missing PYTHON: names of the modules it lacks.
missing() {
    # shellcheck disable=SC2086  # a list of names
    "$1" - ${modules} <<'PY'
import importlib.util, sys
print(*[m for m in sys.argv[1:] if importlib.util.find_spec(m) is None])
PY
}

served() { case "$1" in 3.11 | 3.12 | 3.13) true ;; *) false ;; esac }

# install PYTHON VERSION: every requirement, then espnet2_slit itself.
install() {
    local python=$1 version=$2 torch="torch==${torch_version}" list=espnet202611
    [ -z "$(forbidden)" ] || die "${python} lacks packages, and $(forbidden)"
    [ "${version}" != 3.11 ] || list=espnet202511
    if [ -n "$("${python}" -c 'import importlib.util as u; print(u.find_spec("torch") or "")')" ]; then
        # Never replace a torch that is there: it fits that machine's driver.
        torch="torch==$("${python}" -c 'import importlib.metadata as m; print(m.version("torch"))')"
    fi
    log "Installing ${torch}, transformers and what ESPnet needs: some minutes;" \
        "0.7 GB of downloads and 2 GB of disk with a CPU build of torch," \
        "4 GB and 8 GB with a CUDA build"
    "${python}" -m pip install -q --disable-pip-version-check "${torch}" \
        "setuptools>=77.0.3,<82" \
        -r "${root}/tools/requirements/common.txt" \
        -r "${root}/tools/requirements/${list}.txt" >&2
    if [ "${list}" = espnet202511 ]; then
        "${python}" -m pip install -q --disable-pip-version-check --no-deps espnet==202511 >&2
    fi
    "${python}" -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation \
        -e "${root}" >&2
}

# The torchaudio wheel is linked with CUDA; next to a CPU-only torch its extension library
# cannot be loaded, though nothing used here needs it: without the file torchaudio goes on.
mend_torchaudio() {
    local python=$1 report library
    if report=$("${python}" -c 'import torchaudio' 2>&1); then return; fi
    case "${report}" in
        *OSError*"Could not load this library"* | *OSError*"cannot open shared object"*) ;;
        *) die "'import torchaudio' fails in the new environment: ${report##*$'\n'}" ;;
    esac
    library=$("${python}" -c 'import importlib.util as u, pathlib
print(pathlib.Path(u.find_spec("torchaudio").origin).parent / "lib")')
    log "torchaudio's extension needs CUDA libraries that this CPU build of torch lacks;" \
        "removing it (${library}/*.so), torchaudio works without it"
    rm -f "${library}"/*.so
    "${python}" -c 'import torchaudio' || die "torchaudio still does not import"
}

# espnet 202511 imports a text package that looks for two nltk data files and tries to
# download them at every import. Neither is used here: empty archives end the attempt.
quiet_nltk() {
    "$1" - <<'PY'
import pathlib, sys, zipfile
for name in ("taggers/averaged_perceptron_tagger_eng", "corpora/cmudict"):
    path = pathlib.Path(sys.prefix, "nltk_data", name + ".zip")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        zipfile.ZipFile(path, "w").close()
PY
}

# forbidden: why nothing may be installed, or nothing.
forbidden() {
    if [ -n "${SLIT_NO_INSTALL:-}" ]; then
        echo "SLIT_NO_INSTALL is set"
    elif [ -n "${SLURM_JOB_ID:-}${JOB_ID:-}${PBS_JOBID:-}" ]; then
        echo "nothing is installed inside a job (run tools/setup_env.sh before)"
    fi
}

# check_named: what the user has named runs, and is a Python that serves.
check_named() {
    read -r kind version <<<"$(ask "${wanted}")"
    [ -n "${kind}" ] || die "PYTHON=${wanted} does not run; expected a Python 3.11-3.13"
    served "${version}" || die "${wanted} is Python ${version}; expected 3.11, 3.12 or" \
        "3.13. Set PYTHON to one of these, or leave the active environment."
}

if [ -n "${named}" ]; then check_named; fi

# 1. An environment that is already there.
if [ -z "${prefix}" ]; then
    prefix=${root}/.venv
    if [ -z "${wanted}" ] && [ -x "${VIRTUAL_ENV:-}/bin/python" ]; then
        wanted=${VIRTUAL_ENV}/bin/python
    elif [ -z "${wanted}" ] && [ -x "${CONDA_PREFIX:-}/bin/python" ]; then
        wanted=${CONDA_PREFIX}/bin/python
    fi
    if [ -n "${wanted}" ] && [ "${wanted}" != "${prefix}/bin/python" ]; then
        check_named
        lacks=$(missing "${wanted}")
        if [ -n "${lacks}" ] && "${install_wanted}"; then
            log "${wanted} lacks: ${lacks}"
            [ "${kind}" = environment ] || die "${wanted} is a system Python or conda's base:" \
                "nothing is installed into those. Leave --install out: .venv is made from it"
            install "${wanted}" "${version}"
            "${wanted}" -c 'import torchaudio' 2>/dev/null ||
                die "'import torchaudio' fails in ${wanted}: install the torchaudio build that" \
                    "fits its torch, or let tools/setup_env.sh --prefix DIR make an environment"
            lacks=
        fi
        if [ -z "${lacks}" ]; then
            command -v "${wanted}"
            exit 0
        fi
        log "${wanted} lacks: ${lacks}. It is not ours and stays as it is, ${prefix} is used" \
            "(tools/setup_env.sh --install installs into it)"
    elif [ -z "${wanted}" ]; then
        read -r _ version <<<"$(ask python3)"
        if [ -n "${version}" ] && served "${version}" && [ -z "$(missing python3)" ]; then
            command -v python3
            exit 0
        fi
    fi
fi

# 2. Our own.
requirements=("${root}"/tools/requirements/*.txt "${root}/setup.py")
key="torch ${torch_version} $(cat "${requirements[@]}" | cksum) $(cd "${root}" && pwd -P)"
marker=${prefix}/.espnet2_slit_done
# complete: made to the end from these requirements, and of the Python that was named.
complete() {
    [ -x "${prefix}/bin/python" ] && [ -f "${marker}" ] && [ "$(cat "${marker}")" = "${key}" ] &&
        { [ -z "${named}" ] || [ "$(ask "${prefix}/bin/python")" = "environment ${version}" ]; }
}
if complete; then
    echo "${prefix}/bin/python"
    exit 0
fi

base=
for candidate in ${wanted:+"${wanted}"} python3 python3.13 python3.12 python3.11; do
    read -r kind version <<<"$(ask "${candidate}")"
    if [ -n "${version}" ] && served "${version}"; then
        base=${candidate}
        break
    fi
done
[ -n "${base}" ] || die "no Python 3.11, 3.12 or 3.13 found (looked for python3, python3.13," \
    "python3.12, python3.11 on PATH). Install one, or set PYTHON to it."

[ ! -e "${prefix}" ] || [ -f "${prefix}/pyvenv.cfg" ] || [ -z "$(ls -A "${prefix}")" ] ||
    die "${prefix} is there and is no virtual environment; remove it or give another --prefix"
[ -z "$(forbidden)" ] || die "no complete environment, and $(forbidden)"
mkdir -p "$(dirname "${prefix}")"
exec 9>"${prefix}.lock"
if command -v flock >/dev/null && ! flock -n 9; then
    log "Another process is making ${prefix}: waiting for it"
    flock 9
    if complete; then
        echo "${prefix}/bin/python"
        exit 0
    fi
fi
if [ "$(ask "${prefix}/bin/python")" = "environment ${version}" ] &&
    "${prefix}/bin/python" -m pip --version >/dev/null 2>&1; then
    log "Going on with the environment in ${prefix} (Python ${version})"
else
    log "Creating a virtual environment in ${prefix} (Python ${version} from $(command -v "${base}"))"
    "${base}" -m venv --clear "${prefix}" || die "'${base} -m venv' failed; on Debian and" \
        "Ubuntu it needs the package python${version}-venv"
fi
install "${prefix}/bin/python" "${version}"
mend_torchaudio "${prefix}/bin/python"
quiet_nltk "${prefix}/bin/python"
lacks=$(missing "${prefix}/bin/python")
[ -z "${lacks}" ] || die "still missing after the installation: ${lacks}"
echo "${key}" >"${marker}.tmp"
mv "${marker}.tmp" "${marker}"
log "Done: $(du -sh "${prefix}" | cut -f1) in ${prefix} after ${SECONDS} s"
echo "${prefix}/bin/python"
