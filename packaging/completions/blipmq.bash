# bash completion for blipmq, made by packaging/manual.py from the parser of its command line
_blipmq() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    local command= files= words= index IFS=$' \t\n'
    for ((index = 1; index < COMP_CWORD; index++)); do
        case ${COMP_WORDS[index]} in
            --)
                [[ ${COMP_WORDS[index + 1]} == "=" ]] && ((index++))
                ((index++)) ;;
            :) ((index++)) ;; # bash takes HOST:PORT apart
            -*) ;;
            *) command=${COMP_WORDS[index]} && break ;;
        esac
    done
    [[ $before == "=" ]] && before=${COMP_WORDS[COMP_CWORD - 2]}
    case $command in
        "")
            case $before in
                *) words="start check health connect keys wal version -h --help --version" ;;
            esac ;;
        start)
            case $before in
                --config)
                    files=yes ;;
                *) words="-h --help --config" ;;
            esac ;;
        check)
            case $before in
                --config)
                    files=yes ;;
                --convert)
                    words="" ;;
                --output)
                    files=yes ;;
                *) words="-h --help --config --convert --output" ;;
            esac ;;
        health)
            case $before in
                --config)
                    files=yes ;;
                *) words="-h --help --ready --config" ;;
            esac ;;
        connect)
            case $before in
                --key-file)
                    files=yes ;;
                --ca-file)
                    files=yes ;;
                --cert)
                    files=yes ;;
                --cert-key)
                    files=yes ;;
                --wait)
                    words="" ;;
                *) words="-h --help --key-file --tls --ca-file --cert --cert-key --wait" ;;
            esac ;;
        keys)
            case $before in
                --allow)
                    words="" ;;
                --certificate)
                    words="" ;;
                --file)
                    files=yes ;;
                --config)
                    files=yes ;;
                --format)
                    words="text json" ;;
                --overlap)
                    words="" ;;
                *) words="add list revoke rotate -h --help --allow --certificate --file --config --format --overlap --finish" ;;
            esac ;;
        wal)
            case $before in
                --directory)
                    words="" ;;
                --config)
                    files=yes ;;
                --format)
                    words="text json" ;;
                *) words="verify export repair -h --help --directory --config --format" ;;
            esac ;;
        version)
            case $before in
                *) words="-h --help" ;;
            esac ;;
    esac
    if [[ $files ]]; then
        IFS=$'\n'
        compopt -o filenames 2>/dev/null
        COMPREPLY=($(compgen -f -- "$current"))
    else
        COMPREPLY=($(compgen -W "$words" -- "$current"))
    fi
}
complete -F _blipmq blipmq
