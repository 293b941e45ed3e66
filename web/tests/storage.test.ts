import { beforeEach, expect, test } from 'vitest';
import { ask, emptyConversation, finish, receive } from '../src/lib/conversation';
import { DEFAULT_SETTINGS } from '../src/lib/settings';
import * as storage from '../src/lib/storage';

beforeEach(() => localStorage.clear());

const asked = ask(emptyConversation('c1', 1), { text: '你好', model: 'qwen', questionId: 'q', answerId: 'a', now: 2 });
const answered = receive(
  asked,
  'a',
  [
    { kind: 'text', text: 'Hi' },
    { kind: 'usage', promptTokens: 3, completionTokens: 1 },
  ],
  7,
);

test('what is saved comes back equal', () => {
  const failed = finish(answered, 'a', { kind: 'failed', problem: { kind: 'refused', message: 'no' } }, 3);
  for (const conversation of [finish(answered, 'a', { kind: 'complete' }, 3), failed]) {
    expect(storage.saveConversation(localStorage, conversation)).toBe(true);
    expect(storage.loadConversations(localStorage)).toEqual([conversation]);
  }
});

test('an answer that was being written is stopped when it comes back', () => {
  storage.saveConversation(localStorage, answered);
  expect(storage.loadConversations(localStorage)[0]?.messages[1]).toMatchObject({
    content: 'Hi',
    outcome: { kind: 'stopped' },
  });
});

test('the newest conversation comes first, and a deleted one not at all', () => {
  for (const [id, updatedAt] of [
    ['old', 1],
    ['new', 9],
    ['middle', 5],
  ] as const) {
    storage.saveConversation(localStorage, { ...emptyConversation(id, updatedAt) });
  }
  storage.deleteConversation(localStorage, 'middle');
  expect(storage.loadConversations(localStorage).map(({ id }) => id)).toEqual(['new', 'old']);
});

test.each([
  ['no JSON', '{'],
  ['null', 'null'],
  ['a list', '[]'],
  ['no messages', '{"id":"x","title":"","updatedAt":1}'],
  ['a message without a role', '{"id":"x","title":"","updatedAt":1,"messages":[{"id":"m"}]}'],
  ['a text that is none', '{"id":"x","title":"","updatedAt":1,"messages":[{"id":"m","role":"user","text":{}}]}'],
  [
    'an unknown outcome',
    '{"id":"x","title":"","updatedAt":1,"messages":[{"id":"m","role":"assistant","model":"","content":"","reasoning":"","outcome":{"kind":"odd"}}]}',
  ],
])('a damaged conversation (%s) is passed over, and not destroyed', (_, text) => {
  localStorage.setItem('qwen-chat/conversation/x', text);
  expect(storage.loadConversations(localStorage)).toEqual([]);
  expect(localStorage.getItem('qwen-chat/conversation/x')).toBe(text);
});

test('a full browser is noticed', () => {
  const full = {
    setItem: () => {
      throw new DOMException('full', 'QuotaExceededError');
    },
  } as unknown as Storage;
  expect(storage.saveConversation(full, answered)).toBe(false);
});

test('another tab’s change is understood, and foreign keys are not', () => {
  const event = (key: string | null, newValue: string | null) => new StorageEvent('storage', { key, newValue });
  expect(storage.changeByOtherTab(event('qwen-chat/conversation/c1', JSON.stringify(answered)))?.conversation).toEqual(
    answered,
  );
  expect(storage.changeByOtherTab(event('qwen-chat/conversation/c1', null))).toEqual({ id: 'c1', conversation: null });
  expect(storage.changeByOtherTab(event('other', 'x'))).toBeNull();
  expect(storage.changeByOtherTab(event(null, null))).toBeNull();
});

test('settings come back within their limits, whatever was stored', () => {
  expect(storage.loadSettings(localStorage)).toEqual(DEFAULT_SETTINGS);
  localStorage.setItem(
    'qwen-chat/settings',
    '{"temperature":99,"maxTokens":-3,"theme":"pink","language":"zh","systemPrompt":7,"model":"m"}',
  );
  expect(storage.loadSettings(localStorage)).toEqual({
    ...DEFAULT_SETTINGS,
    temperature: 2,
    maxTokens: 1,
    language: 'zh',
    model: 'm',
  });
});
