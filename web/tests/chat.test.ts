import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Chat } from '../src/lib/chat.svelte';
import type { Answer } from '../src/lib/conversation';
import { Preferences } from '../src/lib/preferences.svelte';

type Reply = (request: Request) => Response | Promise<Response>;

const utf8 = new TextEncoder();

function event(body: unknown): string {
  return `data: ${typeof body === 'string' ? body : JSON.stringify(body)}\n\n`;
}

function text(content: string): string {
  return event({ choices: [{ index: 0, delta: { content }, finish_reason: null }] });
}

const END = [
  event({ choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] }),
  event({ choices: [], usage: { prompt_tokens: 5, completion_tokens: 2, total_tokens: 7 } }),
  event('[DONE]'),
];

/** A stream of these pieces; without an end where `isEndless`, so that only an abort ends it. */
function stream(pieces: readonly string[], { isEndless = false } = {}): Reply {
  return (request) =>
    new Response(
      new ReadableStream({
        start(controller) {
          for (const piece of pieces) controller.enqueue(utf8.encode(piece));
          if (!isEndless) controller.close();
          request.signal.addEventListener('abort', () => controller.error(new DOMException('', 'AbortError')));
        },
      }),
      { headers: { 'Content-Type': 'text/event-stream' } },
    );
}

function refuse(status: number, message: string): Reply {
  return () => new Response(JSON.stringify({ error: { message } }), { status });
}

let requests: Request[];

function serve(...replies: Reply[]): void {
  requests = [];
  vi.stubGlobal('fetch', async (url: URL, init: RequestInit) => {
    const request = new Request(url, init);
    requests.push(request);
    const reply = replies[Math.min(requests.length, replies.length) - 1];
    if (reply === undefined) throw new TypeError('Failed to fetch');
    return reply(request);
  });
}

function newChat(): Chat {
  return new Chat(new Preferences(localStorage), localStorage, sessionStorage);
}

function lastAnswer(chat: Chat): Answer {
  const last = chat.current?.messages.at(-1);
  if (last?.role !== 'assistant') throw new Error('No answer');
  return last;
}

beforeEach(() => {
  localStorage.clear();
  sessionStorage.clear();
  vi.stubGlobal('matchMedia', () => ({ matches: false, addEventListener: () => {}, removeEventListener: () => {} }));
});
afterEach(() => vi.unstubAllGlobals());

test('a sent message is answered, and kept over a reload', async () => {
  serve(stream([text('快速'), text('排序'), ...END]));
  const chat = newChat();
  await chat.send('你好');
  expect(lastAnswer(chat)).toMatchObject({
    content: '快速排序',
    outcome: { kind: 'complete' },
    usage: { completionTokens: 2 },
  });
  expect(await requests[0]?.json()).toEqual({
    model: 'default',
    messages: [{ role: 'user', content: '你好' }],
    stream: true,
    stream_options: { include_usage: true },
  });
  expect(requests[0]?.headers.get('content-type')).toBe('application/json');
  expect(newChat().conversations).toEqual(chat.conversations);
});

test('settings travel with the request', async () => {
  serve(stream(END));
  const preferences = new Preferences(localStorage);
  preferences.change({ temperature: 0, maxTokens: 64, systemPrompt: 'Be kind.' });
  const chat = new Chat(preferences, localStorage, sessionStorage);
  await chat.send('Hi');
  expect(await requests[0]?.json()).toMatchObject({
    temperature: 0,
    max_tokens: 64,
    messages: [
      { role: 'system', content: 'Be kind.' },
      { role: 'user', content: 'Hi' },
    ],
  });
});

test('stopping aborts the request, keeps what came, and frees the chat', async () => {
  serve(stream([text('Once')], { isEndless: true }), stream([text('again'), ...END]));
  const chat = newChat();
  const answering = chat.send('Tell a story');
  await vi.waitFor(() => expect(lastAnswer(chat).content).toBe('Once'));
  expect(chat.isAnswering(chat.currentId)).toBe(true);
  chat.stop();
  await answering;
  expect(requests[0]?.signal.aborted).toBe(true);
  expect(chat.isAnswering(chat.currentId)).toBe(false);
  expect(lastAnswer(chat)).toMatchObject({ content: 'Once', outcome: { kind: 'stopped' } });
  await chat.answerAgain();
  expect(lastAnswer(chat)).toMatchObject({ content: 'again', outcome: { kind: 'complete' } });
});

