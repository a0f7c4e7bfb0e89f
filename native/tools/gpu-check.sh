#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU is wanted for, in under nine minutes and without a network: build for that card,
# tests, speed against stock llama.cpp.
#
#   gpu-check.sh prepare DIR                             # where there is a network: collects in DIR what the other machine needs
#   gpu-check.sh run [--cpu] [--only STEP,...] DIR [OUT] # there; OUT is $OUT or build/gpu-check-results by default
#
# DIR holds base/ and the models' parts, NAME.00, NAME.01, ..., so small that they can travel one by one where only so much is carried at
# a time: `run` keeps those that it finds, and a model is there once all of its parts have been. Steps are independent: each has a time limit,
# one that fails stops no other, what does not fit into the budget is skipped, and summary.txt says so. Everything that is written goes to
# OUT/log.txt. build/gpu-check-work is kept, so that a second run has little to build.
#
# --cpu does the same without CUDA: a dry run, with models and depths that are tiny.
#
#   BUDGET   seconds for all steps of a run (540)
#   ARCH     compute capability to build for: 90 for 9.0 (what nvidia-smi says)
#   PYTHON   of the other machine, with numpy (python3); prepare: its version (3.12)
#   DEPTHS, BENCH_OPTIONS   of pyselfextend bench
#   TEST_JOBS               tests of devices at a time (4)
# shellcheck disable=SC2329 # steps are called by their names
set -uo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
self=$root/native/tools/gpu-check.sh
export CCACHE_BASEDIR=${CCACHE_BASEDIR:-$root} # as in the Makefile

# what is not with every PyTorch, or in a version that nobody has tried here; numpy is that of the machine
wheels='click gguf diskcache jinja2 markupsafe markdown-it-py mdurl psutil pygments pytest iniconfig pluggy packaging
    pyyaml rich tqdm typing-extensions'
n_part=$((47 * 1024 * 1024)) # bytes that a part has at most

fail() {
    echo "gpu-check: $*" >&2
    exit 1
}

sha256() {
    sha256sum "$1" | cut -d' ' -f1
}

#
# prepare
#

