import { expect, test } from 'vitest';
import { splitThinking } from '../src/lib/thinking';

test.each([
  ['no marks', 'Hello', { thinking: '', answer: 'Hello', isThinking: false }],
  ['both marks', '<think>\nhm\n</think>\n\nHello', { thinking: 'hm', answer: 'Hello', isThinking: false }],
  ['empty thinking', '<think>\n\n</think>\n\n你好', { thinking: '', answer: '你好', isThinking: false }],
  ['opened in the prompt', 'hm\n</think>\nHello', { thinking: 'hm', answer: 'Hello', isThinking: false }],
  ['cut while thinking', '<think>hm', { thinking: 'hm', answer: '', isThinking: false }],
  [
    'an answer about the mark',
    'Close with `</think>`.',
    { thinking: '', answer: 'Close with `</think>`.', isThinking: false },
  ],
  ['a mark in the middle is text', 'a <think> b', { thinking: '', answer: 'a <think> b', isThinking: false }],
])('%s', (_, text, split) => {
  expect(splitThinking(text, true)).toEqual(split);
});

test('half a mark never shows while text arrives', () => {
  const text = '<think>一二</think>Answer < 3';
  for (let end = 0; end <= text.length; end += 1) {
    const { thinking, answer } = splitThinking(text.slice(0, end), false);
    expect('一二'.startsWith(thinking)).toBe(true);
    expect('Answer < 3'.startsWith(answer)).toBe(true);
  }
});

test('it says that the model is still thinking', () => {
  expect(splitThinking('<think>hm', false).isThinking).toBe(true);
  expect(splitThinking('<think>hm</think>', false).isThinking).toBe(false);
});
