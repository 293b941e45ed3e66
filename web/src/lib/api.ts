/** The server's public API as this page uses it: the models, and one streamed answer. Knows nothing of the page. */

import { createSseParser, SseOverflowError } from './sse';

export interface ApiMessage {
  readonly role: 'system' | 'user' | 'assistant';
  readonly content: string;
}

export interface ChatRequest {
  readonly model: string;
  readonly messages: readonly ApiMessage[];
  /** `null` leaves the choice to the server. */
  readonly temperature: number | null;
  readonly maxTokens: number | null;
}

export type ChatEvent =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'thinking'; readonly text: string }
  | { readonly kind: 'finish'; readonly reason: string }
  | { readonly kind: 'usage'; readonly promptTokens: number; readonly completionTokens: number };

/**
 * What went wrong, by what the person can do about it:
 * `unreachable` start the server, `unauthorized` give a key, `refused` read the server's message,
 * `interrupted` the answer broke off on the way, try again.
 */
export type ProblemKind = 'unreachable' | 'unauthorized' | 'refused' | 'interrupted';

export interface Problem {
  readonly kind: ProblemKind;
  /** The server's own sentence; empty where there is none. */
  readonly message: string;
}

export class ApiError extends Error {
  constructor(readonly problem: Problem) {
    super(problem.message || problem.kind);
    this.name = 'ApiError';
  }
}

/** The end mark of OpenAI's streams. */
const DONE = '[DONE]';

type Json = Record<string, unknown>;

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function errorMessage(body: unknown): string {
  if (!isObject(body)) return '';
  const error = body['error'] ?? body['detail'];
  if (typeof error === 'string') return error;
  return isObject(error) && typeof error['message'] === 'string' ? error['message'] : '';
}

function decodeUsage(usage: unknown): ChatEvent[] {
  if (!isObject(usage)) return [];
  const { prompt_tokens: promptTokens, completion_tokens: completionTokens } = usage;
  if (typeof promptTokens !== 'number' || typeof completionTokens !== 'number') return [];
  return [{ kind: 'usage', promptTokens, completionTokens }];
}

function decodeChoice(choice: unknown): ChatEvent[] {
  if (!isObject(choice)) return [];
  const events: ChatEvent[] = [];
  const delta = choice['delta'];
  if (isObject(delta)) {
    const { reasoning_content: thinking, content } = delta;
    if (typeof thinking === 'string' && thinking !== '') events.push({ kind: 'thinking', text: thinking });
    if (typeof content === 'string' && content !== '') events.push({ kind: 'text', text: content });
  }
  const reason = choice['finish_reason'];
  if (typeof reason === 'string') events.push({ kind: 'finish', reason });
  return events;
}

/**
 * Read one `chat.completion.chunk`.
 *
 * @throws ApiError when the server reports an error within the stream, or sends what is not JSON.
 */
export function decodeChunk(data: string): ChatEvent[] {
  const chunk = parseJson(data);
  if (!isObject(chunk)) {
    throw new ApiError({
      kind: 'interrupted',
      message: `The server sent an event that is not JSON: ${data.slice(0, 80)}`,
    });
  }
  if ('error' in chunk && chunk['error'] !== null) {
    throw new ApiError({ kind: 'interrupted', message: errorMessage(chunk) });
  }
  const choices = Array.isArray(chunk['choices']) ? chunk['choices'] : [];
  return [...decodeChoice(choices[0]), ...decodeUsage(chunk['usage'])];
}

function endpoint(path: string): URL {
  return new URL(path, document.baseURI);
}

function headers(apiKey: string): Record<string, string> {
  const fixed = { 'Content-Type': 'application/json' };
  return apiKey === '' ? fixed : { ...fixed, Authorization: `Bearer ${apiKey}` };
}

async function send(path: string, init: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(endpoint(path), {
      ...init,
      credentials: 'same-origin',
      redirect: 'error',
      cache: 'no-store',
    });
  } catch (cause) {
    if (cause instanceof DOMException && cause.name === 'AbortError') throw cause;
    throw new ApiError({ kind: 'unreachable', message: '' });
  }
  if (response.ok) return response;
  const message = errorMessage(parseJson(await response.text().catch(() => '')));
  const kind = response.status === 401 ? 'unauthorized' : 'refused';
  throw new ApiError({ kind, message: message || `HTTP ${response.status} ${response.statusText}`.trim() });
}

/** Ask for the ids of the models that the server offers and that answer; one with `dimensions` only makes vectors. */
export async function listModels(apiKey: string): Promise<string[]> {
  const response = await send('v1/models', { headers: headers(apiKey) });
  const body = parseJson(await response.text());
  const data = isObject(body) && Array.isArray(body['data']) ? body['data'] : [];
  return data.flatMap((model: unknown) =>
    isObject(model) && typeof model['id'] === 'string' && !('dimensions' in model) ? [model['id']] : [],
  );
}

function requestBody(request: ChatRequest): string {
  return JSON.stringify({
    model: request.model,
    messages: request.messages,
    stream: true,
    stream_options: { include_usage: true },
    ...(request.temperature === null ? {} : { temperature: request.temperature }),
    ...(request.maxTokens === null ? {} : { max_tokens: request.maxTokens }),
  });
}

/**
 * Stream one answer. Aborting `signal` closes the connection, by which the server learns to stop.
 *
 * @throws ApiError for every failure but an abort, which stays the browser's `AbortError`.
 */
export async function* streamChat(
  request: ChatRequest,
  apiKey: string,
  signal: AbortSignal,
): AsyncGenerator<ChatEvent[], void> {
  const response = await send('v1/chat/completions', {
    method: 'POST',
    headers: { ...headers(apiKey), Accept: 'text/event-stream' },
    body: requestBody(request),
    signal,
  });
  if (response.body === null) throw new ApiError({ kind: 'interrupted', message: '' });
  const parser = createSseParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new ApiError({ kind: 'interrupted', message: '' });
      for (const data of parser.push(value)) {
        if (data === DONE) return;
        yield decodeChunk(data);
      }
    }
  } catch (cause) {
    throw asApiError(cause, signal);
  } finally {
    // Whoever stops reading early, for whatever reason, must free the server too.
    await reader.cancel().catch(() => undefined);
  }
}

function asApiError(cause: unknown, signal: AbortSignal): unknown {
  if (signal.aborted || cause instanceof ApiError) return cause;
  if (cause instanceof SseOverflowError) return new ApiError({ kind: 'interrupted', message: cause.message });
  return new ApiError({ kind: 'interrupted', message: '' });
}
