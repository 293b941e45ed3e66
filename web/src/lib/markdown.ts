/**
 * Markdown as a small closed tree of harmless nodes.
 *
 * A model's text is never turned into HTML: `marked` only finds the structure, this module keeps the kinds of node
 * listed below, and components draw them as elements and text. Raw HTML stays text, an address stays only if its
 * scheme is allowed, an image becomes a link that nobody fetches unasked.
 */

import { Lexer, Tokenizer, type Token, type Tokens } from 'marked';

export type Inline =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'code'; readonly text: string }
  | { readonly kind: 'break' }
  | { readonly kind: 'strong' | 'emphasis' | 'deleted'; readonly children: readonly Inline[] }
  | { readonly kind: 'link'; readonly href: string; readonly children: readonly Inline[] }
  | { readonly kind: 'image'; readonly href: string; readonly description: string };

export type HeadingLevel = 1 | 2 | 3 | 4 | 5 | 6;
export type Alignment = 'left' | 'center' | 'right' | null;

export interface ListItem {
  /** `null`: not a task. */
  readonly checked: boolean | null;
  readonly blocks: readonly Block[];
}

export type Block =
  | { readonly kind: 'paragraph'; readonly children: readonly Inline[] }
  /** Text of a tight list item, which is no paragraph of its own. */
  | { readonly kind: 'line'; readonly children: readonly Inline[] }
  | { readonly kind: 'heading'; readonly level: HeadingLevel; readonly children: readonly Inline[] }
  | { readonly kind: 'code'; readonly language: string; readonly text: string }
  /** Text that is shown as it stands: raw HTML, or more than the limits below allow. */
  | { readonly kind: 'plain'; readonly text: string }
  | { readonly kind: 'quote'; readonly blocks: readonly Block[] }
  | { readonly kind: 'list'; readonly start: number | null; readonly items: readonly ListItem[] }
  | {
      readonly kind: 'table';
      readonly align: readonly Alignment[];
      readonly header: readonly (readonly Inline[])[];
      readonly rows: readonly (readonly (readonly Inline[])[])[];
    }
  | { readonly kind: 'rule' };

/** A longer text is shown as it stands. */
const MAX_CHARS = 500_000;
/** In a longer paragraph no marks are read: the time for finding their pairs grows with the square of the length. */
const MAX_INLINE_CHARS = 10_000;
/** Deeper nesting is an attack or an accident, and recursion has an end. */
const MAX_DEPTH = 24;
const NESTING_BOMB = /^[ \t]*(?:>[ \t]*|(?:[-*+]|\d{1,9}[.)])[ \t]+){25}/mu;

const LINK_SCHEMES: ReadonlySet<string> = new Set(['http:', 'https:', 'mailto:']);

/**
 * Check an address that a model wrote; `null` where it must not become a link.
 * Only absolute addresses pass: a relative one would point into this server. The browser's own parser decides, so
 * that its tricks (`java\nscript:`) and ours are the same.
 */
export function safeHref(href: string): string | null {
  if (!URL.canParse(href)) return null;
  const url = new URL(href);
  const hasCredentials = url.username !== '' || url.password !== '';
  return LINK_SCHEMES.has(url.protocol) && !hasCredentials ? url.href : null;
}

const NAMED_ENTITIES: ReadonlyMap<string, string> = new Map([
  ['amp', '&'],
  ['lt', '<'],
  ['gt', '>'],
  ['quot', '"'],
  ['apos', "'"],
  ['nbsp', '\u00A0'],
  ['copy', '©'],
  ['hellip', '…'],
  ['mdash', '—'],
  ['ndash', '–'],
  ['times', '×'],
  ['rarr', '→'],
  ['larr', '←'],
  ['le', '≤'],
  ['ge', '≥'],
  ['ne', '≠'],
]);

/** Read the character references that models really write. The result is shown as text, so none is dangerous. */
export function decodeEntities(text: string): string {
  return text.replace(/&(?:#x([0-9a-f]{1,6})|#([0-9]{1,7})|([a-z]+));/giu, (whole, hex, decimal, name) => {
    if (name !== undefined) return NAMED_ENTITIES.get(name as string) ?? whole;
    const code = hex === undefined ? Number.parseInt(decimal, 10) : Number.parseInt(hex, 16);
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : whole;
  });
}

function toInlines(tokens: readonly Token[] | undefined, depth: number): Inline[] {
  return (tokens ?? []).flatMap((token) => toInline(token, depth));
}

function group(kind: 'strong' | 'emphasis' | 'deleted', token: Token, depth: number): Inline[] {
  const { tokens } = token as Tokens.Strong | Tokens.Em | Tokens.Del;
  return depth >= MAX_DEPTH ? [{ kind: 'text', text: token.raw }] : [{ kind, children: toInlines(tokens, depth + 1) }];
}

function toLink({ href, tokens, raw }: Tokens.Link, depth: number): Inline[] {
  if (depth >= MAX_DEPTH) return [{ kind: 'text', text: raw }];
  const children = toInlines(tokens, depth + 1);
  const safe = safeHref(href);
  return safe === null ? children : [{ kind: 'link', href: safe, children }];
}

function toImage({ href, text }: Tokens.Image): Inline[] {
  const safe = safeHref(href);
  const description = decodeEntities(text);
  return safe === null ? [{ kind: 'text', text: description }] : [{ kind: 'image', href: safe, description }];
}

