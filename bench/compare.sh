#!/usr/bin/env bash
# Measures the collector and the sink of another commit and of this checkout, by turns,
# with this checkout's sluice bench, and compares the figures with benchstat.
#   BASE=<commit> [BENCH=collector] [ONLY=native,one] [RUNS=6] [BENCHFLAGS=…] bench/compare.sh
# By turns, so that a machine that is busy for a while slows down both. RUNS below 4
# are too few for benchstat to call anything a difference.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
base=${BASE:?name the commit to compare with: BASE=HEAD~1}
git rev-parse --verify --quiet "$base^{commit}" >/dev/null || { echo "BASE=$base is no commit of this repository" >&2; exit 2; }
dir=$(mktemp -d)
trap 'git worktree remove --force "$dir/tree" 2>/dev/null || true; rm -rf "$dir"' EXIT
git worktree add --quiet --detach "$dir/tree" "$base"
(cd "$dir/tree" && CGO_ENABLED=0 go build -trimpath -o "$dir/base/" ./cmd/collector ./cmd/sink)
CGO_ENABLED=0 go build -trimpath -o "$dir/head/" ./cmd/collector ./cmd/sink ./cmd/sluice
only=()
[ -z "${ONLY:-}" ] || only=(--only "$ONLY")
for run in $(seq "${RUNS:-6}"); do
	for side in base head; do
		echo "run $run, $side" >&2
		# shellcheck disable=SC2086 # flags are words
		"$dir/head/sluice" bench "${BENCH:-collector}" "${only[@]}" --programs "$dir/$side" --runs 1 --out '' --go-bench "$dir/$side-$run.txt" ${BENCHFLAGS:-} >/dev/null
	done
done
cat "$dir"/base-*.txt >"$dir/base.txt"
cat "$dir"/head-*.txt >"$dir/head.txt"
go tool -modfile=tools/go.mod benchstat "$base=$dir/base.txt" "this checkout=$dir/head.txt"
