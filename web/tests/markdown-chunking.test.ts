import { expect, test } from 'vitest';
import { parseBlocks, parseMarkdown, type Markdown } from '../src/lib/markdown';
import { cut, seededRandom } from './random';

/** Pieces whose meaning depends on what comes before or after them. */
const PIECES = [
  ...['word', ' ', '\n', '\n\n', '\t', '  \n', '\r\n', '中文。', '😀', ':', '\\', '&amp;'],
  ...[
    '- item',
    '1. one',
    '2) two',
    '> quote',
    '```py\nx = 1\n```',
    '```',
    '~~~',
    '---',
    '===',
    '    indented',
    '# head',
  ],
  ...['| a | b |\n|---|---|\n| 1 | 2 |', '|', '- [ ] task', '**bold**', '*', '_', '`code`'],
  ...['[x](https://a.b)', '[x]: https://a.b', '[x]', '<div>', '</div>', '<!-- c', '-->'],
];

test('any chunking of a text ends in the blocks of the whole text', () => {
  const random = seededRandom(20261122);
  for (let round = 0; round < 2000; round += 1) {
    const pieces = Array.from(
      { length: 1 + Math.floor(random() * 14) },
      () => PIECES[Math.floor(random() * PIECES.length)],
    );
    const text = pieces.join('');
    let sent = '';
    let parsed: Markdown | undefined;
    for (const piece of cut(text, 6, random)) {
      sent += piece;
      parsed = parseMarkdown(sent, parsed);
    }
    const blocks = [...(parsed?.closed ?? []), ...(parsed?.open ?? [])];
    expect(blocks, JSON.stringify(text)).toEqual(parseBlocks(text.replace(/\r\n?/gu, '\n')));
  }
});

test('closed blocks keep their identity while the text grows', () => {
  const first = parseMarkdown('# One\n\nTwo\n\nThree\n\nFo');
  const second = parseMarkdown('# One\n\nTwo\n\nThree\n\nFour', first);
  expect(first.closed).toHaveLength(2);
  expect(second.closed.slice(0, 2).every((block, index) => block === first.closed[index])).toBe(true);
});

test('another text starts anew', () => {
  const first = parseMarkdown('# One\n\nTwo\n\nThree');
  expect(parseMarkdown('Other', first).closed).toEqual([]);
});

/** Texts that made parsers of Markdown hang or run out of stack. */
const BOMBS: Record<string, string> = {
  quotes: '>'.repeat(50_000),
  'quotes of quotes': `${'> '.repeat(24)}a\n`.repeat(200),
  'lists in lists': '- '.repeat(20_000),
  'numbers in numbers': '1. '.repeat(15_000),
  'deeper and deeper': Array.from({ length: 300 }, (_, depth) => `${' '.repeat(2 * depth)}- a`).join('\n'),
  stars: '*a '.repeat(15_000),
  underscores: '_a_'.repeat(15_000),
  'stars in stars': '*a**b'.repeat(10_000),
  brackets: '['.repeat(50_000),
  links: '[a]('.repeat(12_000),
  images: '!['.repeat(20_000),
  backticks: '`a``b```c'.repeat(5_000),
  tables: `${'|a'.repeat(20_000)}\n${'|-'.repeat(20_000)}\n`,
  comments: '<!--'.repeat(12_000),
  tags: '<a '.repeat(15_000),
  addresses: 'http://a.'.repeat(6_000),
  'too long': 'a'.repeat(600_000),
};

test.each(Object.entries(BOMBS))('%s cost no more than a moment', (_, text) => {
  const start = performance.now();
  const parsed = parseMarkdown(text);
  JSON.stringify(parsed);
  expect(performance.now() - start).toBeLessThan(3_000);
});

test('a long chat costs little for each token', () => {
  const paragraph = '这是一段**文字**，with `code` and [a link](https://example.com).\n\n';
  let parsed = parseMarkdown(paragraph.repeat(2_000));
  const start = performance.now();
  for (let token = 0; token < 200; token += 1) parsed = parseMarkdown(`${parsed.text}词`, parsed);
  expect((performance.now() - start) / 200).toBeLessThan(4);
});
