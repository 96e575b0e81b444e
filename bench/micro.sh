#!/usr/bin/env bash
# The micro-benchmarks of the stages of both hot paths, of another commit and of this
# checkout by turns, compared with benchstat: time, bytes and allocations.
#   [BASE=HEAD~1] [COUNT=6] [BENCHTIME=40ms] bench/micro.sh
# Without a BASE that is there (a shallow clone has none) it prints this checkout's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
base=${BASE:-HEAD~1}
# Those that need no server.
packages=(./pkg/jsonscan ./pkg/schema ./internal/keys ./internal/ingest ./internal/ledger)
dir=$(mktemp -d)
trap 'git worktree remove --force "$dir/tree" 2>/dev/null || true; rm -rf "$dir"' EXIT
compile() { # the checkout, where to
	local package
	mkdir -p "$2"
	for package in "${packages[@]}"; do
		[ ! -d "$1/$package" ] || (cd "$1" && go test -c -o "$2/$(basename "$package").test" "$package")
	done
}
measure() { # the checkout, what was compiled of it, where to
	local package test
	for package in "${packages[@]}"; do
		test="$2/$(basename "$package").test"
		[ ! -x "$test" ] || (cd "$1/$package" && echo "pkg: sluice/${package#./}" && "$test" -test.run '^$' -test.bench . -test.benchmem -test.benchtime "${BENCHTIME:-40ms}") >>"$3"
	done
}
sides=(head)
compile . "$dir/head"
if git rev-parse --verify --quiet "$base^{commit}" >/dev/null; then
	sides=(base head)
	git worktree add --quiet --detach "$dir/tree" "$base"
	compile "$dir/tree" "$dir/base"
else
	echo "$base is not there: nothing to compare with" >&2
fi
for _ in $(seq "${COUNT:-6}"); do
	[ ${#sides[@]} -eq 1 ] || measure "$dir/tree" "$dir/base" "$dir/base.txt"
	measure . "$dir/head" "$dir/head.txt"
done
if [ ${#sides[@]} -eq 1 ]; then
	go tool -modfile=tools/go.mod benchstat "this checkout=$dir/head.txt"
else
	go tool -modfile=tools/go.mod benchstat "$base=$dir/base.txt" "this checkout=$dir/head.txt"
fi
