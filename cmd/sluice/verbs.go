package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"strings"
	"time"

	"sluice/internal/clickhouse"
	"sluice/internal/config"
	"sluice/internal/keys"
)

type migrate struct {
	ClickHouse config.ClickHouse `embed:""`
	Kafka      config.Kafka      `embed:""`
	Topics     config.Topics     `embed:""`
}

// Run implements the verb.
func (m *migrate) Run(t *tool) error {
	client, err := openKafka(m.Kafka)
	if err != nil {
		return err
	}
	defer client.Close()
	cfg := clickhouse.Config{DSN: m.ClickHouse.DSN.Reveal(), Cluster: m.ClickHouse.Cluster}
	if err := clickhouse.Migrate(t.ctx, cfg, m.ClickHouse.DedupWindow); err != nil {
		return err
	}
	fmt.Fprintln(t.stdout, "ClickHouse tables are up to date:", m.ClickHouse.DSN)
	if err := client.EnsureTopics(t.ctx, m.Topics.Prefix, m.Topics.Partitions, m.Topics.Replication); err != nil {
		return err
	}
	id, err := client.Log(t.ctx, m.Topics.Prefix)
	if err != nil {
		return err
	}
	fmt.Fprintf(t.stdout, "Kafka topics are there: %s, %s, %s (log %s)\n", m.Topics.Batches(), m.Topics.Ledger(), m.Topics.Dead(), id)
	return nil
}

// resume lists stopped partitions; with --partition or --all it lets them go on.
type resume struct {
	output
	ClickHouse config.ClickHouse `embed:""`
	Topics     config.Topics     `embed:""`
	All        bool              `help:"Let every stopped partition go on."`
	Partition  *int              `placeholder:"NUMBER" help:"Let this partition go on."`
	At         *int64            `placeholder:"OFFSET" help:"Where to go on, if the offset that is shown is not the right one. Only with --partition."`
	Yes        bool              `help:"Do not ask. What lies between the stop and the offset to go on at is not stored."`
}

type stopped struct {
	Partition int       `json:"partition"`
	Offset    int64     `json:"offset"`
	ResumeAt  int64     `json:"resume_at"`
	Reason    string    `json:"reason"`
	Detail    string    `json:"detail"`
	Log       string    `json:"log"`
	Since     time.Time `json:"since"`
	Resumed   bool      `json:"resumed"`
}

// Validate refuses flags that say nothing together, or two things.
func (r *resume) Validate() error {
	switch {
	case r.Partition != nil && *r.Partition < 0:
		return fmt.Errorf("--partition=%d: want 0 or more", *r.Partition)
	case r.At != nil && *r.At < 0:
		return fmt.Errorf("--at=%d: want 0 or more", *r.At)
	case r.All && r.Partition != nil:
		return errors.New("--all and --partition: want one of them")
	case r.At != nil && r.Partition == nil:
		return errors.New("--at: want --partition with it: an offset is one partition's")
	case r.Yes && !r.All && r.Partition == nil:
		return errors.New("--yes: want --partition or --all with it")
	}
	return nil
}

// Run implements the verb.
func (r *resume) Run(t *tool) error {
	store, err := openStore(r.ClickHouse)
	if err != nil {
		return err
	}
	defer store.Close()
	stops, err := store.Stops(t.ctx, r.Topics.Batches())
	if err != nil {
		return err
	}
	list := make([]stopped, 0, len(stops))
	rows := [][]string{}
	found := false
	for _, s := range stops {
		chosen := r.All || r.Partition != nil && *r.Partition == s.At.Partition
		if chosen {
			found = true
			if r.At != nil {
				s.ResumeAt = *r.At
			}
			if !r.Yes {
				return fmt.Errorf("partition %d would go on at offset %d instead of %d (%s). If that is right, repeat with --yes",
					s.At.Partition, s.ResumeAt, s.At.Offset, s.Detail)
			}
			// Written down before any sink acts on it: who let it go on, and where.
			if err := store.Resume(t.ctx, s, operator()); err != nil {
				return err
			}
		}
		list = append(list, stopped{s.At.Partition, s.At.Offset, s.ResumeAt, s.Reason, s.Detail, s.At.Log, s.When, chosen})
		state := "stopped"
		if chosen {
			state = "resumed"
		}
		rows = append(rows, []string{strconv.Itoa(s.At.Partition), state, strconv.FormatInt(s.At.Offset, 10),
			strconv.FormatInt(s.ResumeAt, 10), s.Reason, s.When.UTC().Format(time.DateTime), s.Detail})
	}
	if (r.All || r.Partition != nil) && !found {
		return errors.New("no such partition is stopped; sluice resume without flags lists those that are")
	}
	if len(list) == 0 && r.Output != "json" {
		fmt.Fprintln(t.stdout, "No partition is stopped.")
		return nil
	}
	return r.print(t.stdout, list, []string{"PARTITION", "STATE", "STOPPED AT", "GOES ON AT", "REASON", "SINCE (UTC)", "DETAIL"}, rows)
}

