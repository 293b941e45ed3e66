#!/usr/bin/env bash
# Installs the engines that `qwenstack bench peers` compares with into .venv-peers, each on its own: one that does not
# build leaves its reason in .venv-peers/not-built, and the others are there. llama.cpp and its fork are compiled for this
# machine, which takes 10 to 30 minutes each, once.
set -euo pipefail
cd "$(dirname "$0")/.."
env=.venv-peers
[ -x "$env/bin/pip" ] || "${PYTHON:-python3}" -m venv "$env"
mkdir -p "$env/not-built"

pip_install() {
  "$env/bin/python" -m pip install --disable-pip-version-check --quiet "$@"
}

# peer PACKAGE ARGUMENTS: installs it, unless it is there.
peer() {
  local package=$1 log reason
  shift
  if "$env/bin/python" -m pip show --quiet "$package" 2>/dev/null; then
    return
  fi
  echo "Installing $package into $env ..."
  log=$env/not-built/$package.log
  if pip_install "$@" >"$log" 2>&1; then
    rm -f "$log" "$env/not-built/$package"
  else
    reason=$(grep -iE 'error' "$log" | tail -n 1 | cut -c1-300 || true)
    echo "${reason:-see $log}" >"$env/not-built/$package"
    echo "$package was not built: ${reason:-no error was printed} ($log)"
  fi
}

# ik_llama_source: prints a folder with ik_llama.cpp's sources and the file that their distribution leaves out, which only
# names the build: the release's own sources stop at it after ten minutes.
ik_llama_source() {
  local version=0.1.5 folder=$env/source common
  if ! "$env/bin/python" -m pip show --quiet ik-llama-cpp-python 2>/dev/null; then
    mkdir -p "$folder"
    "$env/bin/python" -m pip download --disable-pip-version-check --quiet --no-deps \
      --no-binary ik-llama-cpp-python --dest "$folder" "ik-llama-cpp-python==$version" >&2 || true
    tar -xzf "$folder/ik_llama_cpp_python-$version.tar.gz" -C "$folder" || true
    common=$folder/ik_llama_cpp_python-$version/vendor/ik_llama.cpp/common
    mkdir -p "$common/cmake"
    printf '%s\n' 'set(BUILD_NUMBER 0)' 'configure_file(common/build-info.cpp.in common/build-info.cpp)' \
      >"$common/cmake/build-info-gen-cpp.cmake"
  fi
  echo "$folder/ik_llama_cpp_python-$version"
}

# Libraries find each other in their folder, as those of published wheels do.
export CMAKE_ARGS="-DGGML_NATIVE=ON -DCMAKE_INSTALL_RPATH=\$ORIGIN ${CMAKE_ARGS:-}"
peer torch 'torch==2.13.0' # first, and the exact one: what asks for any torch would bring a build for GPUs
peer transformers 'transformers>=5.23' 'gguf>=0.19' accelerate
peer openvino-genai 'openvino-genai==2026.4.1.*'
peer llama-cpp-python --no-binary llama-cpp-python 'llama-cpp-python==0.3.36'
peer ik-llama-cpp-python "$(ik_llama_source)"
