#!/usr/bin/env bash
# Usage: local/data.sh CORPUS [--name value ...]
#
# Makes the data directories of a corpus: CORPUS is a script local/CORPUS_data.sh or
# local/CORPUS.sh, which gets the options. slit.sh passes its --local_data_opts.

set -euo pipefail
# shellcheck disable=SC2034  # read by parse_options.sh; before cd, which $0 is relative to
option_file=$(readlink -f "$0")
cd "$(dirname "$0")/.."

known=$(find -L local -maxdepth 1 -name '*.sh' ! -name data.sh ! -name path.sh -exec basename {} .sh \; |
    sed 's/_data$//' | sort | tr '\n' ' ')
if [ $# -eq 0 ]; then
    echo "Error: which corpus? Usage: local/data.sh CORPUS [options], with one of: ${known}" >&2
    exit 2
fi
corpus=$1
shift
for script in "local/${corpus}_data.sh" "local/${corpus}.sh"; do
    if [ -f "${script}" ]; then exec bash "${script}" "$@"; fi
done
echo "Error: no corpus '${corpus}'; expected one of: ${known}" >&2
exit 2
