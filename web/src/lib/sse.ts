/** Server-sent events out of text that arrives in pieces cut anywhere. Knows nothing of chat. */

/** More than any honest event: a stream that never ends its event must not fill the memory. */
export const MAX_EVENT_CHARS = 4_000_000;

export class SseOverflowError extends Error {
  constructor() {
    super(`The server sent an event of more than ${MAX_EVENT_CHARS} characters.`);
    this.name = 'SseOverflowError';
  }
}

export interface SseParser {
  /** Take the next piece of the stream; return the data of each event that it completes. */
  push(chunk: string): string[];
}

/** Start a parser. Only `data` fields matter here; other fields and comments are read over. Source: WHATWG HTML, 9.2.6. */
export function createSseParser(): SseParser {
  let pending = '';
  let data: string[] = [];
  let dataChars = 0;
  let atStart = true;
  // A CR ends a line at once; an LF right after it belongs to the same line end.
  let skipLineFeed = false;

  function endLine(line: string, events: string[]): void {
    if (line === '') {
      if (data.length > 0) events.push(data.join('\n'));
      data = [];
      dataChars = 0;
      return;
    }
    const colon = line.indexOf(':');
    const field = colon < 0 ? line : line.slice(0, colon);
    if (field !== 'data') return;
    const value = colon < 0 ? '' : line.slice(colon + 1);
    data.push(value.startsWith(' ') ? value.slice(1) : value);
    dataChars += value.length;
  }

  return {
    push(chunk) {
      if (chunk === '') return [];
      const events: string[] = [];
      let text = chunk;
      if (atStart) {
        text = text.startsWith('\uFEFF') ? text.slice(1) : text;
        atStart = false;
      }
      if (skipLineFeed && text.startsWith('\n')) text = text.slice(1);
      if (text !== '') skipLineFeed = text.endsWith('\r');

      const lines = text.split(/\r\n|\r|\n/);
      const last = lines.pop() ?? '';
      for (const line of lines) {
        endLine(pending + line, events);
        pending = '';
      }
      pending += last;
      if (pending.length + dataChars > MAX_EVENT_CHARS) throw new SseOverflowError();
      return events;
    },
  };
}
