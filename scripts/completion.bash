# Completion of options and files for the mlops-* commands: `source scripts/completion.bash` in bash; in zsh after
# `autoload -U +X bashcompinit && bashcompinit`. Options are read from --help, so they cannot go out of date.
# shellcheck shell=bash disable=SC2207
_mlops() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    case $before in
        --model | --smote-method) # the choices, where there are some; else a file
            COMPREPLY=($(compgen -W "$("$1" --help 2> /dev/null | sed -n "s/^ *$before {\([^}]*\)}.*/\1/p" | tr , ' ')" -- "$current"))
            [ ${#COMPREPLY[@]} -eq 0 ] || return
            ;;
    esac
    case $current in
        -*) COMPREPLY=($(compgen -W "$("$1" --help 2> /dev/null | grep -o -- '--[A-Za-z][A-Za-z-]*' | sort -u)" -- "$current")) ;;
        *) COMPREPLY=($(compgen -f -- "$current")) ;;
    esac
}
complete -F _mlops mlops-prepare-data mlops-prepare-features mlops-train mlops-predict \
    mlops-validate mlops-draft-contract mlops-tune mlops-report mlops-compare mlops-manifest \
    mlops-mlflow-sync mlops-serve mlops-keys mlops-predictions mlops-drift mlops-monitor mlops-retrain
