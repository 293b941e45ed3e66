/** What a person can set, with the limits of the API. */

export const LANGUAGES = ['auto', 'en', 'zh'] as const;
export const THEMES = ['auto', 'light', 'dark'] as const;
export const TEMPERATURE = { min: 0, max: 2, step: 0.1 } as const;
export const MAX_TOKENS = { min: 1, max: 131_072, step: 1 } as const;
export const SYSTEM_PROMPT_CHARS = 20_000;

export interface Settings {
  readonly language: (typeof LANGUAGES)[number];
  readonly theme: (typeof THEMES)[number];
  /** `null`: the first model that the server names. */
  readonly model: string | null;
  /** `null`: the server's choice, here and below. */
  readonly temperature: number | null;
  readonly maxTokens: number | null;
  readonly systemPrompt: string;
}

export const DEFAULT_SETTINGS: Settings = {
  language: 'auto',
  theme: 'auto',
  model: null,
  temperature: null,
  maxTokens: null,
  systemPrompt: '',
};

function oneOf<T extends string>(choices: readonly T[], value: unknown, otherwise: T): T {
  return choices.find((choice) => choice === value) ?? otherwise;
}

/** Take a number within its limits; anything else means "the server's choice". */
export function limitedNumber(value: unknown, { min, max }: { min: number; max: number }): number | null {
  return typeof value === 'number' && Number.isFinite(value) ? Math.min(max, Math.max(min, value)) : null;
}

/** Read settings of any origin; what is missing or wrong becomes the default. */
export function readSettings(value: unknown): Settings {
  const given = typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  const { model, systemPrompt } = given;
  const maxTokens = limitedNumber(given['maxTokens'], MAX_TOKENS);
  return {
    language: oneOf(LANGUAGES, given['language'], DEFAULT_SETTINGS.language),
    theme: oneOf(THEMES, given['theme'], DEFAULT_SETTINGS.theme),
    model: typeof model === 'string' ? model : null,
    temperature: limitedNumber(given['temperature'], TEMPERATURE),
    maxTokens: maxTokens === null ? null : Math.round(maxTokens),
    systemPrompt: typeof systemPrompt === 'string' ? systemPrompt.slice(0, SYSTEM_PROMPT_CHARS) : '',
  };
}
