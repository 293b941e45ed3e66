import { expect, test } from 'vitest';
import { pickLanguage, tables } from '../src/lib/i18n';

/** Every path into a table, with what stands there. */
function leaves(value: unknown, path = ''): [string, unknown][] {
  if (typeof value !== 'object' || value === null) return [[path, value]];
  return Object.entries(value).flatMap(([key, inner]) => leaves(inner, `${path}.${key}`));
}

const kinds = (table: unknown) =>
  leaves(table)
    .map(([path, value]) => `${path}: ${typeof value}`)
    .sort();

test('both languages have the same keys, with words or functions in the same places', () => {
  expect(kinds(tables.zh)).toEqual(kinds(tables.en));
});

test('no text is empty', () => {
  for (const table of Object.values(tables)) {
    for (const [path, value] of leaves(table)) {
      if (typeof value === 'string') expect(value.trim(), path).not.toBe('');
    }
  }
});

/** Names that are the same in both languages. */
const SAME_IN_BOTH = new Set(['.appName', '.languageNames.en', '.languageNames.zh']);

test('no Chinese text was left in English, or the reverse', () => {
  for (const [path, value] of leaves(tables.zh)) {
    if (typeof value === 'string' && !SAME_IN_BOTH.has(path)) expect(value, path).toMatch(/\p{Script=Han}/u);
  }
  for (const [path, value] of leaves(tables.en)) {
    if (typeof value === 'string' && !SAME_IN_BOTH.has(path)) expect(value, path).not.toMatch(/\p{Script=Han}/u);
  }
});

test.each([
  [['zh-CN', 'en'], 'zh'],
  [['zh-Hant-TW'], 'zh'],
  [['fr', 'zh'], 'zh'],
  [['en-GB', 'zh'], 'en'],
  [['fr', 'de'], 'en'],
  [[], 'en'],
] as const)('a browser that prefers %j reads %s', (preferred, language) => {
  expect(pickLanguage(preferred)).toBe(language);
});
