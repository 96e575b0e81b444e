package ledger

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/pkg/batch"
)

func benchLedger(b *testing.B) *Ledger {
	l, err := Open("", nil)
	require.NoError(b, err)
	begin(b, l)
	b.ReportAllocs()
	return l
}

// What a batch of one record costs, from its stamp to its settlement.
func BenchmarkAcceptAndSettle(b *testing.B) {
	for name, settle := range map[string]func(l *Ledger, r *batch.Record){
		"kafka":   func(l *Ledger, r *batch.Record) { l.InKafka(r, int(r.Seq%12), int64(r.Seq)) },
		"spooled": func(l *Ledger, r *batch.Record) { l.Spooled(r) },
		"void":    func(l *Ledger, r *batch.Record) { l.Void(r) },
		"withdraw": func(l *Ledger, r *batch.Record) {
			l.Withdraw(batch.Stamp{Collector: r.Collector, Epoch: r.Epoch, FirstSeq: r.Seq}, 1)
		},
		// The worst pattern: no two voids meet.
		"every other void": func(l *Ledger, r *batch.Record) {
			if r.Seq%2 == 0 {
				l.Void(r)
			} else {
				l.Spooled(r)
			}
		},
	} {
		b.Run(name, func(b *testing.B) {
			l := benchLedger(b)
			for b.Loop() {
				s := l.Accept(1)
				settle(l, &batch.Record{Collector: s.Collector, Epoch: s.Epoch, Seq: s.FirstSeq})
			}
		})
	}
}

func BenchmarkAcceptAndSettleParallel(b *testing.B) {
	l := benchLedger(b)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			s := l.Accept(1)
			l.InKafka(&batch.Record{Collector: s.Collector, Epoch: s.Epoch, Seq: s.FirstSeq}, int(s.FirstSeq%12), int64(s.FirstSeq))
		}
	})
}

// What one record costs the requests that wait for the lock meanwhile is a part of
// this: with as many voids as are kept, and with none.
func BenchmarkSnapshot(b *testing.B) {
	for _, voids := range []int{0, 2 * batch.MaxVoids} {
		b.Run(fmt.Sprint(voids), func(b *testing.B) {
			l := benchLedger(b)
			for range voids {
				l.Void(numbered(l.Accept(1)))
				l.Spooled(numbered(l.Accept(1)))
			}
			for b.Loop() {
				l.snapshot(&disk{})
			}
		})
	}
}