function toInline(token: Token, depth: number): Inline[] {
  switch (token.type) {
    case 'strong':
      return group('strong', token, depth);
    case 'em':
      return group('emphasis', token, depth);
    case 'del':
      return group('deleted', token, depth);
    case 'codespan':
      return [{ kind: 'code', text: (token as Tokens.Codespan).text }];
    case 'br':
      return [{ kind: 'break' }];
    case 'link':
      return toLink(token as Tokens.Link, depth);
    case 'image':
      return toImage(token as Tokens.Image);
    case 'html':
      return /^<br\s*\/?>$/iu.test(token.raw) ? [{ kind: 'break' }] : [{ kind: 'text', text: token.raw }];
    case 'checkbox':
      return [];
    case 'escape':
      return [{ kind: 'text', text: (token as Tokens.Escape).text }];
    case 'text': {
      const { tokens, text } = token as Tokens.Text;
      return tokens === undefined ? [{ kind: 'text', text: decodeEntities(text) }] : toInlines(tokens, depth);
    }
    default:
      return [{ kind: 'text', text: token.raw }];
  }
}

function toList({ ordered, start, items }: Tokens.List, depth: number): Block {
  return {
    kind: 'list',
    start: ordered ? Number(start || 1) : null,
    items: items.map((item) => ({
      checked: item.task ? item.checked === true : null,
      blocks: toBlocks(item.tokens, depth + 1),
    })),
  };
}

function toTable({ align, header, rows }: Tokens.Table, depth: number): Block {
  const cells = (row: readonly Tokens.TableCell[]) => row.map((cell) => toInlines(cell.tokens, depth));
  return { kind: 'table', align, header: cells(header), rows: rows.map(cells) };
}

function toBlocks(tokens: readonly Token[] | undefined, depth: number): Block[] {
  return (tokens ?? []).flatMap((token) => toBlock(token, depth));
}

function toBlock(token: Token, depth: number): Block[] {
  if (depth > MAX_DEPTH) return [{ kind: 'plain', text: token.raw }];
  switch (token.type) {
    case 'space':
    case 'checkbox':
      return [];
    case 'paragraph':
      return [{ kind: 'paragraph', children: toInlines((token as Tokens.Paragraph).tokens, depth) }];
    case 'heading': {
      const { depth: level, tokens } = token as Tokens.Heading;
      return [{ kind: 'heading', level: level as HeadingLevel, children: toInlines(tokens, depth) }];
    }
    case 'code': {
      const { lang, text } = token as Tokens.Code;
      return [{ kind: 'code', language: (lang ?? '').trim().split(/\s/u)[0]?.toLowerCase() ?? '', text }];
    }
    case 'blockquote':
      return [{ kind: 'quote', blocks: toBlocks((token as Tokens.Blockquote).tokens, depth + 1) }];
    case 'list':
      return [toList(token as Tokens.List, depth)];
    case 'table':
      return [toTable(token as Tokens.Table, depth)];
    case 'hr':
      return [{ kind: 'rule' }];
    case 'html':
      return [{ kind: 'plain', text: token.raw.trimEnd() }];
    default:
      return [{ kind: 'line', children: toInline(token, depth) }];
  }
}

/**
 * Definitions of reference links (`[1]: https://…`) stay visible text: a block then means the same whatever follows
 * it, and no address hides far from its link.
 */
class SelfContainedTokenizer extends Tokenizer {
  override def(): undefined {
    return undefined;
  }
}

class BoundedLexer extends Lexer {
  override inlineTokens(source: string, tokens: Token[] = []): Token[] {
    if (source.length <= MAX_INLINE_CHARS) return super.inlineTokens(source, tokens);
    tokens.push({ type: 'text', raw: source, text: source });
    return tokens;
  }
}

function lex(text: string): Token[] | null {
  if (text.length > MAX_CHARS || NESTING_BOMB.test(text)) return null;
  return new BoundedLexer({ gfm: true, tokenizer: new SelfContainedTokenizer() }).lex(text);
}

/** Find the blocks of a whole text; the readable reference that `parseMarkdown` is tested against. */
export function parseBlocks(text: string): readonly Block[] {
  const tokens = lex(text);
  return tokens === null ? [{ kind: 'plain', text }] : toBlocks(tokens, 0);
}

/** A text and its blocks so far. */
export interface Markdown {
  readonly text: string;
  /** Blocks that more text cannot change any more. */
  readonly closed: readonly Block[];
  /** Blocks that it can: they are found anew each time. */
  readonly open: readonly Block[];
  /** Where in the text the open blocks begin. */
  readonly openStart: number;
}

const EMPTY: Markdown = { text: '', closed: [], open: [], openStart: 0 };

/** How many of the tokens are closed: all before the last one that is not blank. */
function countClosed(tokens: readonly Token[]): number {
  return Math.max(
    0,
    tokens.findLastIndex(({ type }) => type !== 'space'),
  );
}

/**
 * Find the blocks of a text that grows at its end, reusing what `previous` knows.
 * Blocks close on whole lines only, because half a line can still change its meaning. Each token costs the length of
 * the open block, not of the whole text; closed blocks keep their identity, so that nothing draws them again.
 */
export function parseMarkdown(source: string, previous: Markdown = EMPTY): Markdown {
  const text = source.replace(/\r\n?/gu, '\n');
  const base = text.startsWith(previous.text) ? previous : EMPTY;
  const wholeLines = text.slice(base.openStart, text.lastIndexOf('\n') + 1);
  const tokens = lex(wholeLines) ?? [];
  const closing = tokens.slice(0, countClosed(tokens));
  const openStart = base.openStart + closing.reduce((length, { raw }) => length + raw.length, 0);
  return {
    text,
    closed: closing.length === 0 ? base.closed : [...base.closed, ...toBlocks(closing, 0)],
    open: parseBlocks(text.slice(openStart)),
    openStart,
  };
}
