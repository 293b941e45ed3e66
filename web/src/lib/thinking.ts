/** Parts thinking from answering in the text of a model that marks its thoughts with `<think>…</think>`. */

const OPEN = '<think>';
const CLOSE = '</think>';

export interface SplitText {
  readonly thinking: string;
  readonly answer: string;
  /** The closing mark has not come yet. */
  readonly isThinking: boolean;
}

/** Drop the tail of `text` that may be the beginning of `mark`, so that half a mark never shows. */
function withoutPartialMark(text: string, mark: string): string {
  for (let length = Math.min(mark.length - 1, text.length); length > 0; length -= 1) {
    if (text.endsWith(mark.slice(0, length))) return text.slice(0, -length);
  }
  return text;
}

/** Where the closing mark stands. Without an opening mark it must begin a line: an answer may talk about the mark. */
function findClose(text: string, opened: boolean): number {
  if (opened || text.startsWith(CLOSE)) return text.indexOf(CLOSE);
  const lineStart = text.indexOf(`\n${CLOSE}`);
  return lineStart < 0 ? lineStart : lineStart + 1;
}

/**
 * Split all the text so far; any chunking of the same text ends in the same split.
 * A closing mark without an opening one counts too: some chat templates write the opening mark into the prompt.
 */
export function splitThinking(text: string, isComplete: boolean): SplitText {
  const start = text.trimStart();
  const opened = start.startsWith(OPEN);
  const close = findClose(start, opened);
  if (close >= 0) {
    const thinking = start.slice(opened ? OPEN.length : 0, close);
    return { thinking: thinking.trim(), answer: start.slice(close + CLOSE.length).trimStart(), isThinking: false };
  }
  if (opened) {
    const thinking = start.slice(OPEN.length);
    const shown = isComplete ? thinking : withoutPartialMark(thinking, CLOSE);
    return { thinking: shown.trim(), answer: '', isThinking: !isComplete };
  }
  if (isComplete) return { thinking: '', answer: text, isThinking: false };
  const answer = OPEN.startsWith(start) ? '' : withoutPartialMark(text, CLOSE);
  return { thinking: '', answer, isThinking: false };
}
