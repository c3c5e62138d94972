#!/bin/sh
# Make the team's DVC remote the default of this clone, and install what its kind needs into the Python on PATH:
#   DVC_REMOTE_URL       s3://bucket/folder, ssh://user@host/folder, or a folder
#   DVC_REMOTE_ENDPOINT  address of an S3 server that is not Amazon's
#   DVC_REMOTE_SSH_KEY   text of a private key; without it SSH uses your agent and configuration
# All of it is local to the clone (.dvc/config.local). The embedded remote stays as it is.
set -eu
url=${DVC_REMOTE_URL:-}
if [ -z "$url" ]; then
    # CI without a team remote is fine, a person who calls this without an address is not.
    [ -n "${CI:-}" ] && echo "no team remote is configured: the embedded one alone" && exit
    echo "error: no address; expected: make remote DVC_REMOTE_URL=s3://bucket/folder (or ssh://…, or a folder)" >&2
    exit 2
fi
case $url in
    s3://*) extra=s3 key=${AWS_ACCESS_KEY_ID:-} ;;
    ssh://*) extra=ssh key=${DVC_REMOTE_SSH_KEY:-} ;;
    *://*)
        echo "error: $url is not served here; expected: s3://…, ssh://… or a folder (docs/remotes.md)" >&2
        exit 2
        ;;
    *) extra='' key=none ;;
esac
if [ -n "${CI:-}" ] && [ -z "$key" ]; then
    # A fork's run, for one: it gets no secrets.
    echo "no key for $url in this run: the embedded remote alone"
    exit
fi
[ -z "$extra" ] || sh scripts/install.sh python "requirements/$extra.txt"
python -m dvc remote add --quiet --local --default --force team "$url"
[ -z "${DVC_REMOTE_ENDPOINT:-}" ] || python -m dvc remote modify --quiet --local team endpointurl "$DVC_REMOTE_ENDPOINT"
if [ -n "${DVC_REMOTE_SSH_KEY:-}" ]; then
    mkdir -p .dvc/tmp
    (umask 077 && printf '%s\n' "$DVC_REMOTE_SSH_KEY" > .dvc/tmp/team_key)
    python -m dvc remote modify --quiet --local team keyfile "$PWD/.dvc/tmp/team_key"
fi
echo "team remote: $url (the default of this clone)"
