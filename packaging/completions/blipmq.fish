# fish completion for blipmq, made by packaging/manual.py from the parser of its command line
complete -c blipmq -f
complete -c blipmq -n __fish_use_subcommand -a start -d 'run the broker in the foreground'
complete -c blipmq -n __fish_use_subcommand -a check -d 'validate the configuration; prints the settings and the memory they need'
complete -c blipmq -n __fish_use_subcommand -a health -d 'check that a running broker is alive; needs metrics.bind_addr and no key'
complete -c blipmq -n __fish_use_subcommand -a connect -d 'talk to a broker in an interactive shell'
complete -c blipmq -n __fish_use_subcommand -a keys -d 'create, list, rotate and revoke API keys'
complete -c blipmq -n __fish_use_subcommand -a wal -d 'verify, export or repair the WAL of a stopped broker'
complete -c blipmq -n __fish_use_subcommand -a version -d 'print the version'
complete -c blipmq -n '__fish_use_subcommand' -s h -l help -d 'show this help message and exit'
complete -c blipmq -n '__fish_use_subcommand' -l version -d 'show program\'s version number and exit'
complete -c blipmq -n '__fish_seen_subcommand_from start' -s h -l help -d 'show this help message and exit'
complete -c blipmq -n '__fish_seen_subcommand_from start' -l config -r -F -d 'TOML file; else $BLIPMQ_CONFIG, else ./blipmq.toml, else the defaults'
complete -c blipmq -n '__fish_seen_subcommand_from check' -s h -l help -d 'show this help message and exit'
complete -c blipmq -n '__fish_seen_subcommand_from check' -l config -r -F -d 'TOML file; else $BLIPMQ_CONFIG, else ./blipmq.toml, else the defaults'
complete -c blipmq -n '__fish_seen_subcommand_from check' -l convert -x -d 'convert OLD, a configuration of BlipMQ 1.0.0 or a mosquitto.conf, to one for this version'
complete -c blipmq -n '__fish_seen_subcommand_from check' -l output -r -F -d 'with --convert: write here instead of to standard output'
complete -c blipmq -n '__fish_seen_subcommand_from health' -s h -l help -d 'show this help message and exit'
complete -c blipmq -n '__fish_seen_subcommand_from health' -l ready -d 'check that it accepts clients, instead'
complete -c blipmq -n '__fish_seen_subcommand_from health' -l config -r -F -d 'TOML file; else $BLIPMQ_CONFIG, else ./blipmq.toml, else the defaults'
complete -c blipmq -n '__fish_seen_subcommand_from connect' -s h -l help -d 'show this help message and exit'
complete -c blipmq -n '__fish_seen_subcommand_from connect' -l key-file -r -F -d 'file that holds the API key; else $BLIPMQ_API_KEY'
complete -c blipmq -n '__fish_seen_subcommand_from connect' -l tls -d 'use TLS, as an address tls://HOST:PORT does'
complete -c blipmq -n '__fish_seen_subcommand_from connect' -l ca-file -r -F -d 'authorities to trust, in PEM; else $BLIPMQ_TLS_CA, else the system\'s'
complete -c blipmq -n '__fish_seen_subcommand_from connect' -l cert -r -F -d 'this client\'s certificate; else $BLIPMQ_TLS_CERT'
complete -c blipmq -n '__fish_seen_subcommand_from connect' -l cert-key -r -F -d 'its key; else $BLIPMQ_TLS_KEY, else in the same file'
complete -c blipmq -n '__fish_seen_subcommand_from connect' -l wait -x -d 'keep trying to connect for this long, such as 30s or 5m'
complete -c blipmq -n '__fish_seen_subcommand_from keys' -a add
complete -c blipmq -n '__fish_seen_subcommand_from keys' -a list
complete -c blipmq -n '__fish_seen_subcommand_from keys' -a revoke
complete -c blipmq -n '__fish_seen_subcommand_from keys' -a rotate
complete -c blipmq -n '__fish_seen_subcommand_from keys' -s h -l help -d 'show this help message and exit'
complete -c blipmq -n '__fish_seen_subcommand_from keys' -l allow -x -d 'pub:TOPIC, sub:FILTER or admin, as often as needed; with one given, nothing else is allowed'
complete -c blipmq -n '__fish_seen_subcommand_from keys' -l certificate -x -d 'a TLS client whose certificate of tls.client_ca_file has this common name needs no key'
complete -c blipmq -n '__fish_seen_subcommand_from keys' -l file -r -F -d 'the key file; else auth.keys_file of the configuration'
complete -c blipmq -n '__fish_seen_subcommand_from keys' -l config -r -F -d 'configuration that names it, found as `blipmq start` does'
complete -c blipmq -n '__fish_seen_subcommand_from keys' -l format -x -a 'text json' -d 'json: one object a line'
complete -c blipmq -n '__fish_seen_subcommand_from keys' -l overlap -x -d 'how long the old key stays valid: 90s, 30m, 24h (default), 7d; 0s ends it now'
complete -c blipmq -n '__fish_seen_subcommand_from keys' -l finish -d 'end the old key now, instead'
complete -c blipmq -n '__fish_seen_subcommand_from wal' -a verify
complete -c blipmq -n '__fish_seen_subcommand_from wal' -a export
complete -c blipmq -n '__fish_seen_subcommand_from wal' -a repair
complete -c blipmq -n '__fish_seen_subcommand_from wal' -s h -l help -d 'show this help message and exit'
complete -c blipmq -n '__fish_seen_subcommand_from wal' -l directory -x -d 'the WAL; else wal.directory of the configuration'
complete -c blipmq -n '__fish_seen_subcommand_from wal' -l config -r -F -d 'configuration that names it, found as `blipmq start` does'
complete -c blipmq -n '__fish_seen_subcommand_from wal' -l format -x -a 'text json' -d 'json: one object a line'
complete -c blipmq -n '__fish_seen_subcommand_from version' -s h -l help -d 'show this help message and exit'
