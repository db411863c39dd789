#!/usr/bin/env bash
# Usage: local/esc50_data.sh --corpus DIR --fold 1 --data_dir DIR [--encoder FILE --parts DIR]
#
# Data directories with one fold of ESC-50 held out. With --encoder and --parts, also the
# mini audio encoder, trained on from its checkpoint with the other folds' clips and labels,
# and a language model with tokenizers that know the labels' words. Settings are fixed in
# advance, not chosen by a validation fold: all other folds are trained on, as in the ESC
# paper.

set -euo pipefail
# shellcheck disable=SC2034  # read by parse_options.sh; before cd, which $0 is relative to
option_file=$(readlink -f "$0")
cd "$(dirname "$0")/.."

# Options
corpus=         # ESC-50, with meta/esc50.csv and audio/
fold=1          # fold that is held out
data_dir=data   # where the data directories go
encoder=        # where the trained encoder goes; none: it is not made
parts=          # where language_model/ and qformer_tokenizer/ go, made once for all folds
init=downloads/mini/audio_encoder.pt # checkpoint it goes on from, made when it is missing
epochs=20       # of the encoder's training
pairs=8000      # sentences that the language model is trained on
valid_clips=20  # clips whose loss is shown
nj=2            # processes
# End of options

. utils/parse_options.sh
. utils/stages.sh
parse_options "$@"
. ./path.sh

if [ -n "${encoder}" ] && [ ! -f "${init}" ]; then
    local/mini_data.sh --nj "${nj}"
fi
work=${data_dir}/parts
esc50=(--set "esc50.test_fold=${fold}" --root "esc50=${corpus}")
python3 -m espnet2_slit.bin.slit_corpus prepare --corpora esc50 "${esc50[@]}" --out "${work}" \
    --presence 1 --jobs "${nj}"
python3 -m espnet2_slit.bin.slit_corpus esc50 --root "${corpus}" --test_fold "${fold}" \
    --splits train,valid --out "${work}" --jobs "${nj}" >/dev/null
data() { python3 -m espnet2_slit.bin.slit_data "$@"; }
for kind in caption instruction; do
    data combine "${data_dir}/train_${kind}" "${work}/train_${kind}" "${work}/valid_${kind}"
    # Trained on as well: its loss shows that training goes on, it chooses nothing.
    data subset "${work}/valid_${kind}" "${data_dir}/valid_${kind}" --count "${valid_clips}" --seed 0
done
data subset "${work}/esc50_test" "${data_dir}/test_fold${fold}"
python3 -m espnet2_slit.bin.slit_corpus label_captions "${data_dir}/test_fold${fold}" \
    --out "${data_dir}/test_fold${fold}_caption"
if [ -z "${encoder}" ]; then exit; fi
OMP_NUM_THREADS=1 python3 local/mini_language_model.py --output-dir "${parts}" --pairs "${pairs}" \
    --data-dir "${work}/esc50_train" "${work}/esc50_valid"
python3 local/train_encoder.py --data-dir "${work}/esc50_train" "${work}/esc50_valid" \
    --init "${init}" --output "${encoder}" --epochs "${epochs}"
