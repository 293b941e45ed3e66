/** Conversations as values, and what can happen to them as pure functions. Knows no browser and no server. */

import type { ApiMessage, ChatEvent, Problem } from './api';
import { splitThinking } from './thinking';

export interface UserMessage {
  readonly role: 'user';
  readonly id: string;
  readonly text: string;
}

export type Outcome =
  | { readonly kind: 'streaming' }
  | { readonly kind: 'complete' }
  /** The answer ran into the limit of tokens. */
  | { readonly kind: 'cut' }
  /** Stopped by the person, or by closing the page. */
  | { readonly kind: 'stopped' }
  | { readonly kind: 'failed'; readonly problem: Problem };

export interface Usage {
  readonly promptTokens: number;
  readonly completionTokens: number;
}

/** Milliseconds after the question was sent. */
export interface Timing {
  readonly firstTokenMs: number;
  readonly lastTokenMs: number;
}

export interface Answer {
  readonly role: 'assistant';
  readonly id: string;
  readonly model: string;
  /** Just as the model wrote it, `<think>` marks included. */
  readonly content: string;
  /** Thinking that the server sent apart from the content. */
  readonly reasoning: string;
  readonly outcome: Outcome;
  readonly usage: Usage | null;
  readonly timing: Timing | null;
}

export type Message = UserMessage | Answer;

export interface Conversation {
  readonly id: string;
  readonly title: string;
  /** Milliseconds since 1970. */
  readonly updatedAt: number;
  readonly messages: readonly Message[];
}

export interface Question {
  readonly text: string;
  readonly model: string;
  readonly questionId: string;
  readonly answerId: string;
  readonly now: number;
}

const TITLE_CHARS = 48;

/** Name a conversation after its first question: one line, cut between characters as people see them. */
export function titleOf(text: string): string {
  const line = text.trim().replace(/\s+/gu, ' ');
  const characters = Array.from(new Intl.Segmenter().segment(line.slice(0, 4 * TITLE_CHARS)), ({ segment }) => segment);
  return characters.length <= TITLE_CHARS ? characters.join('') : `${characters.slice(0, TITLE_CHARS).join('')}…`;
}

export function emptyConversation(id: string, now: number): Conversation {
  return { id, title: '', updatedAt: now, messages: [] };
}

function waitingAnswer(id: string, model: string): Answer {
  return {
    role: 'assistant',
    id,
    model,
    content: '',
    reasoning: '',
    outcome: { kind: 'streaming' },
    usage: null,
    timing: null,
  };
}

/** Add a question and the answer to come. */
export function ask(conversation: Conversation, question: Question): Conversation {
  const asked: UserMessage = { role: 'user', id: question.questionId, text: question.text };
  return {
    ...conversation,
    title: conversation.title || titleOf(question.text),
    updatedAt: question.now,
    messages: [...conversation.messages, asked, waitingAnswer(question.answerId, question.model)],
  };
}

/** Put another question in the place of `messageId`; what followed it is gone. */
export function askInstead(conversation: Conversation, messageId: string, question: Question): Conversation {
  const place = conversation.messages.findIndex((message) => message.id === messageId);
  if (place < 0) return conversation;
  const title = place === 0 ? '' : conversation.title;
  return ask({ ...conversation, title, messages: conversation.messages.slice(0, place) }, question);
}

/** Put a new answer to come in the place of the last one. */
export function answerAgain(conversation: Conversation, answerId: string, model: string, now: number): Conversation {
  const { messages } = conversation;
  const kept = messages.at(-1)?.role === 'assistant' ? messages.slice(0, -1) : messages;
  if (kept.at(-1)?.role !== 'user') return conversation;
  return { ...conversation, updatedAt: now, messages: [...kept, waitingAnswer(answerId, model)] };
}

function changeAnswer(conversation: Conversation, answerId: string, change: (answer: Answer) => Answer): Conversation {
  const messages = conversation.messages.map((message) =>
    message.role === 'assistant' && message.id === answerId ? change(message) : message,
  );
  return { ...conversation, messages };
}