prepare() {
    local dir=$1 version=${PYTHON:-3.12} python=$root/.venv/bin/python sdist unpacked model
    [ -x "$python" ] || fail "run make setup first"
    mkdir -p "$dir/base/wheels"
    git -C "$root" describe --always --dirty --abbrev=12 > "$dir/base/commit" || echo unknown > "$dir/base/commit"

    # the packed sdist is larger than what is built of it
    sdist=$("$root/.venv/bin/cmake" -D "PIN=$root/native/LLAMA_CPP_PIN" -D "PYTHON=$python" -P "$root/native/cmake/fetch.cmake" | tail -n 1) ||
        fail "llama.cpp could not be fetched"
    unpacked=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$unpacked'" EXIT
    "$python" - "$sdist" "$unpacked" "$root/native/cmake/apply.cmake" << 'PYTHON' || fail "$sdist could not be unpacked"
import re, sys, tarfile
listed = re.search(r"set\(LLAMA_CPP_PARTS ([^)]*)\)", open(sys.argv[3]).read())[1].split()
parts = ("PKG-INFO", "llama_cpp/", *(f"vendor/llama.cpp/{part}" for part in listed))
with tarfile.open(sys.argv[1]) as archive:
    members = [m for m in archive if (m.name.partition("/")[2] + "/" * m.isdir()).startswith(parts)]
    for member in members:
        member.name = member.name.partition("/")[2]
    archive.extractall(sys.argv[2], members, filter="data")
PYTHON
    (cd "$unpacked" && "$root/.venv/bin/cmake" -E tar cJf "$dir/base/source.tar.xz" .) || fail "the source could not be packed"

    rm -f "$dir"/base/wheels/*
    local platforms=() n
    for n in 39 38 37 36 35 34 31 28 27 24 17 5; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
    # shellcheck disable=SC2086
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
        --python-version "$version" "${platforms[@]}" --platform manylinux2014_x86_64 --dest "$dir/base/wheels" $wheels ||
        fail "wheels for Python $version could not be downloaded"

    mkdir -p "$dir/base/bin" # what applies the series, if the other machine has no git either
    cp "$(command -v patch)" "$dir/base/bin/" || echo "gpu-check: there is no patch here; the other machine needs git or patch" >&2

    model=$("$python" -c 'from pyselfextend.default_model import find_model; print(find_model())') || fail "there is no SmolLM2"
    rm -f "$dir"/smollm2.*
    split --number $((($(stat -L -c %s "$model") + n_part - 1) / n_part)) --numeric-suffixes "$model" "$dir/smollm2."
    echo "$(sha256 "$model") smollm2" > "$dir/base/models"
    echo "$dir, in MiB:"
    (cd "$dir" && du --apparent-size --block-size=1M -s base smollm2.*)
}

# Configure in $1 with the options that follow; $build is where.
configure() {
    local build=$1 cmake=$2
    shift 2
    CC=/usr/bin/gcc CXX=/usr/bin/g++ CUDAHOSTCXX=/usr/bin/g++ "$cmake" -S "$root" -B "$build" -G Ninja \
        -D PYSELFEXTEND_BUILD_SERVER=OFF -D PYSELFEXTEND_BUILD_STOCK=ON -D PYSELFEXTEND_BUILD_TESTS=ON "$@"
}

# CMake's options for CUDA, for the card of $1. PyTorch brings cuBLAS where the toolkit has none. The folder $2 gets links to CUDA's libraries,
# for the linker and LD_LIBRARY_PATH.
cuda_options() {
    local arch=$1 helpers=$2 python=$3 nvcc cuda nvidia='' library file version
    nvcc=$(command -v nvcc) || { echo "there is no nvcc" >&2; return 1; }
    cuda=$("$nvcc" --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p' | head -n 1)
    [ -n "$cuda" ] || cuda=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
    printf '%s\n' -DGGML_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$arch-real" -DGGML_CUDA_NCCL=OFF
    mkdir -p "$helpers"
    if ! ls "$cuda"/include/cublas_v2.h /usr/include/cublas_v2.h > /dev/null 2>&1; then
        nvidia=$("$python" -c 'import nvidia, glob
print(next(p for base in nvidia.__path__ for p in glob.glob(base + "/cu*") if glob.glob(p + "/include/cublas_v2.h")))') || {
            echo "neither $cuda nor $python has cuBLAS" >&2
            return 1
        }
        printf '%s\n' "-DCMAKE_CUDA_FLAGS=-I$nvidia/include"
        printf '%s\n' "-DCUDA_cublas_LIBRARY=$helpers/libcublas.so" "-DCUDA_cublasLt_LIBRARY=$helpers/libcublasLt.so"
    fi
    for library in cudart cublas cublasLt; do
        file=$(find -L ${nvidia:+"$nvidia/lib"} "$cuda"/lib64 "$cuda"/targets/*/lib -maxdepth 1 -name "lib$library.so.*" 2> /dev/null | head -n 1)
        [ -n "$file" ] || continue
        version=${file##*.so.}
        ln -sf "$file" "$helpers/lib$library.so.${version%%.*}"
        ln -sf "$file" "$helpers/lib$library.so"
    done
    # the driver's library, or its stub: without a symbol of it nothing of ours fails to link
    if ! find "$cuda/" -name libcuda.so -path '*stubs*' 2> /dev/null | grep -q .; then
        file=$(find /usr/local/nvidia /usr/lib /usr/lib64 -name libcuda.so.1 2> /dev/null | head -n 1)
        if [ -n "$file" ]; then
            ln -sf "$file" "$helpers/libcuda.so"
        else
            /usr/bin/gcc -shared -Wl,-soname,libcuda.so.1 -o "$helpers/libcuda.so" -x c /dev/null
        fi
        printf '%s\n' "-DCUDA_cuda_driver_LIBRARY=$helpers/libcuda.so"
    fi
}

#
# the steps of a run; each is called in a process of its own, in the repository's folder
#

step_info() {
    {
        cat "$dir/base/commit"
        [ -n "$cpu" ] || nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv,noheader
        [ -n "$cpu" ] || nvcc --version | tail -n 2
        /usr/bin/g++ --version | head -n 1
        cmake --version | head -n 1
        "$python" -c 'import numpy, platform; print("Python", platform.python_version(), "numpy", numpy.__version__)'
        nproc
        uname -a
    } 2>&1 | tee "$out/machine.txt"
}

