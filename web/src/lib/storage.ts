/** Keeps conversations and settings in this browser. What it reads back is checked like anything from outside. */

import type { Problem, ProblemKind } from './api';
import type { Answer, Conversation, Message, Outcome, Timing, Usage } from './conversation';
import { byRecency, recover } from './conversation';
import { readSettings, type Settings } from './settings';

/** One key a conversation: two open tabs do not overwrite each other's. */
const CONVERSATION_PREFIX = 'qwen-chat/conversation/';
const SETTINGS_KEY = 'qwen-chat/settings';
const API_KEY = 'qwen-chat/api-key';

type Json = Record<string, unknown>;

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function parseJson(text: string | null): unknown {
  try {
    return text === null ? undefined : JSON.parse(text);
  } catch {
    return undefined;
  }
}

const PROBLEM_KINDS: readonly string[] = [
  'unreachable',
  'unauthorized',
  'refused',
  'interrupted',
] satisfies ProblemKind[];

function readProblem(value: unknown): Problem | null {
  if (!isObject(value) || typeof value['message'] !== 'string') return null;
  const kind = value['kind'];
  if (typeof kind !== 'string' || !PROBLEM_KINDS.includes(kind)) return null;
  return { kind: kind as ProblemKind, message: value['message'] };
}

function readOutcome(value: unknown): Outcome | null {
  if (!isObject(value)) return null;
  switch (value['kind']) {
    case 'streaming':
    case 'complete':
    case 'cut':
    case 'stopped':
      return { kind: value['kind'] };
    case 'failed': {
      const problem = readProblem(value['problem']);
      return problem && { kind: 'failed', problem };
    }
    default:
      return null;
  }
}

function readUsage(value: unknown): Usage | null {
  if (!isObject(value)) return null;
  const { promptTokens, completionTokens } = value;
  return typeof promptTokens === 'number' && typeof completionTokens === 'number'
    ? { promptTokens, completionTokens }
    : null;
}

function readTiming(value: unknown): Timing | null {
  if (!isObject(value)) return null;
  const { firstTokenMs, lastTokenMs } = value;
  return typeof firstTokenMs === 'number' && typeof lastTokenMs === 'number' ? { firstTokenMs, lastTokenMs } : null;
}

function readAnswer(value: Json, id: string): Answer | null {
  const { model, content, reasoning } = value;
  const outcome = readOutcome(value['outcome']);
  if (typeof model !== 'string' || typeof content !== 'string' || typeof reasoning !== 'string' || !outcome)
    return null;
  const usage = readUsage(value['usage']);
  return { role: 'assistant', id, model, content, reasoning, outcome, usage, timing: readTiming(value['timing']) };
}

function readMessage(value: unknown): Message | null {
  if (!isObject(value) || typeof value['id'] !== 'string') return null;
  const { id, role, text } = value;
  if (role === 'user') return typeof text === 'string' ? { role, id, text } : null;
  return role === 'assistant' ? readAnswer(value, id) : null;
}

/** Read a stored conversation; `null` where it is damaged. */
export function readConversation(value: unknown): Conversation | null {
  if (!isObject(value) || !Array.isArray(value['messages'])) return null;
  const { id, title, updatedAt } = value;
  if (typeof id !== 'string' || typeof title !== 'string' || typeof updatedAt !== 'number') return null;
  const messages = value['messages'].map(readMessage);
  return messages.includes(null) ? null : { id, title, updatedAt, messages: messages as Message[] };
}

/** Load every conversation, newest first; damaged ones are left alone in the storage. */
export function loadConversations(storage: Storage): Conversation[] {
  const keys = Array.from({ length: storage.length }, (_, index) => storage.key(index));
  const conversations = keys
    .filter((key) => key !== null)
    .filter((key) => key.startsWith(CONVERSATION_PREFIX))
    .map((key) => readConversation(parseJson(storage.getItem(key))))
    .filter((conversation) => conversation !== null);
  return conversations.map(recover).sort(byRecency);
}

/** Save a conversation. `false`: the browser has no room left, or keeps nothing for this page. */
export function saveConversation(storage: Storage, conversation: Conversation): boolean {
  return write(storage, CONVERSATION_PREFIX + conversation.id, conversation);
}

export function deleteConversation(storage: Storage, id: string): void {
  storage.removeItem(CONVERSATION_PREFIX + id);
}

/** The change that another tab made, out of a `storage` event of the window; `null` for events of no concern. */
export function changeByOtherTab(
  event: StorageEvent,
): { readonly id: string; readonly conversation: Conversation | null } | null {
  if (event.key === null || !event.key.startsWith(CONVERSATION_PREFIX)) return null;
  const id = event.key.slice(CONVERSATION_PREFIX.length);
  if (event.newValue === null) return { id, conversation: null };
  const conversation = readConversation(parseJson(event.newValue));
  return conversation && { id, conversation };
}

export function loadSettings(storage: Storage): Settings {
  return readSettings(parseJson(storage.getItem(SETTINGS_KEY)));
}

export function saveSettings(storage: Storage, settings: Settings): boolean {
  return write(storage, SETTINGS_KEY, settings);
}

/** The API key lives as long as the tab, never longer: give the session storage here, not the local one. */
export function loadApiKey(session: Storage): string {
  return session.getItem(API_KEY) ?? '';
}

export function saveApiKey(session: Storage, key: string): void {
  session.setItem(API_KEY, key);
}

function write(storage: Storage, key: string, value: unknown): boolean {
  try {
    storage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
