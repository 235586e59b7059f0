"""Words cut into windows, against what can be seen of them."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hf_tfenc.data.alignment import word_windows

# The sub-words of each word: numbers that say which word they are of, and which place they have in it.
rows = st.lists(st.integers(0, 9), max_size=25).map(
    lambda lengths: [[100 * word + place for place in range(length)] for word, length in enumerate(lengths)]
)


@given(rows, st.integers(1, 12))
def test_nothing_is_dropped_and_every_word_is_where_it_says(words, capacity):
    windows = word_windows(words, capacity)
    assert [token for window in windows for token in window.tokens] == [token for word in words for token in word]
    assert all(len(window.tokens) <= capacity for window in windows)
    placed = [
        (window.first_word + offset, window, start) for window in windows for offset, start in enumerate(window.starts)
    ]
    assert [word for word, _, _ in placed] == list(range(len(words)))
    for word, window, start in placed:
        if words[word]:
            whole = window.tokens[start : start + len(words[word])]
            assert whole == words[word][: len(whole)]
            assert whole == words[word] or len(words[word]) > capacity  # only a word too long is cut
        else:
            assert start == -1


@given(rows, st.integers(1, 12))
def test_windows_are_no_shorter_than_they_must_be(words, capacity):
    windows = word_windows(words, capacity)
    for window, following in pairwise(windows):
        begun = following.tokens[0] // 100
        rest_of_a_long_word = window.tokens[-1] // 100 == begun
        assert rest_of_a_long_word or len(window.tokens) + len(words[begun]) > capacity


def test_a_row_without_words_is_one_empty_window():
    (window,) = word_windows([], 5)
    assert (window.first_word, window.tokens, window.starts) == (0, [], [])
