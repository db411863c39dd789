# shellcheck shell=bash
# Sourced by slit.sh: which Python, which job runners. Yours: local/settings.sh comes first
# (PYTHON=..., SLIT_NO_INSTALL=1, HF_HOME=..., job_variables+=" NAME"), local/path.sh last.

# Variables that go with a job, as schedulers pass on few or none. No secrets: they are
# written into the job's script.
# shellcheck disable=SC2034  # read by utils/stages.sh
job_variables="PYTHONPATH PYTHONIOENCODING LC_ALL OMP_NUM_THREADS OMP_WAIT_POLICY GOMP_SPINCOUNT THP_MEM_ALLOC_ENABLE
    NCCL_SOCKET_IFNAME SLIT_NO_INSTALL HF_HOME HF_HUB_CACHE HF_ENDPOINT HF_HUB_OFFLINE
    TRANSFORMERS_OFFLINE TORCH_HOME WANDB_MODE"
if [ -f local/settings.sh ]; then
    # shellcheck disable=SC1091
    . local/settings.sh
fi

slit_recipe=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
slit_home=$(cd "${slit_recipe}/../../.." && pwd)
MAIN_ROOT=$(cd "${PWD}/../../.." 2>/dev/null && pwd) || MAIN_ROOT=

export LC_ALL=C
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# A thread that waits for another sleeps: beside a busy neighbour two threads that spin take
# 1.8 times as long as one, two that sleep as long as one (bench/threads.py). Where cores are
# idle, jobs let them spin for a moment (utils/spin.sh)
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
# Huge pages for big tensors on a CPU: a BERT-base step in bfloat16 takes 0.7 of its time.
export THP_MEM_ALLOC_ENABLE="${THP_MEM_ALLOC_ENABLE-1}"
export PYTHONIOENCODING=UTF-8
# NCCL: leave out interfaces that do not lead to other machines.
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-^lo,docker,virbr,vmnet,vboxnet}"

# Inside an ESPnet tree, its Python, unless another environment is active, and the programs
# that it has built (sph2pipe, sox, ffmpeg, ... for commands in wav.scp).
if [ -d "${MAIN_ROOT}/espnet2" ]; then
    if [ -z "${PYTHON:-}${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] &&
        [ -f "${MAIN_ROOT}/tools/activate_python.sh" ]; then
        # shellcheck disable=SC1091
        . "${MAIN_ROOT}/tools/activate_python.sh"
    fi
    if [ -f "${MAIN_ROOT}/tools/extra_path.sh" ]; then
        # shellcheck disable=SC1091
        . "${MAIN_ROOT}/tools/extra_path.sh"
    fi
fi
if [ -f "${slit_home}/tools/activate.sh" ]; then
    # shellcheck disable=SC1091
    . "${slit_home}/tools/activate.sh"
else
    # The recipe was copied away from the project: the package must be installed.
    python3 -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("espnet2_slit"))' || {
        echo "Error: $(command -v python3) has no espnet2_slit, and this recipe lies outside" \
            "its checkout: pip install -e CHECKOUT" >&2
        return 1
    }
fi

# Job runners: this directory's, the ESPnet tree's, then our own.
for slit_dir in "${slit_recipe}/utils" "${MAIN_ROOT}/egs2/TEMPLATE/asr1/utils/parallel" \
    "${MAIN_ROOT}/egs2/TEMPLATE/asr1/utils" "${PWD}/utils"; do
    if [ -d "${slit_dir}" ]; then export PATH="${slit_dir}:${PATH}"; fi
done
unset slit_dir
if [ -f local/path.sh ]; then
    # shellcheck disable=SC1091
    . local/path.sh
fi
