#!/usr/bin/env bash
# Instructions of a layer's attention, ours and ggml's: where clocks are noisy these are the same every time.
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

# inclusive millions of instructions of the functions that match
count() {
    callgrind_annotate --inclusive=yes --threshold=100 "$out" |
        awk -v name="$1" '$0 ~ name && !seen[$0]++ { gsub(/,/, "", $1); n += $1 } END { printf "%.1f", n/1e6 }'
}

printf '%-28s %10s %10s %10s\n' 'millions of instructions' ours flash 'not flash'
for shape; do
    # the warm-up and one run, on one thread
    valgrind --tool=callgrind --callgrind-out-file="$out" "$bench" 1 1 "$shape" > /dev/null 2>&1
    printf '%-28s %10s %10s %10s\n' "$shape" "$(count '::compute_attn\(')" "$(count ':ggml_compute_forward_flash_attn_ext ')" \
        "$(count ':ggml_compute_forward_(mul_mat|soft_max|cont|dup) ')"
done
