import { describe, expect, test } from 'vitest';
import {
  answerAgain,
  ask,
  askInstead,
  emptyConversation,
  finish,
  isStreaming,
  promptMessages,
  receive,
  recover,
  shownAnswer,
  titleOf,
  tokensPerSecond,
  type Answer,
  type Conversation,
} from '../src/lib/conversation';

function question(text: string, number: number) {
  return { text, model: 'qwen', questionId: `q${number}`, answerId: `a${number}`, now: number };
}

/** A conversation of finished turns: each question is answered with "re: …". */
function talk(...texts: string[]): Conversation {
  return texts.reduce(
    (before, text, index) => {
      const asked = ask(before, question(text, index));
      const answered = receive(asked, `a${index}`, [{ kind: 'text', text: `re: ${text}` }], 5);
      return finish(answered, `a${index}`, { kind: 'complete' }, index);
    },
    emptyConversation('c', 0),
  );
}

function lastAnswer(conversation: Conversation): Answer {
  const last = conversation.messages.at(-1);
  if (last?.role !== 'assistant') throw new Error('The conversation does not end with an answer.');
  return last;
}

test('a question waits for its answer', () => {
  const asked = ask(emptyConversation('c', 0), question('Hi', 1));
  expect(asked.messages.map(({ role }) => role)).toEqual(['user', 'assistant']);
  expect(isStreaming(asked)).toBe(true);
  expect(promptMessages(asked, '')).toEqual([{ role: 'user', content: 'Hi' }]);
});

test('the pieces of an answer join in their order, and the rest of the talk keeps its identity', () => {
  const before = ask(talk('one'), question('two', 7));
  const after = receive(
    receive(before, 'a7', [{ kind: 'text', text: '快速' }], 10),
    'a7',
    [{ kind: 'text', text: '排序' }],
    20,
  );
  expect(lastAnswer(after).content).toBe('快速排序');
  expect(lastAnswer(after).timing).toEqual({ firstTokenMs: 10, lastTokenMs: 20 });
  expect(after.messages.slice(0, 3)).toEqual(before.messages.slice(0, 3));
  expect(after.messages.slice(0, 3).every((message, index) => message === before.messages[index])).toBe(true);
});

test('the server says how an answer ended, and nothing later overrules it but a failure', () => {
  const asked = ask(emptyConversation('c', 0), question('Hi', 1));
  const cut = receive(asked, 'a1', [{ kind: 'finish', reason: 'length' }], 1);
  expect(lastAnswer(finish(cut, 'a1', { kind: 'complete' }, 2)).outcome).toEqual({ kind: 'cut' });
  const problem = { kind: 'interrupted', message: '' } as const;
  expect(lastAnswer(finish(cut, 'a1', { kind: 'failed', problem }, 2)).outcome).toEqual({ kind: 'failed', problem });
});

test('an answer that a reload cut is shown as stopped', () => {
  const cut = receive(ask(emptyConversation('c', 0), question('Hi', 1)), 'a1', [{ kind: 'text', text: 'Hel' }], 1);
  expect(lastAnswer(recover(cut))).toMatchObject({ content: 'Hel', outcome: { kind: 'stopped' } });
});

test('answering again replaces the last answer alone', () => {
  const again = answerAgain(talk('one', 'two'), 'new', 'other', 9);
  expect(again.messages.map(({ id }) => id)).toEqual(['q0', 'a0', 'q1', 'new']);
  expect(lastAnswer(again)).toMatchObject({ model: 'other', content: '' });
  expect(answerAgain(emptyConversation('c', 0), 'new', 'qwen', 1).messages).toEqual([]);
});

test('an edited question drops what followed it', () => {
  const edited = askInstead(talk('one', 'two', 'three'), 'q1', question('deux', 9));
  expect(promptMessages(edited, '').map(({ content }) => content)).toEqual(['one', 're: one', 'deux']);
  expect(edited.title).toBe('one');
  expect(askInstead(talk('one'), 'q0', question('un', 9)).title).toBe('un');
  const talked = talk('one');
  expect(askInstead(talked, 'unknown', question('x', 9))).toBe(talked);
});

test('the prompt brings the system prompt first, and neither thinking nor empty answers', () => {
  const asked = ask(emptyConversation('c', 0), question('Hi', 1));
  const thought = receive(asked, 'a1', [{ kind: 'text', text: '<think>hm</think>Hello' }], 1);
  const reasoned = receive(thought, 'a1', [{ kind: 'thinking', text: 'more' }], 1);
  const done = finish(reasoned, 'a1', { kind: 'complete' }, 1);
  const failed = finish(ask(done, question('And?', 2)), 'a2', { kind: 'stopped' }, 2);
  expect(promptMessages(ask(failed, question('Well?', 3)), 'Be kind.')).toEqual([
    { role: 'system', content: 'Be kind.' },
    { role: 'user', content: 'Hi' },
    { role: 'assistant', content: 'Hello' },
    { role: 'user', content: 'And?' },
    { role: 'user', content: 'Well?' },
  ]);
});

test('thinking shows apart from the answer, from wherever it came', () => {
  const asked = ask(emptyConversation('c', 0), question('Hi', 1));
  const sent = receive(asked, 'a1', [{ kind: 'thinking', text: 'hm' }], 1);
  expect(shownAnswer(lastAnswer(sent))).toEqual({ thinking: 'hm', text: '', isThinking: true });
  const answered = receive(sent, 'a1', [{ kind: 'text', text: 'Hello' }], 2);
  expect(shownAnswer(lastAnswer(answered))).toEqual({ thinking: 'hm', text: 'Hello', isThinking: false });
});

describe('speed', () => {
  const answer = lastAnswer(talk('one'));
  const usage = { promptTokens: 10, completionTokens: 101 };

  test('it counts from the first token to the last', () => {
    expect(tokensPerSecond({ ...answer, usage, timing: { firstTokenMs: 500, lastTokenMs: 2500 } })).toBe(50);
  });

  test.each([
    ['no usage', null, { firstTokenMs: 0, lastTokenMs: 1 }],
    ['no time', usage, null],
    ['one token', { promptTokens: 1, completionTokens: 1 }, { firstTokenMs: 0, lastTokenMs: 1 }],
    ['no time between', usage, { firstTokenMs: 3, lastTokenMs: 3 }],
  ])('%s gives no speed', (_, someUsage, timing) => {
    expect(tokensPerSecond({ ...answer, usage: someUsage, timing })).toBeNull();
  });
});

test('a title is one line, and is cut between characters as people see them', () => {
  expect(titleOf('  用 Python\n写快速排序  ')).toBe('用 Python 写快速排序');
  const family = '👨‍👩‍👧';
  expect(titleOf(family.repeat(5))).toBe(family.repeat(5));
  expect(titleOf('字'.repeat(60))).toBe(`${'字'.repeat(48)}…`);
});
