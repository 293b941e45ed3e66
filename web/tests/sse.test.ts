import { describe, expect, test } from 'vitest';
import { createSseParser, MAX_EVENT_CHARS, SseOverflowError } from '../src/lib/sse';
import { cut, seededRandom } from './random';

function parse(pieces: readonly string[]): string[] {
  const parser = createSseParser();
  return pieces.flatMap((piece) => parser.push(piece));
}

describe('one piece', () => {
  test.each([
    ['an event ends with an empty line', 'data: a\n\n', ['a']],
    ['lines of one event are joined', 'data: a\ndata: b\n\n', ['a\nb']],
    ['CRLF and CR end lines too', 'data: a\r\n\r\ndata: b\r\r', ['a', 'b']],
    ['the blank after the colon is optional, and only one is dropped', 'data:a\n\ndata:  b\n\n', ['a', ' b']],
    ['comments and other fields are read over', ': ping\nevent: x\nid: 7\nretry: 9\ndata: a\n\n', ['a']],
    ['an event without data is none', 'event: x\n\n: ping\n\n', []],
    ['empty data is data', 'data\n\ndata:\n\n', ['', '']],
    ['a byte order mark at the start is no text', '\uFEFFdata: a\n\n', ['a']],
    ['an event that was not ended does not count', 'data: a\n\ndata: b\n', ['a']],
    ['colons and marks inside stay', 'data: {"a":"b:c"}\n\ndata: [DONE]\n\n', ['{"a":"b:c"}', '[DONE]']],
    ['a field whose name only begins with data is another field', 'database: a\n\n', []],
  ])('%s', (_, text, events) => {
    expect(parse([text])).toEqual(events);
  });
});

test('any chunking gives the events of the whole, whatever ends the lines', () => {
  const random = seededRandom(1);
  const texts = ['', 'a', '快速排序', '😀', ' b ', '{"x":"\\n"}', ':', 'data:'];
  for (let round = 0; round < 400; round += 1) {
    const ending = ['\n', '\r\n', '\r'][round % 3]!;
    const expected = Array.from({ length: 1 + Math.floor(random() * 5) }, () => [
      texts[Math.floor(random() * texts.length)]!,
      texts[Math.floor(random() * texts.length)]!,
    ]);
    const stream = expected
      .map((lines) => `: note${ending}${lines.map((line) => `data: ${line}${ending}`).join('')}${ending}`)
      .join('');
    expect(parse(cut(stream, 1 + (round % 9), random))).toEqual(expected.map((lines) => lines.join('\n')));
  }
});

test('an event without an end is refused before it fills the memory', () => {
  const parser = createSseParser();
  const megabyte = 'x'.repeat(1_000_000);
  parser.push('data: ');
  expect(() => {
    for (let sent = 0; sent <= MAX_EVENT_CHARS; sent += megabyte.length) parser.push(megabyte);
  }).toThrow(SseOverflowError);
});
