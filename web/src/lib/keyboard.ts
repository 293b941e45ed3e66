/** What the keys of the message box mean. */

export type EnterMeaning = 'send' | 'edit';

type KeyPress = Pick<KeyboardEvent, 'key' | 'shiftKey' | 'ctrlKey' | 'altKey' | 'metaKey' | 'isComposing' | 'keyCode'>;

/** Browsers report this code for a key that an input method has taken. */
const KEY_CODE_OF_INPUT_METHOD = 229;

/**
 * Decide whether a key press sends the message; anything else stays an edit.
 * The Enter that picks a candidate of an input method never sends: Chromium and Firefox mark it with `isComposing`,
 * Safari ends the composition first and only leaves key code 229.
 */
export function meaningOfKey(press: KeyPress): EnterMeaning {
  const isInputMethod = press.isComposing || press.keyCode === KEY_CODE_OF_INPUT_METHOD;
  if (press.key !== 'Enter' || isInputMethod || press.shiftKey || press.altKey) return 'edit';
  return 'send';
}
