#!/usr/bin/env bash
# Usage: ./run_as_reported.sh [--name value ...]
#
# run_full.sh between the frozen parts that second-hand reports name for the paper, whose own
# text could not be read: data2vec and FLAN-T5 XL (a review on themoonlight.io and public
# notes on the survey arXiv 2501.15177). Which data2vec, which corpora and which steps is not
# said; Hugging Face's data2vec-audio are speech models. No score is claimed for it.

set -euo pipefail
SLIT_CALLER_DIR=${SLIT_CALLER_DIR:-${PWD}}
export SLIT_CALLER_DIR
cd "$(dirname "$0")"

exec ./run_full.sh --tag as_reported --audio_encoder hugging_face \
    --audio_encoder_path facebook/data2vec-audio-large "$@"
