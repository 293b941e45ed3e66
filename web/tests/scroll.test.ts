import { expect, test } from 'vitest';
import { distanceFromEnd, followsAfterScroll } from '../src/lib/scroll';

const at = (top: number) => ({ top, viewport: 400, content: 2000 });

test('the distance from the end is never negative', () => {
  expect(distanceFromEnd(at(1600))).toBe(0);
  expect(distanceFromEnd(at(1700))).toBe(0);
  expect(distanceFromEnd(at(1000))).toBe(600);
});

test.each([
  ['going up a little, even near the end, stops following', true, 1600, 1570, false],
  ['going up far stops following', true, 1600, 200, false],
  ['going down far from the end does not resume', false, 200, 400, false],
  ['coming down near the end resumes', false, 1400, 1550, true],
  ['being at the end follows', false, 1600, 1600, true],
  ['content that grew under a resting view changes nothing', true, 1200, 1200, true],
  ['nor does it pull back a reader who went up', false, 1200, 1200, false],
])('%s', (_, follows, previous, top, expected) => {
  expect(followsAfterScroll(follows, previous, at(top))).toBe(expected);
});

test('content that shrank under a view at its end keeps following', () => {
  expect(followsAfterScroll(true, 1600, { top: 900, viewport: 400, content: 1300 })).toBe(true);
});
