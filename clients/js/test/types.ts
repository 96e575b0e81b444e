// Compiled, not run: the hook fits both SDKs, and what an application writes compiles.

import { OpenFeature as Server } from '@openfeature/server-sdk';
import { OpenFeature as Web } from '@openfeature/web-sdk';
import { createLogger as inBrowser } from '../dist/browser.js';
import { createLogger as inNode, type Logger, type LoggerError } from '../dist/node.js';
import { exposureHook } from '../dist/openfeature.js';

const logger: Logger = inNode({ endpoints: ['http://a'], key: 'k', persist: { dir: 'd' }, onError: (e: LoggerError) => void e.code });
const page: Logger = inBrowser({ endpoints: 'http://a', key: 'k', persist: { name: 'n' } });
const hook = exposureHook(logger, { unitType: (context) => String(context.kind), errors: true });
Server.addHooks(hook);
Server.getClient().addHooks(hook);
Web.addHooks(exposureHook(page));
logger.exposure({ experiment: 'e', variant: 'v', unitId: 'u', attributes: { a: 1, b: undefined } });