// operator names who let a partition go on, for the record.
func operator() string {
	u, err := user.Current()
	if err != nil {
		return "unknown"
	}
	return u.Username
}

// keysFile is the file that a verb of keys works on.
type keysFile struct {
	Keys config.Keys `embed:""`
}

// Validate asks for the file: unlike the collector, these verbs are nothing
// without one.
func (k keysFile) Validate() error {
	if k.Keys.File == "" {
		return errors.New("SLUICE_KEYS_FILE is not set: name the keys file with it or with --keys-file")
	}
	return nil
}

type keysAdd struct {
	output
	keysFile
	Project string   `required:"" help:"Project the key writes to."`
	ID      string   `help:"Name of the key; default: one is made."`
	Scope   []string `enum:"exposures,events" help:"What the key may send: exposures, events. Default: everything."`
	Rate    float64  `help:"Events a second; 0: unlimited."`
	Burst   int      `help:"Events at once; 0: one whole batch."`
	Prefix  string   `help:"What the key begins with, for SDKs that look at it (statsig-node wants secret-)."`
}

// Run implements the verb.
func (k *keysAdd) Run(t *tool) error {
	if k.ID == "" {
		// Made here, so that it can be told: it is what the key is disabled by.
		k.ID = "key-" + strings.ToLower(rand.Text()[:8])
	}
	key, err := keys.Add(k.Keys.File, keys.NewKey{ID: k.ID, Project: k.Project, Scopes: k.Scope, Rate: k.Rate, Burst: k.Burst, Prefix: k.Prefix})
	if err != nil {
		return err
	}
	if k.Output == "json" {
		return k.print(t.stdout, map[string]string{"id": k.ID, "key": key, "project": k.Project}, nil, nil)
	}
	fmt.Fprintln(t.stdout, key)
	fmt.Fprintf(t.stderr, "This is the only time the key %s is shown. Running collectors know it within seconds.\n", k.ID)
	return nil
}

type keysList struct {
	output
	keysFile
}

// Run implements the verb.
func (k *keysList) Run(t *tool) error {
	list, err := keys.List(k.Keys.File)
	if err != nil {
		return err
	}
	type shown struct {
		ID       string    `json:"id"`
		Project  string    `json:"project"`
		Scopes   []string  `json:"scopes"`
		Rate     float64   `json:"rate"`
		Burst    int       `json:"burst"`
		Disabled bool      `json:"disabled"`
		Created  time.Time `json:"created"`
	}
	out := make([]shown, 0, len(list))
	rows := [][]string{}
	for _, e := range list {
		out = append(out, shown{e.ID, e.Project, append([]string{}, e.Scopes...), e.Rate, e.Burst, e.Disabled, e.Created})
		state, scopes, rate := "active", "all", "unlimited"
		if e.Disabled {
			state = "disabled"
		}
		if len(e.Scopes) > 0 {
			scopes = strings.Join(e.Scopes, ",")
		}
		if e.Rate > 0 {
			rate = strconv.FormatFloat(e.Rate, 'g', -1, 64) + "/s"
		}
		rows = append(rows, []string{e.ID, e.Project, state, scopes, rate, e.Created.UTC().Format(time.DateTime)})
	}
	return k.print(t.stdout, out, []string{"ID", "PROJECT", "STATE", "SCOPES", "RATE", "CREATED (UTC)"}, rows)
}

type keysDisable struct {
	keysFile
	ID string `arg:"" help:"The key's id, as sluice keys list shows it."`
}

// Run implements the verb.
func (k *keysDisable) Run(t *tool) error {
	if err := keys.Disable(k.Keys.File, k.ID); err != nil {
		return err
	}
	fmt.Fprintf(t.stdout, "%s is disabled. Running collectors know it within seconds.\n", k.ID)
	return nil
}

type keysEnable struct {
	keysFile
	ID string `arg:"" help:"The key's id, as sluice keys list shows it."`
}

// Run implements the verb.
func (k *keysEnable) Run(t *tool) error {
	if err := keys.Enable(k.Keys.File, k.ID); err != nil {
		return err
	}
	fmt.Fprintf(t.stdout, "%s is enabled. Running collectors know it within seconds.\n", k.ID)
	return nil
}
