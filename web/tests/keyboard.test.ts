import { expect, test } from 'vitest';
import { meaningOfKey } from '../src/lib/keyboard';

const plain = {
  key: 'Enter',
  keyCode: 13,
  isComposing: false,
  shiftKey: false,
  ctrlKey: false,
  altKey: false,
  metaKey: false,
};

test.each([
  ['Enter sends', {}, 'send'],
  ['Ctrl+Enter sends', { ctrlKey: true }, 'send'],
  ['Cmd+Enter sends', { metaKey: true }, 'send'],
  ['Shift+Enter makes a new line', { shiftKey: true }, 'edit'],
  ['Alt+Enter makes a new line', { altKey: true }, 'edit'],
  ['another key writes', { key: 'a', keyCode: 65 }, 'edit'],
  ['Enter picks a candidate while composing (Chromium, Firefox)', { isComposing: true, keyCode: 229 }, 'edit'],
  ['Enter picks a candidate as the composition ends (Safari)', { isComposing: false, keyCode: 229 }, 'edit'],
  ['a composing key without the code is no message either', { isComposing: true }, 'edit'],
] as const)('%s', (_, change, meaning) => {
  expect(meaningOfKey({ ...plain, ...change })).toBe(meaning);
});
