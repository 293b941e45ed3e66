import { describe, expect, test } from 'vitest';
import { decodeEntities, parseBlocks, safeHref } from '../src/lib/markdown';

test('paragraphs, marks and breaks are found', () => {
  expect(parseBlocks('**粗** *i* ~~d~~ `x<y`  \nnext<br>line')).toEqual([
    {
      kind: 'paragraph',
      children: [
        { kind: 'strong', children: [{ kind: 'text', text: '粗' }] },
        { kind: 'text', text: ' ' },
        { kind: 'emphasis', children: [{ kind: 'text', text: 'i' }] },
        { kind: 'text', text: ' ' },
        { kind: 'deleted', children: [{ kind: 'text', text: 'd' }] },
        { kind: 'text', text: ' ' },
        { kind: 'code', text: 'x<y' },
        { kind: 'break' },
        { kind: 'text', text: 'next' },
        { kind: 'break' },
        { kind: 'text', text: 'line' },
      ],
    },
  ]);
});

test('code keeps its text and its language', () => {
  expect(parseBlocks('```Python title="a"\nif a < b:\n    &amp;\n```')).toEqual([
    { kind: 'code', language: 'python', text: 'if a < b:\n    &amp;' },
  ]);
  expect(parseBlocks('```\nnot closed yet')).toEqual([{ kind: 'code', language: '', text: 'not closed yet' }]);
});

test('lists know their start, their tasks and their nesting', () => {
  const [list] = parseBlocks('3. a\n4. b\n   - [x] c');
  expect(list).toMatchObject({
    kind: 'list',
    start: 3,
    items: [
      { checked: null },
      { checked: null, blocks: [{ kind: 'line' }, { kind: 'list', start: null, items: [{ checked: true }] }] },
    ],
  });
});

test('tables keep their alignment', () => {
  expect(parseBlocks('| a | b |\n|:-:|--:|\n| 1 | 2 |')[0]).toMatchObject({
    kind: 'table',
    align: ['center', 'right'],
    rows: [[[{ text: '1' }], [{ text: '2' }]]],
  });
});

test('raw HTML stays text', () => {
  expect(parseBlocks('<div>**x**</div>')).toEqual([{ kind: 'plain', text: '<div>**x**</div>' }]);
  expect(parseBlocks('a <b>x</b>')).toMatchObject([
    { children: [{ text: 'a ' }, { text: '<b>' }, { text: 'x' }, { text: '</b>' }] },
  ]);
});

test('an image becomes a link, and nothing is fetched', () => {
  expect(parseBlocks('![cat](https://evil.example/?q=secret)')).toEqual([
    { kind: 'paragraph', children: [{ kind: 'image', href: 'https://evil.example/?q=secret', description: 'cat' }] },
  ]);
});

test('a definition of a link stays in sight, and links nothing from afar', () => {
  const blocks = parseBlocks('See [the docs][1].\n\n[1]: https://evil.example/?q=secret');
  expect(blocks).toHaveLength(2);
  expect(JSON.stringify(blocks[0])).not.toContain('evil.example');
  expect(JSON.stringify(blocks[1])).toContain('evil.example');
});

describe('addresses', () => {
  test.each([
    'https://example.com/a?b#c',
    'http://127.0.0.1:8000/',
    'mailto:someone@example.com',
    'https://zh.wikipedia.org/wiki/%E5%BF%AB',
  ])('%s may be a link', (href) => {
    expect(safeHref(href)).toBe(href);
  });

  test.each([
    'javascript:alert(1)',
    'JaVaScRiPt:alert(1)',
    ' javascript:alert(1)',
    'java\nscript:alert(1)',
    'java\tscript:alert(1)',
    '\u0001javascript:alert(1)',
    'vbscript:x',
    'data:text/html,<script>alert(1)</script>',
    'blob:http://127.0.0.1/x',
    'file:///etc/passwd',
    'ftp://example.com/',
    'about:blank',
    'intent://x',
    'view-source:https://example.com',
    '//evil.example/x',
    '/v1/models',
    '#top',
    'example.com',
    '',
    'https://user:password@example.com/',
    'https://google.com@evil.example/',
    'http://',
  ])('%j may not', (href) => {
    expect(safeHref(href)).toBeNull();
  });
});

test('character references are read once, and wrong ones stay', () => {
  expect(decodeEntities('&lt;b&gt; &amp;lt; &#20013;&#x6587; &nbsp;')).toBe('<b> &lt; 中文 \u00A0');
  expect(decodeEntities('&constructor; &unknown; &#0; &#x110000; &')).toBe('&constructor; &unknown; &#0; &#x110000; &');
});
