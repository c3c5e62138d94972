#!/bin/sh
# Make in deploy/secrets/ what deploy/compose.yaml mounts: passwords, addresses with them, an API key, a key that signs models. What
# is there already stays. Signs the model for the image with that key. Run in the activated environment (. .venv/bin/activate).
set -eu
cd "$(dirname "$0")/.."
folder=deploy/secrets
# The folder is the owner's; its files are mounted one by one and read by another user in the containers.
umask 077
mkdir -p "$folder"
random() { python3 -c 'import secrets; print(secrets.token_urlsafe(32), end="")'; }
for name in postgres_password redis_password grafana_password; do
    [ -s "$folder/$name" ] || random > "$folder/$name"
done
printf 'postgresql://mlops:%s@postgres:5432/mlops' "$(cat "$folder/postgres_password")" > "$folder/log_url"
printf 'redis://:%s@redis:6379/0' "$(cat "$folder/redis_password")" > "$folder/rate_storage"
# Where Alertmanager sends alerts: put your own addresses there.
for name in pager_url tickets_url; do
    [ -s "$folder/$name" ] || printf 'http://localhost:9/nobody-listens-here' > "$folder/$name"
done
[ -s "$folder/api_keys" ] || mlops-keys create --name first --scope predict --file "$folder/api_keys"
[ -s "$folder/signing.pem" ] || mlops-manifest keygen --output "$folder/signing.pem"
cp "$folder/signing.pem.pub" "$folder/manifest_key"
for name in api_keys grafana_password log_url manifest_key pager_url postgres_password rate_storage redis_password tickets_url; do
    chmod 0444 "$folder/$name"
done
mlops-manifest sign --key "$folder/signing.pem" models/best_model.joblib models/policy.json
