#!/usr/bin/env bash
# Usage: local/espnet_data.sh --from DIR --train SET --valid SET --test "SET ..." [...]
#
# Makes train_caption, valid_caption, train_instruction, valid_instruction and test_<SET>
# from data directories of another ESPnet recipe: references in text_spk1, text_spk2, ...,
# labels as words of a vocabulary. Audio (files, pipes, arks, segments) stays where it is.

# shellcheck disable=SC2034  # options are read by name, option_file by parse_options.sh
set -euo pipefail
# before cd, which $0 is relative to
option_file=$(readlink -f "$0")
cd "$(dirname "$0")/.."

# Options
from=           # the other recipe's data/
train=          # its training directory
valid=          # its validation directory
test=           # its test directories, by comma or blank
questions_from=  # data/ of a recipe with questions on audio, beside captions or labels
questions_train= # its training directory
questions_valid= # its validation directory
questions_test=  # its test directories, by comma or blank
task=caption    # what `text` holds: caption, question_answering or classification
label_names=    # lines `word name`, where labels are words of a vocabulary
multi_label=    # true: each word of `text` is a label of its own; false: a line is one
data_dir=data   # where the data directories go
python=python3  # the Python of the project's environment
# End of options

here=$(dirname "${option_file}")/..
. "${here}/utils/parse_options.sh"
. "${here}/utils/stages.sh"
arguments=() # the words after --test and --questions_test are one
for word in "$@"; do
    if [ ${#arguments[@]} -gt 1 ] && [ "${arguments[-2]##*[-_]}" = test ] && [[ ${word} != --* ]]; then
        arguments[-1]+=,${word}
    else
        arguments+=("${word}")
    fi
done
parse_options "${arguments[@]}"
. ./path.sh

from=$(given "${from}")
label_names=$(given "${label_names}")
questions_from=$(given "${questions_from}")
for name in from train valid test; do
    [ -n "${!name}" ] || usage_error "--${name} is needed (${0##*/} --help)"
done
"${python}" -m espnet2_slit.bin.slit_corpus espnet_sets --from "${from}" --out "${data_dir}" \
    --train "${train}" --valid "${valid}" --test "${test}" --task "${task}" \
    ${label_names:+--label_names "${label_names}"} ${multi_label:+--multi_label "${multi_label}"} \
    ${questions_from:+--questions_from "${questions_from}" --questions_test "${questions_test}"} \
    ${questions_train:+--questions_train "${questions_train}"} \
    ${questions_valid:+--questions_valid "${questions_valid}"}
