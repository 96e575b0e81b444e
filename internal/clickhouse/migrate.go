package clickhouse

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"text/template"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/pressly/goose/v3"

	"sluice/migrations"
)

// Migrate brings the database to the newest version: it creates the database if
// it is not there, then runs each migration that is not recorded. Several
// processes may do so at once, since every statement may run twice.
//
// window is the dedup window, in seconds granularity: batches keeps a record for
// that long.
func Migrate(ctx context.Context, cfg Config, window time.Duration) error {
	opts, err := options(cfg)
	if err != nil {
		return err
	}
	database := opts.Auth.Database
	c := &Client{cfg: cfg}
	bare := *opts
	bare.Auth.Database = ""
	admin := ch.OpenDB(&bare)
	defer admin.Close()
	if _, err := admin.ExecContext(ctx, fmt.Sprintf("CREATE DATABASE IF NOT EXISTS `%s` %s", database, onCluster(cfg.Cluster))); err != nil {
		return c.classify(fmt.Errorf("create database %s: %w", database, err))
	}

	db := ch.OpenDB(opts)
	defer db.Close()
	list, err := goMigrations(cfg.Cluster)
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectClickHouse, db, nil,
		goose.WithGoMigrations(list...), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("prepare migrations: %w", err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return c.classify(fmt.Errorf("migrate %s: %w", database, err))
	}
	return c.keepWindow(ctx, db, database, window)
}

// keepWindow sets the time to live of batches where it is not the window's.
func (c *Client) keepWindow(ctx context.Context, db *sql.DB, database string, window time.Duration) error {
	var ddl string
	if err := db.QueryRowContext(ctx, "SELECT create_table_query FROM system.tables WHERE database = ? AND name = 'batches'", database).Scan(&ddl); err != nil {
		return c.classify(fmt.Errorf("read the time to live of batches: %w", err))
	}
	seconds := strconv.FormatInt(int64(window/time.Second), 10)
	if window <= 0 || strings.Contains(ddl, "toIntervalSecond("+seconds+")") {
		return nil
	}
	_, err := db.ExecContext(ctx, fmt.Sprintf(
		"ALTER TABLE batches %s MODIFY TTL toDateTime(stored_at) + INTERVAL %s SECOND SETTINGS materialize_ttl_after_modify = 0",
		onCluster(c.cfg.Cluster), seconds))
	if err != nil {
		return c.classify(fmt.Errorf("set the time to live of batches to %s: %w", window, err))
	}
	return nil
}

func onCluster(cluster string) string {
	if cluster == "" {
		return ""
	}
	return "ON CLUSTER `" + cluster + "`"
}

// goMigrations renders the .sql files for one server or a cluster.
func goMigrations(cluster string) ([]*goose.Migration, error) {
	funcs := template.FuncMap{
		"on": func() string { return onCluster(cluster) },
		"engine": func(name string, args ...string) string {
			list := strings.Join(args, ", ")
			if cluster == "" {
				return name + "(" + list + ")"
			}
			where := "'/clickhouse/tables/{shard}/{database}/{table}', '{replica}'"
			if list != "" {
				where += ", " + list
			}
			return "Replicated" + name + "(" + where + ")"
		},
		// Counted in parts, so far more than the blocks that may be in doubt.
		"window": func() string {
			if cluster == "" {
				return "non_replicated_deduplication_window = 10000"
			}
			return "replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 2592000"
		},
	}
	names, err := fs.Glob(migrations.Files, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	var out []*goose.Migration
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return nil, fmt.Errorf("migration %s: %w", name, err)
		}
		text, err := fs.ReadFile(migrations.Files, name)
		if err != nil {
			return nil, fmt.Errorf("migration %s: %w", name, err)
		}
		tpl, err := template.New(path.Base(name)).Funcs(funcs).Parse(string(text))
		if err != nil {
			return nil, fmt.Errorf("migration %s: %w", name, err)
		}
		var ddl strings.Builder
		if err := tpl.Execute(&ddl, nil); err != nil {
			return nil, fmt.Errorf("migration %s: %w", name, err)
		}
		out = append(out, goose.NewGoMigration(version, &goose.GoFunc{RunDB: runAll(name, statements(ddl.String()))}, nil))
	}
	return out, nil
}

func runAll(name string, list []string) func(context.Context, *sql.DB) error {
	return func(ctx context.Context, db *sql.DB) error {
		for i, s := range list {
			if _, err := db.ExecContext(ctx, s); err != nil {
				return fmt.Errorf("%s, statement %d: %w", name, i+1, err)
			}
		}
		return nil
	}
}

// statements cuts a file at the semicolons that end a line, and drops comments.
func statements(text string) []string {
	var out []string
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "--") {
			continue
		}
		b.WriteString(line)
		if strings.HasSuffix(strings.TrimRight(line, " \n"), ";") {
			out = append(out, strings.TrimSuffix(strings.TrimSpace(b.String()), ";"))
			b.Reset()
		}
	}
	if s := strings.TrimSpace(b.String()); s != "" {
		out = append(out, s)
	}
	return out
}
