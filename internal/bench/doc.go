// Package bench measures the pipeline from outside: it makes the load, counts what
// was answered, and reads from the kernel what the processes took for it. Beside
// what is measured it has the ceilings: the same bytes through the bare libraries,
// so that a figure can be told as a ratio, which a busy or slow machine changes far
// less than the figure itself.
//
// Costs are in CPU-seconds per million events (CPU-s/M), which is also µs an event.
package bench
