# bash completion for blipmq-cli, made by packaging/manual.py from the parser of its command line
_blipmq_cli() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    local command= files= words= index IFS=$' \t\n'
    for ((index = 1; index < COMP_CWORD; index++)); do
        case ${COMP_WORDS[index]} in
            --addr | --ca-file | --cert | --cert-key | --key-file | --wait | --timeout)
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
                --addr)
                    words="" ;;
                --ca-file)
                    files=yes ;;
                --cert)
                    files=yes ;;
                --cert-key)
                    files=yes ;;
                --key-file)
                    files=yes ;;
                --wait)
                    words="" ;;
                --timeout)
                    words="" ;;
                *) words="pub sub unsub wait info sessions bench -h --help --addr --tls --ca-file --cert --cert-key --key-file --wait --timeout -q --quiet -v --verbose --version" ;;
            esac ;;
        pub | p)
            case $before in
                --addr)
                    words="" ;;
                --ca-file)
                    files=yes ;;
                --cert)
                    files=yes ;;
                --cert-key)
                    files=yes ;;
                --key-file)
                    files=yes ;;
                --wait)
                    words="" ;;
                --timeout)
                    words="" ;;
                --file)
                    files=yes ;;
                --ttl)
                    words="" ;;
                --qos)
                    words="0 1" ;;
                *) words="-h --help --addr --tls --ca-file --cert --cert-key --key-file --wait --timeout -q --quiet -v --verbose --file --ttl --qos" ;;
            esac ;;
        sub | s)
            case $before in
                --addr)
                    words="" ;;
                --ca-file)
                    files=yes ;;
                --cert)
                    files=yes ;;
                --cert-key)
                    files=yes ;;
                --key-file)
                    files=yes ;;
                --wait)
                    words="" ;;
                --timeout)
                    words="" ;;
                -n | --count)
                    words="" ;;
                -f | --format)
                    words="text json" ;;
                --qos)
                    words="0 1" ;;
                --client-id)
                    words="" ;;
                --group)
                    words="" ;;
                *) words="-h --help --addr --tls --ca-file --cert --cert-key --key-file --wait --timeout -q --quiet -v --verbose -n --count -f --format --qos --durable --client-id --group" ;;
            esac ;;
        unsub | u)
            case $before in
                --addr)
                    words="" ;;
                --ca-file)
                    files=yes ;;
                --cert)
                    files=yes ;;
                --cert-key)
                    files=yes ;;
                --key-file)
                    files=yes ;;
                --wait)
                    words="" ;;
                --timeout)
                    words="" ;;
                --client-id)
                    words="" ;;
                --group)
                    words="" ;;
                *) words="-h --help --addr --tls --ca-file --cert --cert-key --key-file --wait --timeout -q --quiet -v --verbose --client-id --group" ;;
            esac ;;
        wait)
            case $before in
                --addr)
                    words="" ;;
                --ca-file)
                    files=yes ;;
                --cert)
                    files=yes ;;
                --cert-key)
                    files=yes ;;
                --key-file)
                    files=yes ;;
                --wait)
                    words="" ;;
                --timeout)
                    words="" ;;
                --seconds)
                    words="" ;;
                *) words="-h --help --addr --tls --ca-file --cert --cert-key --key-file --wait --timeout -q --quiet -v --verbose --seconds" ;;
            esac ;;
        info | stats)
            case $before in
                --addr)
                    words="" ;;
                --ca-file)
                    files=yes ;;
                --cert)
                    files=yes ;;
                --cert-key)
                    files=yes ;;
                --key-file)
                    files=yes ;;
                --wait)
                    words="" ;;
                --timeout)
                    words="" ;;
                -f | --format)
                    words="text json" ;;
                *) words="-h --help --addr --tls --ca-file --cert --cert-key --key-file --wait --timeout -q --quiet -v --verbose -f --format --watch" ;;
            esac ;;
        sessions)
            case $before in
                --addr)
                    words="" ;;
                --ca-file)
                    files=yes ;;
                --cert)
                    files=yes ;;
                --cert-key)
                    files=yes ;;
                --key-file)
                    files=yes ;;
                --wait)
                    words="" ;;
                --timeout)
                    words="" ;;
                --find)
                    words="" ;;
                --limit)
                    words="" ;;
                -f | --format)
                    words="text json" ;;
                --client-id)
                    words="" ;;
                --group)
                    words="" ;;
                --key)
                    words="" ;;
                *) words="end -h --help --addr --tls --ca-file --cert --cert-key --key-file --wait --timeout -q --quiet -v --verbose --find --limit -f --format --client-id --group --key" ;;
            esac ;;
        bench)
            case $before in
                --addr)
                    words="" ;;
                --ca-file)
                    files=yes ;;
                --cert)
                    files=yes ;;
                --cert-key)
                    files=yes ;;
                --key-file)
                    files=yes ;;
                --wait)
                    words="" ;;
                --timeout)
                    words="" ;;
                --publishers)
                    words="" ;;
                --subscribers)
                    words="" ;;
                --topics)
                    words="" ;;
                --size)
                    words="" ;;
                --messages)
                    words="" ;;
                --seconds)
                    words="" ;;
                --rate)
                    words="" ;;
                --qos)
                    words="0 1" ;;
                --window)
                    words="" ;;
                -f | --format)
                    words="text json" ;;
                *) words="-h --help --addr --tls --ca-file --cert --cert-key --key-file --wait --timeout -q --quiet -v --verbose --publishers --subscribers --topics --size --messages --seconds --rate --qos --window -f --format" ;;
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
complete -F _blipmq_cli blipmq-cli
