#!/usr/bin/env bash
# All that needs a GPU, for a machine that has one for minutes: tests, measurements, evidence.
#
#   OUT=FOLDER benchmarks/gpu_session.sh [PART:SECONDS …]
#
# Parts: tests, evidence, and those of gpu.py. Each runs in a process of its own and may take so
# many seconds; one that fails or is late does not stop the others. In $OUT: session.log with all
# that was printed, gpu.jsonl with every measurement, evidence.tar.gz with the records of the runs.
# The short tables come last.
#
# The evidence takes PACS at 112 pixels and EfficientNet-Lite0's weights from $GRADSURGERY_PACS112
# and $GRADSURGERY_WEIGHTS, by default from $PACK. RUNS is how many runs share the card, LIMIT the
# seconds that everything may take.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD/src" PYTHONUNBUFFERED=1
OUT="${OUT:-gpu-session}" RUNS="${RUNS:-8}" DEVICE="${DEVICE:-cuda}" PYTHON="${PYTHON:-python3}" LIMIT="${LIMIT:-540}"
[ $# -gt 0 ] || set -- tests:100 rules:20 steps:170 command-line:70 launches:25 sharing:75 compiled:60
mkdir -p "$OUT"
LOG="$OUT/session.log"

evidence() {
  local data="${GRADSURGERY_PACS112:-${PACK:-}/pacs112}" runs="${TMPDIR:-/tmp}/evidence"
  local weights="${GRADSURGERY_WEIGHTS:-${PACK:-}/tf_efficientnet_lite0.safetensors}"
  timeout -s INT -k 15 "$1" "$PYTHON" -m gradsurgery sweep "$data" \
    --methods deep-all,agr-sum,agr-rand,pcgrad --targets all --seeds "${SEEDS:-20}" \
    --backbone tf_efficientnet_lite0 --weights "$weights" --image-size 112 --iterations 300 \
    --batch-size 32 --learning-rate 1e-4 --validate-every 25 --threads 1 --device "$DEVICE" \
    --workers "$RUNS" --out "$runs" --no-report ${EVIDENCE_OPTIONS:-} 2>&1 | tail -n 6
  (cd "$runs" && find . -name record.json -o -name plan.json -o -name failure.json) |
    tar -czf "$OUT/evidence.tar.gz" -C "$runs" -T -
  echo "$(find "$runs" -name record.json | wc -l) runs in $1 s; $(du -k "$OUT/evidence.tar.gz" | cut -f1) KiB"
  timeout 60 "$PYTHON" -m gradsurgery show "$runs"
}

processes() { # of pytest-xdist, where it is installed: Triton compiles a kernel for every shape
  "$PYTHON" -c "import xdist" 2>/dev/null && echo "-n ${TEST_PROCESSES:-6}"
}

run_part() {
  case "$1" in
    tests) timeout -k 10 "$2" "$PYTHON" -m pytest tests/gpu -W default -p no:cacheprovider ${TEST_OPTIONS:-} \
      --maxfail=40 --tb=short --durations=5 $(processes) ;;
    evidence) evidence "$2" ;;
    *) timeout -k 10 "$(($2 + 15))" "$PYTHON" benchmarks/gpu.py "$1:$2" --no-table \
      --device "$DEVICE" --out "$OUT/gpu.jsonl" ${GPU_OPTIONS:-} ;;
  esac
}

{
  for part in "$@"; do
    name="${part%%:*}" seconds="${part##*:}" begin=$SECONDS left=$((LIMIT - SECONDS - 10))
    [ "$seconds" -le "$left" ] || seconds=$left
    [ "$seconds" -ge 10 ] || { echo "== $name is left out: no time"; continue; }
    echo "== $name, at most $seconds s"
    run_part "$name" "$seconds" || echo "== $name ended with $?"
    echo "== $name took $((SECONDS - begin)) s"
  done
} 2>&1 | tee -a "$LOG"
[ -f "$OUT/gpu.jsonl" ] && "$PYTHON" benchmarks/gpu.py --table "$OUT/gpu.jsonl" | tee -a "$LOG"
grep -E "^(FAILED|ERROR|[0-9]+ (passed|failed)|== .* (took|ended|left))" "$LOG" | tail -n 60
exit 0
