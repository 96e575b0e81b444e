// Package batch holds what makes a batch the unit of delivery: its identity,
// the record it travels in, and the accumulator that gathers items until a
// count, a size or an age is reached.
package batch