step_unpack() {
    rm -rf "$work/sdist" "$work/site"
    mkdir -p "$work/sdist" "$work/site" "$work/parts" "$work/models"
    (cd "$work/sdist" && cmake -E tar xf "$dir/base/source.tar.xz") || return 1
    cp -r "$work/sdist/llama_cpp" "$work/site/"
    local wheel part sum name
    for wheel in "$dir"/base/wheels/*.whl; do
        "$python" -m zipfile -e "$wheel" "$work/site" || return 1
    done
    for part in "$dir"/*.[0-9][0-9]; do
        [ ! -e "$part" ] || cp "$part" "$work/parts/"
    done
    while read -r sum name; do
        [ ! -e "$work/models/$name.gguf" ] || continue
        cat "$work/parts/$name".[0-9][0-9] > "$work/models/$name.partial" 2> /dev/null
        if [ "$(sha256 "$work/models/$name.partial")" = "$sum" ]; then
            mv "$work/models/$name.partial" "$work/models/$name.gguf"
        else
            echo "$name is not whole yet"
            rm "$work/models/$name.partial"
        fi
    done < "$dir/base/models"
}

# Beside the build: it takes the disk's time, not the cores'.
make_models() {
    local name small=()
    for name in 135m 270m 8b; do
        [ -z "$cpu" ] || small=(--vocab 512 --layers "$([ "$name" = 270m ] && echo 6 || echo 2)") # the sixth has no window
        [ -e "$work/models/$name.gguf" ] ||
            "$python" models/make_random.py "$name" "${small[@]}" --out "$work/models/$name.gguf" || return 1
    done
}

step_build() {
    local options=(-DGGML_RPC=ON)
    if [ -z "$cpu" ]; then
        mapfile -t options < <(cuda_options "${ARCH:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)}" \
            "$work/helpers" "$python")
        ((${#options[@]})) || return 1
    fi
    configure "$work/build" cmake "-DPYSELFEXTEND_LLAMA_CPP_SDIST=$work/sdist" "-DPython_EXECUTABLE=$(command -v "$python")" "${options[@]}" &&
        cmake --build "$work/build" --target pyselfextend llama-stock || return 1
    rm -rf "$work/site/pyselfextend"
    cp -r pyselfextend "$work/site/" && cmake --install "$work/build" --prefix "$work/site" --component pyselfextend || return 1
    local version info
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
    info=$work/site/pyselfextend-$version.dist-info # the package asks for its version
    mkdir -p "$info" && printf 'Metadata-Version: 2.1\nName: pyselfextend\nVersion: %s\n' "$version" > "$info/METADATA"
    if ldd "$work"/site/pyselfextend/lib/*.so "$work"/build/libllama-stock/*.so | grep 'not found'; then
        return 1
    fi
}

has_device_program() {
    cmake --build "$work/build" --target help | grep -q '^test-attn-device:'
}

step_program() {
    has_device_program || { echo "there is no target test-attn-device"; return 75; }
    cmake --build "$work/build" --target test-attn-device && "$(find "$work/build" -name test-attn-device -type f | head -n 1)"
}

# $1: seconds for a test; $2: the file of the results; then words of pytest
run_tests() {
    local limit=$1 json=$2
    shift 2
    # pytest's plug-ins and the warnings of other versions of libraries are this machine's, not ours
    export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTEST_ADDOPTS='-o filterwarnings=default' PYSELFEXTEND_LIB=$work/build/bin
    [ -n "$cpu" ] || export PYSELFEXTEND_DEVICE=cuda
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
    "$python" tests/one_by_one.py --limit "$limit" --total "$((${seconds:?} - 10))" --jobs "${TEST_JOBS:-4}" --json "$json" "$@"
}

step_tests() {
    local these=tests/test_devices.py
    if [ -n "$cpu" ]; then
        run_tests 120 "$out/tests.json" "$these" -k 'test_models or places'
    else
        run_tests 120 "$out/tests.json" "$these" -k 'not real_models'
    fi
}

has_model() {
    [ -e "$work/models/smollm2.gguf" ] || { echo "SmolLM2 is not here yet"; return 1; }
}

step_real() {
    has_model || return 75
    PYSELFEXTEND_SMOLLM2=$work/models/smollm2.gguf run_tests 120 "$out/real.json" tests/test_devices.py -k 'real_models and smollm2'
}

step_passkey() {
    has_model || return 75
    local options=(--gpu-layers -1 --lengths "4096,8192,12288,16384" --setting "plain,4:1024")
    [ -z "$cpu" ] || options=(--lengths 512 --depths 0.5 --setting 4:64)
    (cd "$work" && rm -rf passkey && "$python" -m pyselfextend eval passkey models/smollm2.gguf --digits 5 "${options[@]}" \
        --no-report --out passkey && cat passkey/results.jsonl)
}

bench() {
    local name=$1 options=(--gpu-layers 99 --rounds 3 --depths "${DEPTHS:-0,4096,16384,65536}" --threads 4)
    [ -z "$cpu" ] || options=(--rounds 1 --depths "0,64" --prefill 32 --decode 2 --batch 64)
    while [ -e "$work/models/making" ] && [ ! -e "$work/models/$name.gguf" ]; do sleep 1; done
    # shellcheck disable=SC2086
    (cd "$work" && "$python" -m pyselfextend bench "models/$name.gguf" --stock build/libllama-stock --stock-flash-attn on --no-plain \
        --pairs 16:1024 "${options[@]}" --json "$out/bench-$name.json" ${BENCH_OPTIONS:-})
}

step_bench_135m() { bench 135m; }
step_bench_270m() { bench 270m; }
step_bench_8b() { bench 8b; }

#
# run
#

# $1: step, $2: its limit in seconds
try() {
    local name=$1 limit=$2 left began status outcome
    if [ -n "$only" ] && [[ ,$only, != *,$name,* ]]; then
        return
    fi
    left=$((budget - SECONDS))
    ((limit < left)) || limit=$left
    if ((limit < 15)); then
        note "$name" 0 "skipped: the budget of $budget s is used"
        return
    fi
    echo "== $name, at most $limit s" >> "$out/log.txt"
    began=$SECONDS
    seconds=$limit timeout --kill-after=10 "$limit" bash "$self" step "$name" >> "$out/log.txt" 2>&1 < /dev/null
    status=$?
    case $status in
        0) outcome=ok ;;
        75) outcome="skipped: $(tail -n 1 "$out/log.txt")" ;;
        124 | 137) outcome="timed out" ;;
        *) outcome="failed, status $status" ;;
    esac
    note "$name" $((SECONDS - began)) "$outcome"
    case $outcome in ok | skipped*) ;; *) failed=1 && tail -n 12 "$out/log.txt" | cut -c1-300 ;; esac
}

note() {
    printf '%-11s %4d s  %s\n' "$@" | tee -a "$out/summary.txt"
}

run() {
    cpu='' only=''
    while [[ ${1:-} == --* ]]; do
        case $1 in
            --cpu) cpu=1 ;;
            --only) only=${2:?} && shift ;;
            *) fail "unknown option $1" ;;
        esac
        shift
    done
    [ -n "${1:-}" ] || fail "run needs the folder that prepare made"
    dir=$(cd "$1" && pwd) || exit 1
    out=${2:-${OUT:-$root/build/gpu-check-results}}
    mkdir -p "$out" || exit 1
    out=$(cd "$out" && pwd)
    work=$root/build/gpu-check-work${cpu:+-cpu}
    budget=${BUDGET:-540} failed=0 python=${PYTHON:-python3}
    mkdir -p "$work/models"
    cd "$root" || exit 1
    # the package's libraries and modules are found there, by programs that these start as well
    export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$work/helpers
    export dir out work cpu python PYTHONPATH=$work/site PYTHONDONTWRITEBYTECODE=1 PATH=$PATH:$dir/base/bin
    : > "$out/summary.txt"
    : > "$out/log.txt"

    try info 20
    try unpack 90
    if [ -z "$only" ]; then
        touch "$work/models/making"
        { make_models >> "$work/models.log" 2>&1; rm -f "$work/models/making"; } &
        making=$!
        trap 'kill "$making" 2> /dev/null; rm -f "$work/models/making"' EXIT
    fi
    try build 360
    try program 60
    try tests 240
    try real 120
    try passkey 90
    try bench_135m 100
    try bench_270m 100
    try bench_8b 200
    note all "$SECONDS" "of $budget s; $([ "$failed" = 0 ] && echo 'nothing failed' || echo 'there are failures')"
    exit "$failed"
}

{ # read as a whole: this file may be changed while it runs
    case ${1:-} in
        prepare)
            [ -n "${2:-}" ] || fail "prepare needs a folder"
            mkdir -p "$2" || exit 1
            prepare "$(cd "$2" && pwd)"
            ;;
        run) shift && run "$@" ;;
        step) "step_$2" ;;
        *) sed -n '2,/^set /{/^set /d; /^# shellcheck/d; s/^# \{0,1\}//; p}' "$self" && [[ ${1:-} == --help ]] ;;
    esac
    exit
}
