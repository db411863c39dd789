# shellcheck shell=bash
# Sourced: command line options for a script that lists them between the lines
# "# Options" and "# End of options" as
#
#     name=default   # what it is
#
# Every variable there is an option, --name value, --name=value or with "-" for "_", and the
# text after its "#" is what --help prints: each option is written once. Where the default is
# a number, or true or false, nothing else is taken.
#
#     parse_options "$@"         sets the variables; a typo ends the script with code 2
#     parse_known_options "$@"   the same, but leaves what it does not know in the array
#                                `rest`, for the script that is called next

# option_block FILE: the lines between the two marks.
option_block() { sed -n '/^# Options/,/^# End of options/p' "$1"; }

# print_options FILE: head comment (from "# Usage" to the first empty line), then options.
print_options() {
    sed -n '/^# Usage/,/^$/s/^# \{0,1\}//p' "$1"
    option_block "$1" | sed -n \
        -e 's/^# Options/Options/p' \
        -e 's/^#   \(.*\)/\n\1/p' \
        -e 's/^\([a-z][a-z0-9_]*\)=\([^#]*[^# ]\) *# \(.*\)/  --\1 VALUE\n        \3 [\2]/p' \
        -e 's/^\([a-z][a-z0-9_]*\)= *# \(.*\)/  --\1 VALUE\n        \2/p' \
        -e 's/^ \{8,\}# \(.*\)/        \1/p'
}

usage_error() {
    echo "Error: $*" >&2
    exit 2
}

parse_known_options() {
    # Locals begin with po_, so that none hides an option of the same name.
    local po_script=${option_file:-$0} po_line po_name po_value po_inside=false
    local -A po_defaults=()
    while IFS= read -r po_line; do
        case "${po_line}" in
            "# Options"*) po_inside=true ;;
            "# End of options"*) break ;;
        esac
        if "${po_inside}" && [[ ${po_line} =~ ^([a-z][a-z0-9_]*)=([a-z0-9]*) ]]; then
            po_defaults[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
        fi
    done <"${po_script}"
    rest=()
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help | '-?')
                print_options "${po_script}"
                # shellcheck disable=SC2154  # set by a wrapper
                if [ -n "${next_script:-}" ]; then
                    printf '\nAnd those of %s:\n\n' "${next_script##*/}"
                    print_options "${next_script}"
                fi
                exit 0
                ;;
            --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        esac
        po_name=${1#--}
        po_name=${po_name//-/_}
        if [[ $1 != --?* || ! ${po_name} =~ ^[a-z][a-z0-9_]*$ ]] ||
            [[ ! -v po_defaults[${po_name}] ]]; then
            rest+=("$1")
            shift
            # An unknown option keeps its value beside it.
            if [[ ${rest[-1]} == --?* ]] && [ $# -gt 0 ] && [[ $1 != --?* || $1 == *" "* ]]; then
                rest+=("$1")
                shift
            fi
            continue
        fi
        [ $# -ge 2 ] || usage_error "option $1 needs a value"
        po_value=${2#--}
        po_value=${po_value//-/_}
        if [[ $2 == --?* && ${po_value} =~ ^[a-z_0-9]+$ && -v po_defaults[${po_value}] ]]; then
            usage_error "option $1 needs a value, found the option $2"
        fi
        case "${po_defaults[${po_name}]}:$2" in
            true:true | true:false | false:true | false:false) ;;
            true:* | false:*) usage_error "option $1 is true or false, found '$2'" ;;
            [0-9]*:*[!0-9]* | [0-9]*:) usage_error "option $1 is a number, found '$2'" ;;
        esac
        printf -v "${po_name}" '%s' "$2"
        shift 2
    done
}

parse_options() {
    parse_known_options "$@"
    if [ ${#rest[@]} -gt 0 ]; then
        case "${rest[0]}" in
            --*) usage_error "unknown option ${rest[0]} (${0##*/} --help lists them)" ;;
            *) usage_error "unexpected argument '${rest[0]}' (options come as --name value)" ;;
        esac
    fi
}
