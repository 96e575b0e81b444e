// What a host application sees of the logger, in browsers and in Node alike.

/** A value of an attribute. Anything nested is sent as its JSON text. */
export type AttributeValue = string | number | boolean | null;

/** One assignment that somebody saw: the unit got this variant of this experiment. */
export interface Exposure {
  /** 1 to 4,096 bytes of UTF-8. */
  experiment: string;
  /** 1 to 4,096 bytes of UTF-8. */
  variant: string;
  /** Who was exposed; 1 to 4,096 bytes of UTF-8. */
  unitId: string;
  /** What kind of thing unitId names. The collector's default is `user`. */
  unitType?: string;
  /** Which rule of the flag assigned the variant. */
  rule?: string;
  /** Why the variant was assigned. */
  reason?: string;
  /** When it happened: a Date or milliseconds since the Unix epoch. Default: now. */
  time?: number | Date;
  /** At most 256, flat; keys up to 1 KiB, values up to 64 KiB: what is beyond is left out. */
  attributes?: Record<string, AttributeValue | undefined>;
}

/** Anything else that is counted or measured in experiments. */
export interface CustomEvent {
  /** 1 to 4,096 bytes of UTF-8. `sluice.dropped` is the logger's own. */
  name: string;
  /** As in an exposure. */
  unitId: string;
  unitType?: string;
  /** A finite number. */
  value?: number;
  time?: number | Date;
  attributes?: Record<string, AttributeValue | undefined>;
}

/** Why events were given up. The names are those of the `sluice.dropped` reports. */
export type DropReason = 'queue_full' | 'expired' | 'refused' | 'too_large';

/** What a host may want to know of or to log. None of these is thrown. */
export interface LoggerError {
  /**
   * config: an option cannot be right, and the logger is off.
   * invalid: an event cannot be right and was not taken.
   * attribute: an attribute was left out, its event was taken.
   * dropped: events were given up; they are in the next report.
   * delivery: an endpoint began to fail, or refuses the key or the URL. Batches wait.
   * storage: a batch could not be kept, or not be read again.
   */
  code: 'config' | 'invalid' | 'attribute' | 'dropped' | 'delivery' | 'storage';
  message: string;
  /** How many events it is about, where it is about events. */
  count?: number;
}

/** Options that browsers and Node share. Numbers that cannot be right take the default. */
export interface Options {
  /** Where collectors listen, in order of preference: https://sluice.example.com */
  endpoints: string | string[];
  /** The write key. */
  key: string;
  /** Most events in a batch. Default 100, at most 10,000 (the collector's limit). */
  batchSize?: number;
  /** Most bytes of events in a batch. Default 256 KiB; browsers: at most what a beacon takes, 60 KiB. */
  batchBytes?: number;
  /** How long the first event of a batch waits for company, in ms. Default 1,000. */
  flushIntervalMs?: number;
  /** Most events held in memory; one counts once more for every 4 Ki characters. Above it new ones are dropped, counted and reported. Default 10,000. */
  queueEvents?: number;
  /** How long a batch is sent again, in ms. Default 7 days, at most 20: the server knows a key for 30. */
  maxAgeMs?: number;
  /** How long an attempt may take, in ms. Default 10,000. */
  requestTimeoutMs?: number;
  /** An attempt that follows n failures waits a random time up to min(retryCapMs, retryBaseMs * 2^(n-1)). Default 500. */
  retryBaseMs?: number;
  /** Default 30,000. Also how long an endpoint that failed is not preferred while another one works. */
  retryCapMs?: number;
  /** Most requests at a time. Default 4. */
  maxInFlight?: number;
  /** Told of what goes wrong. What it throws is swallowed. */
  onError?: (error: LoggerError) => void;
}

/** Counts since the logger was made. All but batches, retries and beacons count events. */
export interface Stats {
  /** Taken from the host. */
  logged: number;
  /** Found in storage from an earlier session or a process that died. */
  recovered: number;
  /** A collector answered for them: they are durable there, `rejected` ones as dead letters. */
  acknowledged: number;
  /** Of those acknowledged, the ones the collector did not accept. Never sent again. */
  rejected: number;
  /** Given up, by reason. */
  dropped: Record<DropReason, number>;
  /** Not taken: what was passed cannot be right, or the logger is closed or off. */
  invalid: number;
  /** Neither acknowledged nor given up yet: in memory or in storage. */
  pending: number;
  /** Of those pending, the ones that storage holds. */
  stored: number;
  /** Another tab or process took them over from shared storage, and answers for them. */
  handedOver: number;
  /** Attempts that failed and were, or will be, made again. */
  retries: number;
  /** Batches handed to a beacon; they stay pending. */
  beacons: number;
}

/** A logger. No method throws, and no promise rejects. */
export interface Logger {
  exposure(exposure: Exposure): void;
  event(event: CustomEvent): void;
  /**
   * Sends what was logged so far. Resolves when each event is acknowledged or
   * dropped, or is in storage after an attempt to send it failed; at the latest
   * after timeoutMs, where given.
   */
  flush(timeoutMs?: number): Promise<void>;
  /**
   * Flushes and stops. After timeoutMs (default 10,000) it stops anyway: what is
   * in storage then is sent by the next session, what is not is lost and counted
   * in stats().pending.
   */
  close(timeoutMs?: number): Promise<void>;
  stats(): Stats;
}
