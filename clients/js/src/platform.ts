// What the logger needs of where it runs: storage, a clock, a network.

/** A batch as storage knows it. */
export interface Stored {
  /** The idempotency key, for ever. */
  key: string;
  /** When its first event was logged, ms since the Unix epoch. */
  created: number;
  /** Events, reports of drops not counted. */
  count: number;
  /** Absent: they are in storage only. */
  events?: string[] | undefined;
}

type Maybe<T> = T | Promise<T>;

/**
 * Where batches outlive the page or the process. One store has one user; several
 * stores may share a place. No method may throw or reject, except put.
 */
export interface Store {
  /** What is stored need not stay in memory: load works. */
  readonly spills: boolean;
  /** The logger sets it: told of what could not be read or kept. */
  damaged: (what: string) => void;
  /**
   * Says that this user is alive, and takes over what users left that are not:
   * oldest first. Two users may both take a batch over; the same key makes that
   * harmless. busy: this user has something stored.
   */
  adopt(now: number, busy: boolean): Maybe<Stored[]>;
  /**
   * Keeps the batch, whole or not at all: once this is done it is there after a
   * crash. False: no room. Throws where the storage fails; the batch may then be
   * there or not.
   */
  put(batch: Stored): Maybe<boolean>;
  /** The events of a batch that was put or adopted; undefined: it is gone or damaged. */
  load(batch: Stored): Maybe<string[] | undefined>;
  /** Forgets the batch. If that fails it is sent again some day: harmless within the server's window. */
  remove(batch: Stored): Maybe<void>;
  /** Leaves what is stored to whoever comes next. */
  leave(): Maybe<void>;
}

/** What a logger needs of where it runs. */
export interface Platform {
  sdk: string;
  fetch(url: string, init: RequestInit): Promise<Response>;
  now(): number;
  /** In [0, 1). */
  random(): number;
  uuid(): string;
  /** Returns what cancels it. A timer does not keep a process alive. */
  timer(fn: () => void, ms: number): () => void;
  /** Keeps the process alive until what it returns is called. */
  hold?(): () => void;
  /** At most this many bytes of events in a batch of several; Infinity: no limit. */
  maxBatchBytes: number;
  store?: Store | undefined;
}
