# bash completion for cpet. Commands and options are read from the help of cpet and of each command, so they are always
# its own.
_cpet() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} cpet=${COMP_WORDS[0]} help arg words
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        words=$("$cpet" --help 2>/dev/null | sed -n 's/^  \([a-z]*\)  .*/\1/p')
        mapfile -t COMPREPLY < <(compgen -W "$words --help" -- "$cur")
        return
    fi
    help=$("$cpet" "${COMP_WORDS[1]}" --help 2>/dev/null)
    arg=$(grep -o -e "$prev [^] ]*" <<<"$help" | head -n 1)
    arg=${arg#"$prev"}
    case $prev:$arg in
    --*:' '*'|'*) mapfile -t COMPREPLY < <(compgen -W "${arg//|/ }" -- "$cur") && return ;;
    esac
    if [[ $cur == -* ]]; then
        words=$(grep -o -e '--[a-z][a-z0-9-]*' <<<"$help" | sort -u)
        mapfile -t COMPREPLY < <(compgen -W "$words --help" -- "$cur")
        return
    fi
    if ((COMP_CWORD == 2)); then # commands of a command: cpet pet pack
        words=$(sed -n "s/^\(usage:\|      \) cpet ${COMP_WORDS[1]} \([a-z]\+\) .*/\2/p" <<<"$help")
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
        [[ $words ]] && return
    fi
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    compopt -o filenames 2>/dev/null
}
complete -F _cpet cpet
