// Package migrations carries the ClickHouse DDL. Files run in the order of
// their numbers, forward only. Every statement may run twice (IF NOT EXISTS,
// CREATE OR REPLACE VIEW): several sinks start at once, and ClickHouse has no
// lock that would let one of them go first.
//
// The files are text/template: {{engine "ReplacingMergeTree" "version"}} is the
// replicated engine where a cluster is set, {{on}} its ON CLUSTER clause.
package migrations

import "embed"

// Files holds the numbered .sql files.
//
//go:embed *.sql
var Files embed.FS
