"""The usual spelling of what a tokenizer gives back that splits at punctuation (BERT's `t - shirt`): pure functions."""

import re

_CLEANED = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)

_LETTER = r"[^\W\d_]"
_JOINED = tuple(
    (re.compile(pattern), spelled)
    for pattern, spelled in (
        (r" ([.,?!:;%)\]])", r"\1"),  # no blank before these: `50 %`
        (r"([$#(\[]) ", r"\1"),  # none behind these: `$ 5`
        (r"(?<=\w) ([-/_@]) (?=\w)", r"\1"),  # none around these between words: `t - shirt`
        (r"^- (?=\d)", "-"),  # a sign: `- 5`
        (r"(?<=\d)([.:]) (?=\d)", r"\1"),  # between digits: `12: 35`, `2. 00`
        (r"(?<=\d), (?=\d{3}(?!\d))", ","),  # before thousands: `1, 000`
        (rf"(?<=\b{_LETTER}\.) (?={_LETTER}\.)", ""),  # initials: `u. s. a.`
        (rf"(?<=\b{_LETTER}) & (?={_LETTER})|(?<={_LETTER}) & (?={_LETTER}\b)", "&"),  # by a single letter: `at & t`
        # An apostrophe stands at what comes before it (`boys' room`), and at what comes behind where that is an ending
        # (`don ' t`, `they ' re`), after letters like that of `o ' clock`, between digits, and at the beginning.
        (r"(?<=\w) '(?= |$)", "'"),
        (r"(?<=\w)' (?=(?:[stmd]|am|ll|re|ve)\b)|(?<=\b[dlmoy])' (?=\w)|(?<=\d)' (?=\d)|^' (?=\w)", "'"),
    )
)


def clean_up(text: str) -> str:
    """What transformers calls cleaned up (`clean_up_tokenization_spaces`), in any version and for any tokenizer.

    It is how LAVIS has its captions: `a man's shirt`, and still `t - shirt`.
    """
    for spaced, cleaned in _CLEANED:
        text = text.replace(spaced, cleaned)
    return text


def join_punctuation(text: str) -> str:
    """The usual spelling of a short text whose punctuation stands apart: `dry - erase board` is `dry-erase board`.

    Blanks are taken away, nothing else is changed; a text of words and digits, or one that is spelled already, stays
    as it is. What has two usual spellings is left apart: quotes, `salt & pepper`.
    """
    for pattern, spelled in _JOINED:
        text = pattern.sub(spelled, text)
    return text
