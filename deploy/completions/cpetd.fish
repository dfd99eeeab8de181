# fish completion for cpetd. Options and the words that they take are read from cpetd --help, so they are always its own.
complete -c cpetd -f
for line in (cpetd --help 2>/dev/null | string match -r '^  --.*')
    set -l m (string replace -r '^  --([a-z0-9-]+)(?: (\S+))?(?: +(.*))?$' '$1\t$2\t$3' -- $line | string split \t)
    switch $m[2]
        case ''
            complete -c cpetd -l $m[1] -d "$m[3]"
        case '*DIR'
            complete -c cpetd -l $m[1] -d "$m[3]" -x -a '(__fish_complete_directories)'
        case '*FILE*' '*PATH'
            complete -c cpetd -l $m[1] -d "$m[3]" -r -F
        case '*|*'
            complete -c cpetd -l $m[1] -d "$m[3]" -x -a "$(string replace -a '|' ' ' $m[2])"
        case '*'
            complete -c cpetd -l $m[1] -d "$m[3]" -x
    end
end
