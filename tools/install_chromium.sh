#!/usr/bin/env bash
# Installs Chromium for the browser tests from Debian's packages, where that is possible; elsewhere those tests skip.
set -euo pipefail
if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then
  exit 0
fi
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  echo "Installing Chromium for the browser tests ..."
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk >/dev/null; }; then
    echo "Chromium could not be installed: the browser tests will skip."
  fi
else
  echo "No Chromium here, and no right to install it: the browser tests will skip."
fi
