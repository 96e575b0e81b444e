package replay

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"sluice/pkg/schema"
)

// Shadows is ClickHouse as a comparison needs it.
type Shadows interface {
	// CountsBy counts the rows of a table from offsets first to last, each event
	// once, by experiment and variant (custom events by name, and no variant). The
	// table is like another.
	CountsBy(ctx context.Context, t, like schema.Table, at schema.Position, first, last int64, found func(experiment, variant string, rows int64)) error
	// Through is the offset up to which the partition's log is stored, -1 for none.
	Through(ctx context.Context, at schema.Position) (int64, error)
}

// Comparison is how many rows of a kind two tables have.
type Comparison struct {
	Experiment string `json:"experiment"`
	Variant    string `json:"variant"`
	Original   int64  `json:"original"`
	Shadow     int64  `json:"shadow"`
}

// Offsets is a range of a partition, both inclusive.
type Offsets struct {
	Partition   int
	First, Last int64
}

// Compare counts what the original and the table filled with Options.Into have of
// some offsets, the largest differences first. Rows of which a later copy, beyond
// the offsets, has taken the place are not counted in the original.
func (r *Repairer) Compare(ctx context.Context, s Shadows, ranges []Offsets) ([]Comparison, error) {
	type kind struct{ experiment, variant string }
	counts := map[kind]*Comparison{}
	var id string
	err := r.policy.Do(ctx, func(ctx context.Context) (err error) {
		id, err = r.o.Log.Log(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, o := range ranges {
		at := schema.Position{Log: id, Topic: r.o.Topic, Partition: o.Partition}
		for _, t := range []schema.Table{r.o.Like, r.o.Into} {
			got := map[kind]int64{}
			err := r.policy.Do(ctx, func(ctx context.Context) error {
				through, err := s.Through(ctx, at)
				if err != nil {
					return err
				}
				clear(got)
				return s.CountsBy(ctx, t, r.o.Like, at, o.First, min(o.Last, through), func(experiment, variant string, rows int64) {
					if r.o.Experiment == "" || r.o.Like == schema.Exposures && r.o.Experiment == experiment {
						got[kind{experiment, variant}] += rows
					}
				})
			})
			if err != nil {
				return nil, err
			}
			for k, n := range got {
				c := counts[k]
				if c == nil {
					c = &Comparison{Experiment: k.experiment, Variant: k.variant}
					counts[k] = c
				}
				if t == r.o.Like {
					c.Original += n
				} else {
					c.Shadow += n
				}
			}
		}
	}
	out := []Comparison{}
	for c := range maps.Values(counts) {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b Comparison) int {
		return cmp.Or(cmp.Compare(b.difference(), a.difference()), cmp.Compare(b.Original, a.Original),
			cmp.Compare(a.Experiment, b.Experiment), cmp.Compare(a.Variant, b.Variant))
	})
	return out, nil
}

func (c Comparison) difference() int64 {
	if c.Original > c.Shadow {
		return c.Original - c.Shadow
	}
	return c.Shadow - c.Original
}
