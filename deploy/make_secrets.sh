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
for name in postgres_password redis_password; do
    [ -s "$folder/$name" ] || random > "$folder/$name"
done
printf 'postgresql://mlops:%s@postgres:5432/mlops' "$(cat "$folder/postgres_password")" > "$folder/log_url"
printf 'redis://:%s@redis:6379/0' "$(cat "$folder/redis_password")" > "$folder/rate_storage"
[ -s "$folder/api_keys" ] || mlops-keys create --name first --scope predict --file "$folder/api_keys"
[ -s "$folder/signing.pem" ] || mlops-manifest keygen --output "$folder/signing.pem"
cp "$folder/signing.pem.pub" "$folder/manifest_key"
chmod 0444 "$folder/api_keys" "$folder/log_url" "$folder/manifest_key" "$folder/postgres_password" "$folder/rate_storage" "$folder/redis_password"
mlops-manifest sign --key "$folder/signing.pem" models/best_model.joblib models/policy.json
