# bash completion for cpetd. Options and the words that they take are read from cpetd --help, so they are always its own.
_cpetd() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} help arg
    help=$("${COMP_WORDS[0]}" --help 2>/dev/null)
    COMPREPLY=()
    if [[ $cur == = ]]; then
        cur=
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    arg=$(sed -n "s/^  $prev \([^ ]*\).*/\1/p" <<<"$help" | head -n 1)
    case $prev:$arg in
    --*:*DIR) mapfile -t COMPREPLY < <(compgen -d -- "$cur") && compopt -o filenames ;;
    --*:*FILE* | --*:*PATH) mapfile -t COMPREPLY < <(compgen -f -- "$cur") && compopt -o filenames ;;
    --*:*'|'*) mapfile -t COMPREPLY < <(compgen -W "${arg//|/ }" -- "$cur") ;;
    --*:?*) ;;
    *)
        mapfile -t COMPREPLY < <(compgen -W "$(sed -n 's/^  \(--[a-z0-9-]*\).*/\1/p' <<<"$help")" -- "$cur")
        ;;
    esac
}
complete -F _cpetd cpetd
