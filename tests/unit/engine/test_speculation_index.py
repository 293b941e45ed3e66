"""The index of a text's pairs finds what a search through the whole text finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwenstack.engine.speculation.suffix_index import MAX_MATCH, Match, SuffixIndex

texts = st.lists(st.integers(0, 3), max_size=60)


def by_the_book(text: list[int]) -> Match | None:
    """Compare every earlier place; at most 30 of them, so that the index may not look at fewer."""
    best = None
    for end in range(2, len(text)):
        length = 0
        while length < min(end, MAX_MATCH) and text[end - 1 - length] == text[-1 - length]:
            length += 1
        if length >= 2 and (best is None or length >= best.length):
            best = Match(end=end, length=length)
    return best


@given(st.lists(st.integers(0, 3), max_size=32), texts)
def test_the_longest_and_latest_match_is_found_wherever_the_prompt_ends(prompt: list[int], answer: list[int]) -> None:
    index = SuffixIndex(prompt)
    text = list(prompt)
    for token in answer[:30]:
        index.append(token)
        text.append(token)
        found, expected = index.longest_match(), by_the_book(text)
        if len(text) <= 32:
            assert found == expected
        elif found is not None:
            assert text[found.end - found.length : found.end] == text[-found.length :]


def test_a_continuation_that_reaches_the_end_goes_round() -> None:
    index = SuffixIndex([9, 1, 2, 3, 1, 2, 3, 1, 2])
    match = index.longest_match()
    assert match == Match(end=6, length=5)
    assert index.continuation(match.end, 8) == [3, 1, 2, 3, 1, 2, 3, 1]


def test_a_frequent_pair_is_compared_in_its_latest_places_only() -> None:
    early = [5, 6, 7, 1, 2, 8]
    index = SuffixIndex([*early, *[0, 1, 2] * 40, 5, 6, 7, 1, 2])
    match = index.longest_match()
    assert match is not None
    assert match.length == 2
