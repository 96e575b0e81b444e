// For a <script> tag: window.SluiceLogger.createLogger.

import { createLogger } from './browser.js';

(globalThis as { SluiceLogger?: unknown }).SluiceLogger = { createLogger };
