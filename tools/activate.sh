# shellcheck shell=bash
# Source this: puts the project's Python first on PATH and the package on PYTHONPATH,
# making the environment on first use (tools/setup_env.sh says which one it takes).

slit_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
slit_python=$("${slit_root}/tools/setup_env.sh") || return 1
slit_bin=$(cd "$(dirname "${slit_python}")" && pwd)
if [ -x "${slit_bin}/python3" ]; then
    export PATH="${slit_bin}:${PATH}"
fi
export PYTHONPATH="${slit_root}${PYTHONPATH:+:${PYTHONPATH}}"
unset slit_bin
# An environment that has what is needed, but not this package installed.
command -v slit >/dev/null || slit() { "${slit_python}" -m espnet2_slit.bin.slit "$@"; }
