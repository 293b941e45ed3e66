#!/usr/bin/env bash
# Installs what the ARM kernels are checked with, a cross compiler and an emulator, from Debian's packages.
set -euo pipefail
if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; then
  exit 0
fi
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  echo "Installing a cross compiler and an emulator for AArch64 ..."
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends g++-aarch64-linux-gnu qemu-user >/dev/null
else
  echo "The ARM kernels cannot be checked here: that takes aarch64-linux-gnu-g++ and qemu-aarch64." >&2
  echo "On Debian and Ubuntu: sudo apt-get install g++-aarch64-linux-gnu qemu-user" >&2
  exit 1
fi
