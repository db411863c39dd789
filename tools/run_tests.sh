#!/usr/bin/env bash
# Runs the tests, setting the environment up on first use. Arguments go to pytest:
#   tools/run_tests.sh                    everything that is quick enough for every change
#   tools/run_tests.sh test/test_task.py -x
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/activate.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"${slit_python}" -m pytest "$@"
