/** What the person chose, and what follows from it: the language, the colours, the words. */

import { createContext } from 'svelte';
import { MediaQuery } from 'svelte/reactivity';
import { LANGUAGE_TAGS, pickLanguage, tables, type Language } from './i18n';
import type { Settings } from './settings';
import { loadSettings, saveSettings } from './storage';

export class Preferences {
  settings: Settings = $state.raw({} as Settings);

  private readonly systemIsDark = new MediaQuery('prefers-color-scheme: dark');
  readonly language: Language = $derived(
    this.settings.language === 'auto' ? pickLanguage(navigator.languages) : this.settings.language,
  );
  readonly languageTag = $derived(LANGUAGE_TAGS[this.language]);
  readonly strings = $derived(tables[this.language]);
  readonly isDark = $derived(
    this.settings.theme === 'auto' ? this.systemIsDark.current : this.settings.theme === 'dark',
  );

  constructor(private readonly local: Storage) {
    this.settings = loadSettings(local);
  }

  change(change: Partial<Settings>): void {
    this.settings = { ...this.settings, ...change };
    saveSettings(this.local, this.settings);
  }

  /** Write a number with so many digits after the point, as the language does. */
  formatNumber(value: number, digits: number): string {
    return value.toLocaleString(this.languageTag, { minimumFractionDigits: digits, maximumFractionDigits: digits });
  }
}

export const [getPreferences, setPreferences] = createContext<Preferences>();