function withEvent(answer: Answer, event: ChatEvent): Answer {
  switch (event.kind) {
    case 'text':
      return { ...answer, content: answer.content + event.text };
    case 'thinking':
      return { ...answer, reasoning: answer.reasoning + event.text };
    case 'usage':
      return { ...answer, usage: { promptTokens: event.promptTokens, completionTokens: event.completionTokens } };
    case 'finish':
      return { ...answer, outcome: event.reason === 'length' ? { kind: 'cut' } : { kind: 'complete' } };
  }
}

/** Add what the server sent; `elapsedMs` is the time since the question. */
export function receive(
  conversation: Conversation,
  answerId: string,
  events: readonly ChatEvent[],
  elapsedMs: number,
): Conversation {
  const bringsText = events.some(({ kind }) => kind === 'text' || kind === 'thinking');
  return changeAnswer(conversation, answerId, (answer) => {
    const timing = { firstTokenMs: answer.timing?.firstTokenMs ?? elapsedMs, lastTokenMs: elapsedMs };
    return events.reduce(withEvent, bringsText ? { ...answer, timing } : answer);
  });
}

/** End the answer, unless the server already said how it ended. */
export function finish(conversation: Conversation, answerId: string, outcome: Outcome, now: number): Conversation {
  const ended = changeAnswer(conversation, answerId, (answer) =>
    answer.outcome.kind === 'streaming' || outcome.kind === 'failed' ? { ...answer, outcome } : answer,
  );
  return { ...ended, updatedAt: now };
}

/** Mend a conversation that was saved in the middle of an answer: nobody is writing that answer any more. */
export function recover(conversation: Conversation): Conversation {
  const messages = conversation.messages.map((message) =>
    message.role === 'assistant' && message.outcome.kind === 'streaming'
      ? { ...message, outcome: { kind: 'stopped' } as const }
      : message,
  );
  return { ...conversation, messages };
}

export function isStreaming(conversation: Conversation): boolean {
  const last = conversation.messages.at(-1);
  return last?.role === 'assistant' && last.outcome.kind === 'streaming';
}

export interface ShownAnswer {
  readonly thinking: string;
  readonly text: string;
  readonly isThinking: boolean;
}

/** What a reader sees of an answer: its thinking and its text apart. */
export function shownAnswer(answer: Answer): ShownAnswer {
  const isComplete = answer.outcome.kind !== 'streaming';
  const split = splitThinking(answer.content, isComplete);
  return {
    thinking: [answer.reasoning.trim(), split.thinking].filter(Boolean).join('\n\n'),
    text: split.answer,
    isThinking: split.isThinking || (!isComplete && answer.reasoning !== '' && answer.content === ''),
  };
}

/** The messages to send for the next answer: without thinking, without empty answers, without the one to come. */
export function promptMessages(conversation: Conversation, systemPrompt: string): ApiMessage[] {
  const turns = conversation.messages.flatMap((message): ApiMessage[] => {
    if (message.role === 'user') return [{ role: 'user', content: message.text }];
    const { text } = shownAnswer(message);
    return message.outcome.kind === 'streaming' || text === '' ? [] : [{ role: 'assistant', content: text }];
  });
  return systemPrompt.trim() === '' ? turns : [{ role: 'system', content: systemPrompt }, ...turns];
}

/** Writing speed after the first token, or `null` where there is too little to measure. */
export function tokensPerSecond({ usage, timing }: Answer): number | null {
  if (usage === null || timing === null || usage.completionTokens < 2) return null;
  const seconds = (timing.lastTokenMs - timing.firstTokenMs) / 1000;
  return seconds <= 0 ? null : (usage.completionTokens - 1) / seconds;
}

/** Newest first. */
export function byRecency(a: Conversation, b: Conversation): number {
  return b.updatedAt - a.updatedAt;
}
