/** Colours code. Loaded when the first code block shows: it is larger than the rest of the page. */

import bash from 'highlight.js/lib/languages/bash';
import c from 'highlight.js/lib/languages/c';
import cpp from 'highlight.js/lib/languages/cpp';
import css from 'highlight.js/lib/languages/css';
import diff from 'highlight.js/lib/languages/diff';
import go from 'highlight.js/lib/languages/go';
import java from 'highlight.js/lib/languages/java';
import javascript from 'highlight.js/lib/languages/javascript';
import json from 'highlight.js/lib/languages/json';
import markdown from 'highlight.js/lib/languages/markdown';
import python from 'highlight.js/lib/languages/python';
import rust from 'highlight.js/lib/languages/rust';
import sql from 'highlight.js/lib/languages/sql';
import typescript from 'highlight.js/lib/languages/typescript';
import xml from 'highlight.js/lib/languages/xml';
import yaml from 'highlight.js/lib/languages/yaml';
import { createLowlight } from 'lowlight';

const lowlight = createLowlight({
  bash,
  c,
  cpp,
  css,
  diff,
  go,
  java,
  javascript,
  json,
  markdown,
  python,
  rust,
  sql,
  typescript,
  xml,
  yaml,
});

/** A piece of code: text, or a coloured group of pieces. A tree, not HTML: nothing has to be trusted. */
export type CodeNode =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'group'; readonly className: string; readonly children: readonly CodeNode[] };

type Content = ReturnType<typeof lowlight.highlight>['children'][number];

function toCodeNode(content: Content): CodeNode[] {
  if (content.type === 'text') return [{ kind: 'text', text: content.value }];
  if (content.type !== 'element') return [];
  const { className } = content.properties;
  const children = content.children.flatMap(toCodeNode);
  return [{ kind: 'group', className: Array.isArray(className) ? className.join(' ') : '', children }];
}

/** Colour code of a known language (or an alias such as `py`); `null` for an unknown one. */
export function highlight(code: string, language: string): readonly CodeNode[] | null {
  if (!lowlight.registered(language)) return null;
  return lowlight.highlight(language, code).children.flatMap(toCodeNode);
}
