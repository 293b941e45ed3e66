/** The page's words: one table a language, with the same keys by type. */

import { en } from './en';
import { zh } from './zh';

export type Strings = typeof en;

export const tables = { en, zh } as const satisfies Record<string, Strings>;

export type Language = keyof typeof tables;

/** What a page of this language says in its `lang` attribute. */
export const LANGUAGE_TAGS: Record<Language, string> = { en: 'en', zh: 'zh-CN' };

/** Pick the first of the browser's languages that the page speaks. */
export function pickLanguage(preferred: readonly string[]): Language {
  for (const tag of preferred) {
    const language = tag.toLowerCase().split('-')[0];
    if (language === 'zh' || language === 'en') return language;
  }
  return 'en';
}
