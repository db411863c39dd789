#!/usr/bin/env bash
# Usage: ./setup.sh DIR        e.g. ./setup.sh ~/espnet/egs2/my_corpus/slit1
#
# Makes a recipe directory for another corpus, in an ESPnet tree or anywhere. slit.sh,
# path.sh and the readers of corpora and of other recipes' data are linked to this one,
# conf/, cmd.sh and db.sh are copied for editing. Then write local/data.sh and run.sh there;
# both come as short examples.

set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
. "${here}/utils/parse_options.sh"

case "${1:-}" in
    -h | --help)
        sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    -*) usage_error "unknown option $1 (setup.sh --help)" ;;
esac
[ $# -eq 1 ] || usage_error "expected one directory, found $#: $0 DIR"
dir=$1
if [ -e "${dir}/slit.sh" ] || [ -e "${dir}/run.sh" ]; then
    echo "Error: ${dir} has a recipe already; nothing was changed" >&2
    exit 1
fi
mkdir -p "${dir}/conf" "${dir}/local"
dir=$(cd "${dir}" && pwd)

root=$(cd "${dir}/../../.." 2>/dev/null && pwd) || root=
project=$(cd "${here}/../../.." && pwd)
link() { # NAME: relative inside the project's own tree, else absolute
    if [ "${root}" = "${project}" ]; then
        ln -s -r "${here}/$1" "${dir}/$1"
    else
        ln -s "${here}/$1" "${dir}/$1"
    fi
}
for name in slit.sh path.sh local/{corpora_data.sh,espnet_data.sh,run_espnet3.py}; do link "${name}"; done
template=${root}/egs2/TEMPLATE/asr1
if [ -d "${template}/utils" ]; then
    for name in utils steps scripts pyscripts; do
        [ ! -d "${template}/${name}" ] || ln -s "../../TEMPLATE/asr1/${name}" "${dir}/${name}"
    done
    where="an ESPnet tree: its utils/ backends are used"
else
    link utils
    where="no ESPnet tree: our own utils/ are used"
fi
cp -r "${here}/conf/." "${dir}/conf"
cp "${here}/cmd.sh" "${here}/db.sh" "${dir}"
cat >"${dir}/local/data.sh" <<'EOF'
#!/usr/bin/env bash
# Makes data/<set>/{wav.scp,text,utt2spk,...} of this corpus; gets --local_data_opts:
#   corpora ...   public corpora, where db.sh says (local/corpora_data.sh --help)
#   espnet ...    data directories of another recipe (local/espnet_data.sh --help)
#   TABLE         your own, with audio,text[,instruction,task,split,start,end]
# Or write wav.scp and text any other way, then `slit_data fix data/<set>`.

set -euo pipefail
case "${1:-}" in
    corpora | espnet) exec bash "local/$1_data.sh" "${@:2}" ;;
esac
. ./path.sh
. ./db.sh
python3 -m espnet2_slit.bin.slit_data from_manifest "${1:-downloads/manifest.csv}" data
EOF
cat >"${dir}/run.sh" <<'EOF'
#!/usr/bin/env bash
# Give the paths of your encoder and language model here or on the command line.
set -euo pipefail
export SLIT_CALLER_DIR=${SLIT_CALLER_DIR:-${PWD}} # relative paths are yours
cd "$(dirname "$0")"

./slit.sh --config flan_t5_base \
    --train_set train_caption --valid_set valid_caption \
    --instruction_train_set train_instruction --instruction_valid_set valid_instruction \
    --audio_encoder beats --audio_encoder_path downloads/BEATs_iter3_plus_AS2M.pt \
    --language_model google/flan-t5-base --qformer_tokenizer bert-base-uncased \
    "$@"
EOF
chmod +x "${dir}/run.sh" "${dir}/local/data.sh"
echo "Made ${dir} (${where})"