test('a conversation is deleted while it is being answered, and nothing brings it back but undo', async () => {
  serve(stream([text('Once')], { isEndless: true }));
  const chat = newChat();
  const answering = chat.send('Tell a story');
  await vi.waitFor(() => expect(lastAnswer(chat).content).toBe('Once'));
  chat.delete(chat.currentId ?? '');
  await answering;
  expect(chat.conversations).toEqual([]);
  expect(newChat().conversations).toEqual([]);
  chat.undoDelete();
  expect(lastAnswer(chat)).toMatchObject({ content: 'Once', outcome: { kind: 'stopped' } });
});

test('the server’s own words are shown, and trying again works', async () => {
  serve(refuse(400, "'max_tokens' is too large."), stream([text('Hi'), ...END]));
  const chat = newChat();
  await chat.send('Hello');
  expect(lastAnswer(chat).outcome).toEqual({
    kind: 'failed',
    problem: { kind: 'refused', message: "'max_tokens' is too large." },
  });
  await chat.answerAgain();
  expect(lastAnswer(chat)).toMatchObject({ content: 'Hi', outcome: { kind: 'complete' } });
  expect((await requests[1]?.json()).messages).toEqual([{ role: 'user', content: 'Hello' }]);
});

test('a missing key is asked for, kept for this tab alone, and sent', async () => {
  serve(refuse(401, 'Give a key.'), () => Response.json({ data: [{ id: 'qwen' }] }), stream([text('Hi'), ...END]));
  const chat = newChat();
  await chat.send('Hello');
  expect(chat.asksForKey).toBe(true);
  chat.useApiKey(' secret ');
  expect(chat.asksForKey).toBe(false);
  await vi.waitFor(() => expect(chat.model).toBe('qwen'));
  await chat.answerAgain();
  expect(requests[2]?.headers.get('authorization')).toBe('Bearer secret');
  expect(JSON.stringify(localStorage)).not.toContain('secret');
  expect(lastAnswer(chat).content).toBe('Hi');
});

test.each([
  ['a stream that breaks off', stream([text('Once')]), 'interrupted', ''],
  [
    'an error within the stream',
    stream([text('Once'), event({ error: { message: 'Out of memory.' } })]),
    'interrupted',
    'Out of memory.',
  ],
  [
    'an event that is no JSON',
    stream(['data: {oops\n\n']),
    'interrupted',
    'The server sent an event that is not JSON: {oops',
  ],
  ['no server', () => Promise.reject(new TypeError('Failed to fetch')), 'unreachable', ''],
  [
    'an error without words',
    () => new Response('<html>', { status: 502, statusText: 'Bad Gateway' }),
    'refused',
    'HTTP 502 Bad Gateway',
  ],
] as const)('%s ends the answer with a problem', async (_, reply, kind, message) => {
  serve(reply);
  const chat = newChat();
  await chat.send('Hello');
  expect(lastAnswer(chat).outcome).toEqual({ kind: 'failed', problem: { kind, message } });
  expect(chat.isAnswering(chat.currentId)).toBe(false);
});

test('an edited question is asked in the place of the old one', async () => {
  serve(stream([text('one'), ...END]), stream([text('two'), ...END]));
  const chat = newChat();
  await chat.send('first');
  await chat.resend(chat.current?.messages[0]?.id ?? '', 'second');
  expect(chat.current?.messages).toHaveLength(2);
  expect((await requests[1]?.json()).messages).toEqual([{ role: 'user', content: 'second' }]);
});

test('nothing is sent for blank text, nor a second time while an answer is written', async () => {
  serve(stream([text('Once')], { isEndless: true }));
  const chat = newChat();
  await chat.send('  \n ');
  expect(requests).toHaveLength(0);
  const answering = chat.send('Hi');
  await chat.send('Hi again');
  expect(requests).toHaveLength(1);
  chat.stop();
  await answering;
});

test('a model that only makes vectors is none to talk to', async () => {
  const data = [{ id: 'qwen' }, { id: 'e5', dimensions: 384 }, { id: 'qwen:adapter', parent: 'qwen' }];
  serve(() => new Response(JSON.stringify({ object: 'list', data })));
  const chat = newChat();
  await chat.loadModels();
  expect(chat.models).toEqual(['qwen', 'qwen:adapter']);
});
