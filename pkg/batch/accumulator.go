package batch

import "time"

// Bound is when an accumulator is full. A zero field does not bound.
type Bound struct {
	Count int           // what the items count for together (items, rows, …)
	Bytes int64         // their size together
	Age   time.Duration // since the first one
}

// Accumulator gathers items until they count, weigh or wait for enough. It has
// no goroutine, timer or clock of its own: its owner passes the time in and asks.
// Not safe for concurrent use.
type Accumulator[T any] struct {
	bound Bound
	items []T
	count int
	bytes int64
	since time.Time
}

// NewAccumulator returns an empty accumulator.
func NewAccumulator[T any](b Bound) *Accumulator[T] { return &Accumulator[T]{bound: b} }

// Fits reports whether an item can be added without passing a bound. Anything
// fits into an empty accumulator: an item over a bound by itself must go somewhere.
func (a *Accumulator[T]) Fits(count int, bytes int64) bool {
	if len(a.items) == 0 {
		return true
	}
	return (a.bound.Count <= 0 || a.count+count <= a.bound.Count) &&
		(a.bound.Bytes <= 0 || a.bytes+bytes <= a.bound.Bytes)
}

// Add appends an item. The age counts from the first one.
func (a *Accumulator[T]) Add(item T, count int, bytes int64, now time.Time) {
	if len(a.items) == 0 {
		a.since = now
	}
	a.items = append(a.items, item)
	a.count += count
	a.bytes += bytes
}

// Due reports whether a bound is reached. An empty accumulator is never due.
func (a *Accumulator[T]) Due(now time.Time) bool {
	if len(a.items) == 0 {
		return false
	}
	return (a.bound.Count > 0 && a.count >= a.bound.Count) ||
		(a.bound.Bytes > 0 && a.bytes >= a.bound.Bytes) ||
		(a.bound.Age > 0 && now.Sub(a.since) >= a.bound.Age)
}

// Remaining is how long until the age makes the accumulator due: 0 when it is,
// negative when nothing is in it or age does not bound.
func (a *Accumulator[T]) Remaining(now time.Time) time.Duration {
	if len(a.items) == 0 || a.bound.Age <= 0 {
		return -1
	}
	return max(0, a.bound.Age-now.Sub(a.since))
}

// SetAge changes how old what is in it, and what comes, may become.
func (a *Accumulator[T]) SetAge(d time.Duration) { a.bound.Age = d }

// Items are what is in it, in the order they were added. They belong to the
// accumulator until Take.
func (a *Accumulator[T]) Items() []T { return a.items }

// Len is the number of items in it.
func (a *Accumulator[T]) Len() int { return len(a.items) }

// Count is what the items count for together.
func (a *Accumulator[T]) Count() int { return a.count }

// Bytes is the items' size together.
func (a *Accumulator[T]) Bytes() int64 { return a.bytes }

// Take hands the items to the caller and leaves the accumulator empty.
func (a *Accumulator[T]) Take() []T {
	items := a.items
	*a = Accumulator[T]{bound: a.bound}
	return items
}
