// Package prove shows that a pipeline keeps its promise, or that it does not: what
// was acknowledged is queryable, once, sooner or later.
//
// It sends known traffic to collectors while it kills, stops and cuts off every
// part of the pipeline by a schedule that a seed repeats, then compares, event by
// event, what was acknowledged with what ClickHouse has. It shares no code with
// the pipeline: ids, client, checker and the way rows are counted are its own, so
// that a mistake in one is not made again in the other.
//
// What is started, and how, is the caller's: a Stack of processes, of wires
// between them, and addresses. SelfTest turns the proof on itself: pipelines that
// are broken on purpose must be caught.
package prove
