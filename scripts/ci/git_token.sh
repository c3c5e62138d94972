# shellcheck shell=bash
# Sourced: let Git push with GH_TOKEN, which stays in the environment of this step: no file holds it.
if [ -n "${GH_TOKEN:-}" ]; then
    export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0="http.${GITHUB_SERVER_URL:-https://github.com}/.extraheader"
    GIT_CONFIG_VALUE_0="AUTHORIZATION: basic $(printf 'x-access-token:%s' "$GH_TOKEN" | base64 --wrap=0)"
    export GIT_CONFIG_VALUE_0
fi
