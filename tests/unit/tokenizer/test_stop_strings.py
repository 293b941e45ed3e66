"""The automaton against a search of the whole text."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenstack.tokenizer import StopStrings

LETTERS = st.text(st.sampled_from("ab\n中"), max_size=24)
STOPS = st.lists(st.text(st.sampled_from("ab\n中"), min_size=1, max_size=5), max_size=4)


def first_match(text: str, stops: list[str]) -> tuple[int, str] | None:
    """Return where the text is cut and by what: the match that ends first, of equals the longest."""
    found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not found:
        return None
    end, _, stop = min(found)
    return end - len(stop), stop


def feed(stops: StopStrings, pieces: list[str]) -> list[str]:
    return [*map(stops.push, pieces), stops.finish()]


@given(LETTERS, STOPS, st.lists(st.integers(0, 24), max_size=6), st.booleans())
@example("aab", ["ab", "aab"], [1, 2], False)
@example("abab", ["bab", "ba"], [], False)
@example("aab", ["aabb", "ab"], [], False)
@settings(deadline=None, max_examples=500)
def test_any_cut_of_the_text_gives_what_a_search_of_the_whole_gives(
    text: str, strings: list[str], cuts: list[int], include: bool
) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(edges)]
    stops = StopStrings(strings, include_in_output=include)
    released = "".join(feed(stops, pieces))
    match = first_match(text, strings)
    if match is None:
        assert (released, stops.matched) == (text, None)
    else:
        cut, stop = match
        assert (released, stops.matched) == (text[:cut] + (stop if include else ""), stop)
    assert stops.num_released == len(released)


@given(LETTERS, STOPS)
@settings(deadline=None)
def test_no_more_is_held_back_than_a_match_could_need(text: str, strings: list[str]) -> None:
    stops = StopStrings(strings)
    for length in range(1, len(text) + 1):
        stops.push(text[length - 1])
        if stops.matched is not None:
            return
        prefixes = [stop[:size] for stop in strings for size in range(len(stop))]
        held = max((len(prefix) for prefix in prefixes if text[:length].endswith(prefix)), default=0)
        assert stops.num_released == length - held


def test_after_a_match_nothing_more_is_released() -> None:
    stops = StopStrings(["\n\n"])
    assert feed(stops, ["one\n", "\ntwo", "three"]) == ["one", "", "", ""]
    assert stops.matched == "\n\n"
    assert stops.num_released == 3


def test_without_stop_strings_everything_passes_at_once() -> None:
    stops = StopStrings([])
    assert feed(stops, ["a", "b"]) == ["a", "b", ""]
