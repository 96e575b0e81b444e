package prove

import (
	"context"
	"slices"
)

// Process is a part of the pipeline in a process of its own.
type Process interface {
	// Kill ends it with SIGKILL and returns when it is gone.
	Kill() error
	// Pause stops it (SIGSTOP): its connections stay, and nothing answers.
	Pause() error
	// Resume lets it go on; it is no error for one that is not paused or gone.
	Resume() error
	// Restart starts it again on the same addresses and data, and returns when it
	// serves; it must not wait for the other parts of the pipeline.
	Restart(ctx context.Context) error
	// Err says how it ended when nobody asked it to; else it is nil.
	Err() error
}

// Collector is a collector and what is around it.
type Collector struct {
	Name  string
	Admin string // host:port of /metrics
	Process
	Client *Wire // clients' way to it
	Kafka  *Wire // its way to Kafka; nil where Kafka is not the stack's
	// SpoolFault is the file whose content names the fault that the file system under
	// its spool has at the moment ("enospc", "fsync", or nothing); empty where the
	// collector cannot.
	SpoolFault string
}

// Sink is a sink and what is around it.
type Sink struct {
	Name  string
	Admin string
	Process
	Kafka      *Wire // as a collector's
	ClickHouse *Wire
}

// Stack is a running pipeline that nothing else uses: its topics and its database
// are its own.
type Stack struct {
	Collectors []Collector
	Sinks      []Sink
	Broker     Process // nil: not the stack's to break
	ClickHouse Process // as above
	Rows       ClickHouse
	// Audit runs the pipeline's own audit; nil: there is none.
	Audit func(ctx context.Context) (AuditReport, error)
	About About
}

// About says what was put to the proof.
type About struct {
	Kafka      string   `json:"kafka"`
	ClickHouse string   `json:"clickhouse"`
	Collectors int      `json:"collectors"`
	Sinks      int      `json:"sinks"`
	Programs   string   `json:"programs"`
	Machine    string   `json:"machine"`
	Notes      []string `json:"notes,omitempty"`
}

// Targets are what can be broken in the stack.
func (s *Stack) Targets() Targets {
	t := Targets{}
	add := func(c Class, name string) {
		if !slices.Contains(t[c], name) {
			t[c] = append(t[c], name)
		}
	}
	wire := func(c Class, w *Wire) {
		if w != nil {
			add(c, w.Name)
		}
	}
	for _, c := range s.Collectors {
		add(OnCollector, c.Name)
		wire(OnClient, c.Client)
		wire(OnCollectorKafka, c.Kafka)
		if c.SpoolFault != "" && c.Kafka != nil {
			add(OnSpool, c.Name)
		}
	}
	for _, k := range s.Sinks {
		add(OnSink, k.Name)
		wire(OnSinkKafka, k.Kafka)
		wire(OnSinkClickHouse, k.ClickHouse)
	}
	if s.Broker != nil {
		add(OnBroker, string(OnBroker))
	}
	if s.ClickHouse != nil {
		add(OnClickHouse, string(OnClickHouse))
		if canAim {
			add(OnInsert, string(OnInsert))
		}
	}
	return t
}

// processes are the stack's, by name.
func (s *Stack) processes() map[string]Process {
	out := map[string]Process{}
	for _, c := range s.Collectors {
		out[c.Name] = c.Process
	}
	for _, k := range s.Sinks {
		out[k.Name] = k.Process
	}
	if s.Broker != nil {
		out[string(OnBroker)] = s.Broker
	}
	if s.ClickHouse != nil {
		out[string(OnClickHouse)] = s.ClickHouse
	}
	return out
}

// wires are the stack's, by name.
func (s *Stack) wires() map[string]*Wire {
	out := map[string]*Wire{}
	add := func(w *Wire) {
		if w != nil {
			out[w.Name] = w
		}
	}
	for _, c := range s.Collectors {
		add(c.Client)
		add(c.Kafka)
	}
	for _, k := range s.Sinks {
		add(k.Kafka)
		add(k.ClickHouse)
	}
	return out
}
