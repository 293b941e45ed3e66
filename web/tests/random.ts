/** A small deterministic generator, so that a failure can be repeated (mulberry32). */
export function seededRandom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Cut a text into pieces of 1 to `longest` UTF-16 units. */
export function cut(text: string, longest: number, random: () => number): string[] {
  const pieces: string[] = [];
  for (let start = 0; start < text.length;) {
    const end = Math.min(text.length, start + 1 + Math.floor(random() * longest));
    pieces.push(text.slice(start, end));
    start = end;
  }
  return pieces;
}
