/** The chat's state and effects: what the pure parts decide, this carries out. One object a page. */

import { createContext } from 'svelte';
import { SvelteMap } from 'svelte/reactivity';
import { ApiError, listModels, streamChat, type ChatEvent, type Problem } from './api';
import * as conversation from './conversation';
import type { Conversation, Question } from './conversation';
import { newId } from './identity';
import type { Preferences } from './preferences.svelte';
import * as storage from './storage';

/** Draw this often while text streams: smooth to read, and cheap however fast the model is. */
const DRAW_INTERVAL_MS = 40;
/** While text streams, save at most this often. */
const SAVE_INTERVAL_MS = 500;

export class Chat {
  /** Newest first. */
  conversations: readonly Conversation[] = $state.raw([]);
  currentId: string | null = $state(null);
  models: readonly string[] = $state.raw([]);
  /** Why the list of models is missing. */
  modelsProblem: Problem | null = $state.raw(null);
  asksForKey = $state(false);
  isStorageFull = $state(false);
  /** What can still be undone. */
  lastDeleted: Conversation | null = $state.raw(null);

  readonly current = $derived(this.conversations.find(({ id }) => id === this.currentId) ?? null);
  readonly model = $derived.by(() => {
    const chosen = this.preferences.settings.model;
    return chosen !== null && this.models.includes(chosen) ? chosen : (this.models[0] ?? null);
  });

  /** The page is about to go away: the browser cuts the streams, which is nobody's failure. */
  private isLeaving = false;
  private readonly running = new SvelteMap<string, AbortController>();
  private readonly savedAt = new Map<string, number>();

  constructor(
    private readonly preferences: Preferences,
    private readonly local: Storage,
    private readonly session: Storage,
  ) {
    this.conversations = storage.loadConversations(local);
  }

  isAnswering(id: string | null): boolean {
    return id !== null && this.running.has(id);
  }

  async loadModels(): Promise<void> {
    try {
      this.models = await listModels(storage.loadApiKey(this.session));
      this.modelsProblem = null;
    } catch (cause) {
      this.modelsProblem = this.problemOf(cause);
    }
  }

  useApiKey(key: string): void {
    storage.saveApiKey(this.session, key.trim());
    this.asksForKey = false;
    void this.loadModels();
  }

  open(id: string | null): void {
    this.currentId = this.conversations.some((known) => known.id === id) ? id : null;
  }

  /** Send a message in the open conversation, or in a new one. */
  async send(text: string): Promise<void> {
    if (text.trim() === '' || this.isAnswering(this.currentId)) return;
    const before = this.current ?? conversation.emptyConversation(newId(), Date.now());
    const question = this.question(text);
    this.put(conversation.ask(before, question));
    this.currentId = before.id;
    await this.run(before.id, question.answerId);
  }

  /** Put another message in the place of an earlier one; what followed that one is gone. */
  async resend(messageId: string, text: string): Promise<void> {
    const before = this.current;
    if (before === null || text.trim() === '' || this.isAnswering(before.id)) return;
    const question = this.question(text);
    this.put(conversation.askInstead(before, messageId, question));
    await this.run(before.id, question.answerId);
  }

  async answerAgain(): Promise<void> {
    const before = this.current;
    if (before === null || this.isAnswering(before.id)) return;
    const answerId = newId();
    this.put(conversation.answerAgain(before, answerId, this.model ?? 'default', Date.now()));
    await this.run(before.id, answerId);
  }

  stop(): void {
    if (this.currentId !== null) this.running.get(this.currentId)?.abort();
  }

  delete(id: string): void {
    this.running.get(id)?.abort();
    this.lastDeleted = this.conversations.find((known) => known.id === id) ?? null;
    this.forget(id);
    storage.deleteConversation(this.local, id);
    this.isStorageFull = false;
  }

  deleteAll(): void {
    for (const { id } of this.conversations) this.delete(id);
    this.lastDeleted = null;
  }

