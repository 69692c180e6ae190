"""Cursors: what was given comes back, anything else is refused."""

from contextlib import suppress

import pytest
from cortex_api.rest.pages import decode_number, decode_text, encode_cursor
from cortex_shared.errors import InvalidInput
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(0, 2**63 - 1))
def test_numbers_come_back(number: int) -> None:
    assert decode_number(encode_cursor(number)) == number


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40))
def test_texts_come_back(text: str) -> None:
    assert decode_text(encode_cursor(text)) == text


@given(st.text(max_size=40))
def test_rubbish_is_refused_or_a_number(cursor: str) -> None:
    with suppress(InvalidInput):
        assert decode_number(cursor) >= 0


@pytest.mark.parametrize("other", ["W10", "eyJhIjoxfQ", encode_cursor("text"), "W3RydWVd" * 9, "WzEsMl0"])
def test_another_lists_cursor_is_refused(other: str) -> None:
    with pytest.raises(InvalidInput):
        decode_number(other)


def test_no_cursor_is_the_beginning() -> None:
    assert decode_number(None) == 0
    assert decode_text(None) == ""
