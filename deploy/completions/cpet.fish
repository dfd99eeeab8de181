# fish completion for cpet. Commands and options are read from the help of cpet and of each command, so they are always
# its own.
function __cpet_help
    set -l words (commandline -opc)
    $words[1] $words[2..2] --help 2>/dev/null
end

function __cpet_words # commands, or a command's own: cpet pet pack
    set -l words (commandline -opc)
    switch (count $words)
        case 1
            __cpet_help | string replace -rf '^  ([a-z]+)  +(.*)' '$1\t$2'
        case 2
            __cpet_help | string replace -rf "^(?:usage:|      ) cpet $words[2] ([a-z]+) .*" '$1'
    end
end

function __cpet_options
    __cpet_help | string match -ra -- '--[a-z][a-z0-9-]*' | sort -u
end

complete -c cpet -n __fish_use_subcommand -f
complete -c cpet -a '(__cpet_words)'
complete -c cpet -n 'string match -q -- "-*" (commandline -ct)' -a '(__cpet_options)'
complete -c cpet -l help -d 'print what it does'