  undoDelete(): void {
    if (this.lastDeleted === null) return;
    const restored = conversation.recover(this.lastDeleted);
    this.put(restored);
    this.currentId = restored.id;
    this.lastDeleted = null;
  }

  /** Take over what another tab saved. A half answer there is that tab's business until it is finished. */
  takeChange(event: StorageEvent): void {
    const change = storage.changeByOtherTab(event);
    if (change === null || this.isAnswering(change.id)) return;
    if (change.conversation === null) this.forget(change.id);
    else if (!conversation.isStreaming(change.conversation)) this.place(change.conversation);
  }

  /** Save what is still being written; for the moment when the page goes away. */
  saveRunning(): void {
    for (const id of this.running.keys()) this.save(id);
  }

  /** Know that streams which break now were cut by the browser. */
  leave(): void {
    this.isLeaving = true;
  }

  private question(text: string): Question {
    return { text, model: this.model ?? 'default', questionId: newId(), answerId: newId(), now: Date.now() };
  }

  private async run(id: string, answerId: string): Promise<void> {
    this.isLeaving = false;
    const controller = new AbortController();
    this.running.set(id, controller);
    const startedAt = performance.now();
    let arrived: ChatEvent[] = [];
    const draw = () => {
      if (arrived.length === 0) return;
      const events = arrived;
      arrived = [];
      this.change(id, (before) => conversation.receive(before, answerId, events, performance.now() - startedAt));
      if (Date.now() - (this.savedAt.get(id) ?? 0) > SAVE_INTERVAL_MS) this.save(id);
    };
    const drawing = setInterval(draw, DRAW_INTERVAL_MS);
    const outcome = await this.stream(id, controller.signal, (events) => arrived.push(...events));
    clearInterval(drawing);
    draw();
    this.running.delete(id);
    this.change(id, (before) => conversation.finish(before, answerId, outcome, Date.now()));
    this.save(id);
  }

  /** Hand on events until the stream ends; return how it ended. */
  private async stream(
    id: string,
    signal: AbortSignal,
    onEvents: (events: readonly ChatEvent[]) => void,
  ): Promise<conversation.Outcome> {
    const asked = this.conversations.find((known) => known.id === id);
    const last = asked?.messages.at(-1);
    if (asked === undefined || last?.role !== 'assistant') return { kind: 'stopped' };
    const { systemPrompt, temperature, maxTokens } = this.preferences.settings;
    const messages = conversation.promptMessages(asked, systemPrompt);
    const request = { model: last.model, messages, temperature, maxTokens };
    try {
      for await (const events of streamChat(request, storage.loadApiKey(this.session), signal)) onEvents(events);
      return { kind: 'complete' };
    } catch (cause) {
      if (signal.aborted || this.isLeaving) return { kind: 'stopped' };
      return { kind: 'failed', problem: this.problemOf(cause) };
    }
  }

  private problemOf(cause: unknown): Problem {
    if (!(cause instanceof ApiError)) throw cause;
    if (cause.problem.kind === 'unauthorized') this.asksForKey = true;
    return cause.problem;
  }

  /** Show and save a conversation. */
  private put(changed: Conversation): void {
    this.place(changed);
    this.save(changed.id);
  }

  private place(changed: Conversation): void {
    const others = this.conversations.filter(({ id }) => id !== changed.id);
    this.conversations = [changed, ...others].sort(conversation.byRecency);
  }

  private change(id: string, change: (before: Conversation) => Conversation): void {
    this.conversations = this.conversations.map((known) => (known.id === id ? change(known) : known));
  }

  private forget(id: string): void {
    this.conversations = this.conversations.filter((known) => known.id !== id);
    if (this.currentId === id) this.currentId = null;
  }

  private save(id: string): void {
    const known = this.conversations.find((candidate) => candidate.id === id);
    if (known === undefined) return;
    this.savedAt.set(id, Date.now());
    this.isStorageFull = !storage.saveConversation(this.local, known);
  }
}

export const [getChat, setChat] = createContext<Chat>();
