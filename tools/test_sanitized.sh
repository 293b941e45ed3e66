#!/usr/bin/env bash
# Runs the kernels under the address and undefined-behaviour sanitizers: the program of checksums, then the kernels' own
# tests with a sanitized extension module. A report ends either with an error. Takes the Python that has the tests'
# packages: test_sanitized.sh .venv-test/bin/python
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
PATH="$(dirname "$python"):$PATH" # where pip puts cmake
at=build/sanitize

cmake -S . -B $at -DQWENSTACK_SANITIZE=ON -DQWENSTACK_KERNEL_SUMS=ON -DPython_EXECUTABLE="$python" >/dev/null
echo "Building with sanitizers: this takes many minutes the first time ..."
cmake --build $at --parallel 2

echo "Computing checksums ..."
$at/kernel_sums >$at/kernel_sums.txt
echo "No report; instruction sets: $(cut -d ' ' -f 1 $at/kernel_sums.txt | sort -u | xargs)"

# The package once more, around the sanitized module. Without `site` no editable installation comes before it.
rm -rf $at/package
mkdir -p $at/package
cp -r src/qwenstack $at/package/
cmake --install $at --prefix $at/package >/dev/null
search_path=$("$python" -c 'import sys; print(":".join(path for path in sys.path if path.endswith("site-packages")))')
compiler=$(sed -n 's/^CMAKE_CXX_COMPILER:[^=]*=//p' $at/CMakeCache.txt)
# Python itself is not sanitized: the libraries are loaded before it, and what it never frees is not looked for.
sanitized() {
  LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libstdc++.so.6)" \
    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH="$PWD/$at/package:$search_path" PYTHONDONTWRITEBYTECODE=1 \
    "$python" -S "$@"
}
sanitized -c "import qwenstack.kernels._native as m; assert '/$at/package/' in m.__file__, m.__file__"
sanitized -m pytest tests/numerics/kernels tests/unit/kernels --timeout 3600 \
  --ignore tests/numerics/kernels/test_kernel_sums.py -p no:cacheprovider --capture=sys # reports go to the terminal
