#!/usr/bin/env bash
# Usage: local/corpora_data.sh --corpora "audiocaps clotho" [--zero_shot "esc50"] [...]
#
# Makes train_caption, valid_caption, train_instruction, valid_instruction and the test sets
# from public corpora as their publishers ship them; db.sh says where each one is. Other
# options are those of `python -m espnet2_slit.bin.slit_corpus prepare`, for example
# --set esc50.test_fold=2 or --max_duration 30 --long crop.

set -euo pipefail
# shellcheck disable=SC2034  # read by parse_options.sh; before cd, which $0 is relative to
option_file=$(readlink -f "$0")
cd "$(dirname "$0")/.."

# Options
corpora=        # to train and test on: names of db.sh in lower case
zero_shot=      # to test on only
fetch=          # fetch these first, with checksums, to downloads/<corpus>: clotho
data_dir=data   # where the data directories go
nj=4            # processes that look into audio files
python=python3  # the Python of the project's environment
# End of options

here=$(dirname "${option_file}")/..
. "${here}/utils/parse_options.sh"
parse_known_options "$@"
. ./path.sh
. ./db.sh

[ -n "${corpora}" ] || usage_error "which corpora? --corpora \"audiocaps clotho\""
for corpus in ${fetch//,/ }; do
    "${python}" -m espnet2_slit.bin.slit_corpus fetch "${corpus}" --out "downloads/${corpus}"
    printf -v "${corpus^^}" '%s' "downloads/${corpus}"
done
roots=()
for corpus in ${corpora//,/ } ${zero_shot//,/ }; do
    variable=${corpus^^}
    if [ -n "${!variable:-}" ]; then roots+=(--root "${corpus}=${!variable}"); fi
done
exec "${python}" -m espnet2_slit.bin.slit_corpus prepare --corpora "${corpora}" \
    --zero_shot "${zero_shot}" "${roots[@]}" --out "${data_dir}" --jobs "${nj}" "${rest[@]}"
