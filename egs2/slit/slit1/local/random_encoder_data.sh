#!/usr/bin/env bash
# Usage: local/random_encoder_data.sh [--output FILE] [--data_dir DIR]
#
# For the ablation: the mini corpus' sets under another name, and the mini audio encoder's
# architecture with the random weights it began with.

set -euo pipefail
# shellcheck disable=SC2034  # read by parse_options.sh; before cd, which $0 is relative to
option_file=$(readlink -f "$0")
cd "$(dirname "$0")/.."

# Options
output=downloads/mini_random/audio_encoder.pt # the encoder
from=data            # data directories of the mini corpus
data_dir=data_random # links to them
# End of options

. utils/parse_options.sh
parse_options "$@"
. ./path.sh
mkdir -p "${data_dir}" "$(dirname "${output}")"
for set in "${from}"/*/; do
    ln -sfn "$(realpath "${set}")" "${data_dir}/$(basename "${set}")"
done
python3 local/mini_encoder.py --random --output "${output}"
