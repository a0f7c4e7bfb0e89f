#!/usr/bin/env bash
# Instructions of one layer's attention, ours and ggml's: where clocks are noisy these are the same every time.
#
#   count-instructions.sh BENCH_KERNEL [SHAPE ...]
#
# valgrind knows no AVX-512: both sides are counted with AVX2, which is what BENCH_KERNEL has to be built for.
set -euo pipefail

bench=$1
shift
(($#)) || set -- "SmolLM2-135M f16 "{4096,16384}" "{1,512}

out=$(mktemp)
trap 'rm -f "$out"' EXIT

# millions of instructions between the beginning and the end of a graph of one layer, on one thread
count() {
    : > "$out"
    LD_BIND_NOW=1 valgrind --tool=callgrind --callgrind-out-file="$out" --toggle-collect=ggml_graph_compute \
        "$bench" 1 0 "$1" "$2" > /dev/null 2>&1 || { echo "counting $2 at '$1' failed" >&2; exit 1; }
    awk '/^totals:/ && $2 { n = $2 } END { if (n) printf "%.2f", n/1e6; else printf "-" }' "$out"
}

methods=(ours ours-v-trans flash not-flash)

printf '%-28s' 'millions of instructions'
printf ' %12s' "${methods[@]}"
printf '\n'

for shape; do
    printf '%-28s' "$shape"
    for method in "${methods[@]}"; do
        n=$(count "$shape" "$method")
        printf ' %12s' "$n"
    done
    printf '\n'
done
