#!/usr/bin/env bash
# Usage: local/mini_data.sh [--data_dir data] [--download_dir downloads/mini] [--nj 2] [--lang en]
#
# Makes the mini corpus and the frozen parts of the mini recipe; called by local/data.sh.
# What is there already with the same settings is not made again.

set -euo pipefail
# shellcheck disable=SC2034  # read by parse_options.sh; before cd, which $0 is relative to
option_file=$(readlink -f "$0")
cd "$(dirname "$0")/.."

# Options
data_dir=data               # where the data directories go
download_dir=downloads/mini # gets audio/ audio_encoder.pt language_model/ qformer_tokenizer/
nj=2                        # processes that render audio
threads=1                   # of the encoder's training once the language model is there
lang=en                     # of the texts: en or de; others than en go to download_dir/lang
seed=1                      # of everything made here
random_encoder=false        # true: leave the audio encoder untrained (ablation)
python=python3              # the Python of the project's environment
# End of options

. utils/parse_options.sh
parse_options "$@"
. ./path.sh
log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') ($(basename "$0")) $*"; }

log "Mini corpus (2,400 training clips), audio encoder and language model:" \
    "about 5 minutes on two cores, 200 MB in ${download_dir}"
text_dir=${download_dir}
[ "${lang}" = en ] || text_dir=${download_dir}/${lang}
mkdir -p "${text_dir}"

export OMP_NUM_THREADS=${threads}
. utils/spin.sh # asks while nothing runs yet
# The language model needs no audio: it is trained beside the rest, one core each. The
# encoder, which takes longest, waits for the audio, so rendering goes first.
OMP_NUM_THREADS=1 nice ${python} local/mini_language_model.py \
    --output-dir "${text_dir}" --seed "${seed}" --lang "${lang}" &
language_model=$!
trap 'kill ${language_model} 2>/dev/null || true' EXIT

${python} local/mini_corpus.py \
    --data-dir "${data_dir}" --audio-dir "${download_dir}/audio" --seed "${seed}" --jobs "${nj}" \
    --lang "${lang}"
encoder_options=()
if ${random_encoder}; then encoder_options+=(--random); fi
OMP_NUM_THREADS=1 ${python} local/mini_encoder.py --audio-dir "${download_dir}/audio" \
    --output "${download_dir}/audio_encoder.pt" --seed "${seed}" --threads "${threads}" \
    "${encoder_options[@]}"

wait "${language_model}"
trap - EXIT
log "Mini corpus and frozen parts are ready in ${data_dir} and ${download_dir}"
