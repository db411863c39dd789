# shellcheck shell=bash
# Sourced by a job's script, on the machine that runs it: may threads that wait for each
# other spin for a moment, in place of the sleep that OMP_WAIT_POLICY=passive gives them?
#
# To wake a thread takes as long as many a product of a small model: alone, two threads that
# spin take 0.6 to 0.85 of the time of two that sleep. Beside a busy process they keep the
# core that the other one needs and take 1.4 to 1.8 times as long (bench/threads.py). So they
# spin where a core for each is idle as the job begins, and never for long.

slit_idle() { # jiffies in which cores were idle, all together
    local idle wait
    read -r _ _ _ _ idle wait _ 2>/dev/null <"${PROC_STAT:-/proc/stat}" || return 1
    echo $((idle + wait))
}

if [ "${OMP_NUM_THREADS:-1}" -gt 1 ] && slit_before=$(slit_idle); then
    sleep 0.2 # 20 jiffies
    if [ $((10 * ($(slit_idle) - slit_before))) -ge $((20 * 7 * OMP_NUM_THREADS)) ]; then
        export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-4000}"
    fi
fi
