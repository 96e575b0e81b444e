// An OpenFeature hook that logs each evaluation as an exposure. It fits the hook
// types of @openfeature/server-sdk and @openfeature/web-sdk, and needs neither.

import type { AttributeValue, Logger } from './types.js';

/** What the hook reads of an evaluation's context. */
export interface Context {
  targetingKey?: string;
  [name: string]: unknown;
}

/** What the hook reads of an evaluation's result. */
export interface Details {
  value: unknown;
  variant?: string | undefined;
  reason?: string | undefined;
  errorCode?: string | undefined;
  flagMetadata?: Readonly<Record<string, unknown>> | undefined;
}

export interface HookOptions {
  /** A constant, or what the context says. Default: the collector's, `user`. */
  unitType?: string | ((context: Context) => string | undefined);
  /** Default: the context's targetingKey. */
  unitId?: (context: Context) => string | undefined;
  /** Default: the flag's key. */
  experiment?: (flagKey: string, details: Details) => string | undefined;
  /** False: this evaluation is no exposure. Default: every one is. */
  filter?: (flagKey: string, details: Details, context: Context) => boolean;
  /**
   * Also log evaluations that ended in the caller's default because of an error,
   * with reason ERROR and the attribute error_code. Default false: no experiment
   * assigned that value, and the unit would seem to cross over to another variant.
   */
  errors?: boolean;
}

export interface ExposureHook {
  after(hook: { flagKey: string; context: object }, details: Details): void;
  finally(hook: { flagKey: string; context: object }, details?: Details): void;
  /** Evaluations seen: logged, without a unit, ended in an error, filtered. */
  readonly counts: { exposures: number; withoutUnit: number; errors: number; filtered: number };
}

/**
 * Give it to OpenFeature.addHooks, a client or a single evaluation. Logging the
 * same unit again is harmless: experiments count units, by first exposure.
 */
export function exposureHook(logger: Pick<Logger, 'exposure'>, options: HookOptions = {}): ExposureHook {
  const counts = { exposures: 0, withoutUnit: 0, errors: 0, filtered: 0 };

  function log(flagKey: string, context: Context, d: Details): void {
    if (options.filter && !options.filter(flagKey, d, context)) {
      counts.filtered++;
      return;
    }
    const unitId = options.unitId ? options.unitId(context) : context.targetingKey;
    if (unitId === undefined || unitId === null || unitId === '') {
      counts.withoutUnit++; // the logger counts it as invalid, and tells onError
    } else {
      counts.exposures++;
    }
    const unitType = typeof options.unitType === 'function' ? options.unitType(context) : options.unitType;
    const attributes: Record<string, AttributeValue> = { ...(d.flagMetadata as Record<string, AttributeValue>) };
    if (d.errorCode) attributes.error_code = d.errorCode;
    logger.exposure({
      experiment: options.experiment?.(flagKey, d) ?? flagKey,
      variant: d.variant || (typeof d.value === 'string' ? d.value : JSON.stringify(d.value) ?? ''),
      unitId: unitId ?? '',
      ...(unitType ? { unitType } : {}),
      ...(d.reason ? { reason: d.reason } : {}),
      attributes,
    });
  }

  /** Whatever a host's function throws, its evaluation goes on. */
  function safely(fn: () => void): void {
    try {
      fn();
    } catch {
      counts.errors++;
    }
  }

  return {
    counts,
    after(hook, details) {
      if (!details.errorCode) safely(() => log(hook.flagKey, hook.context as Context, details));
    },
    finally(hook, details) {
      if (!details?.errorCode) return;
      counts.errors++;
      if (options.errors) safely(() => log(hook.flagKey, hook.context as Context, { ...details, reason: details.reason ?? 'ERROR' }));
    },
  };
}
