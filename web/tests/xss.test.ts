import { readdirSync, readFileSync } from 'node:fs';
import { flushSync, mount, unmount } from 'svelte';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import Harness from './Harness.svelte';
import payloads from './xss-payloads.json';

/** All that the page draws of a model's answer. */
const ELEMENTS = new Set(
  (
    'a blockquote br button code del div em figcaption figure h3 h4 h5 h6 hr input li ol p path pre span strong svg ' +
    'table tbody td th thead tr ul'
  ).split(' '),
);
const ATTRIBUTES = new Set(
  (
    'aria-hidden aria-label checked class d dir disabled fill height href rel scope start stroke stroke-linecap ' +
    'stroke-linejoin stroke-width tabindex target title type viewbox width'
  ).split(' '),
);
const SCHEMES = new Set(['http:', 'https:', 'mailto:']);

beforeEach(() => {
  vi.stubGlobal('matchMedia', () => ({ matches: false, addEventListener: () => {}, removeEventListener: () => {} }));
  vi.stubGlobal('alert', vi.fn());
});

afterEach(() => {
  vi.unstubAllGlobals();
  document.body.replaceChildren();
});

function checkElement(element: Element): void {
  expect(ELEMENTS, element.outerHTML).toContain(element.tagName.toLowerCase());
  for (const { name, value } of element.attributes) {
    expect(ATTRIBUTES, `${name}=${value}`).toContain(name.toLowerCase());
  }
  if (element instanceof HTMLAnchorElement) {
    expect(SCHEMES).toContain(new URL(element.href).protocol);
    expect(element.rel).toBe('noopener noreferrer nofollow');
    expect(element.target).toBe('_blank');
  }
}

test('there are at least 60 payloads', () => {
  expect(new Set(payloads).size).toBeGreaterThanOrEqual(60);
});

test.each(payloads)('inert, whole and while it arrives: %s', (payload) => {
  for (const text of [payload, ...[0.3, 0.6, 0.9].map((part) => payload.slice(0, Math.ceil(part * payload.length)))]) {
    const page = mount(Harness, { target: document.body, props: { text, isGrowing: text !== payload } });
    flushSync();
    document.body.querySelectorAll('*').forEach(checkElement);
    void unmount(page);
  }
  expect(alert).not.toHaveBeenCalled();
});

test('no source turns text into markup or code', () => {
  const FORBIDDEN =
    /\{@html|innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|\beval\(|new Function|DOMParser/u;
  const files = readdirSync('src', { recursive: true, encoding: 'utf8' }).filter((name) =>
    /\.(?:ts|svelte)$/u.test(name),
  );
  expect(files.length).toBeGreaterThan(20);
  for (const name of files) expect(readFileSync(`src/${name}`, 'utf8'), name).not.toMatch(FORBIDDEN);
});
