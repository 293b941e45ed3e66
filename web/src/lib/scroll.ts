/** Follow the end of a growing text while the reader is there, and never pull a reader back who went up. */

import type { Attachment } from 'svelte/attachments';

/** Close enough to the end to count as reading the newest line. */
const NEAR_END_PX = 100;
/** Rounding of fractional scroll positions. */
const AT_END_PX = 2;

export interface ScrollPosition {
  readonly top: number;
  readonly viewport: number;
  readonly content: number;
}

export function distanceFromEnd({ top, viewport, content }: ScrollPosition): number {
  return Math.max(0, content - viewport - top);
}

/**
 * Decide after a scroll whether to go on following.
 * Moving up ends it, unless the content shrank and the view still rests on the end; coming down to the end resumes it.
 */
export function followsAfterScroll(follows: boolean, previousTop: number, now: ScrollPosition): boolean {
  const distance = distanceFromEnd(now);
  if (distance <= AT_END_PX) return true;
  if (now.top < previousTop) return false;
  return now.top > previousTop && distance <= NEAR_END_PX ? true : follows;
}

const KEYS_THAT_GO_UP: ReadonlySet<string> = new Set(['ArrowUp', 'PageUp', 'Home']);

export interface FollowOptions {
  /** Told whenever following starts or ends. */
  readonly onFollowChange: (follows: boolean) => void;
}

export interface Follower {
  readonly attach: Attachment<HTMLElement>;
  /** Go to the end and follow from there. */
  toEnd(): void;
}

/** Make a follower for one scrolling element whose first child holds the content. */
export function createFollower({ onFollowChange }: FollowOptions): Follower {
  let element: HTMLElement | undefined;
  let follows = true;
  let previousTop = 0;

  function setFollows(next: boolean): void {
    if (next === follows) return;
    follows = next;
    onFollowChange(next);
  }

  function position(of: HTMLElement): ScrollPosition {
    return { top: of.scrollTop, viewport: of.clientHeight, content: of.scrollHeight };
  }

  function jump(): void {
    if (element === undefined) return;
    element.scrollTop = element.scrollHeight;
    previousTop = element.scrollTop;
  }

  const attach: Attachment<HTMLElement> = (node) => {
    element = node;
    const abort = new AbortController();
    const options = { passive: true, signal: abort.signal } as const;
    const canScroll = () => node.scrollHeight > node.clientHeight;
    const leaveEnd = () => canScroll() && setFollows(false);

    node.addEventListener('wheel', (event) => event.deltaY < 0 && leaveEnd(), options);
    node.addEventListener('touchmove', leaveEnd, options);
    node.addEventListener('keydown', (event) => KEYS_THAT_GO_UP.has(event.key) && leaveEnd(), options);
    node.addEventListener(
      'scroll',
      () => {
        const now = position(node);
        setFollows(followsAfterScroll(follows, previousTop, now));
        previousTop = now.top;
      },
      options,
    );

    const resize = new ResizeObserver(() => follows && jump());
    resize.observe(node);
    if (node.firstElementChild !== null) resize.observe(node.firstElementChild);
    jump();
    return () => {
      abort.abort();
      resize.disconnect();
      element = undefined;
    };
  };

  return {
    attach,
    toEnd() {
      setFollows(true);
      jump();
    },
  };
}
