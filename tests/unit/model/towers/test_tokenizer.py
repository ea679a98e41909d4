"""The tokenizer of untrained models, and the codec that every BLIP tower reads text with."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.towers import tokenizer
from model.towers.tokenizer import SPECIAL_TOKENS, BlipCodec, build_tokenizer, count_words, load_tokenizer
from shards.errors import DataError

TEXTS = ["Is the circle red?", "What color is the circle?", "yes", "no", "Is the square red?", "Überblick 42"]


def codec(**changes: int) -> BlipCodec:
    tokenizer = build_tokenizer(TEXTS, vocab_size=100)
    ids = {"start_id": tokenizer.bos_token_id, "end_id": tokenizer.sep_token_id, "pad_id": tokenizer.pad_token_id}
    ids["first_id"] = tokenizer.cls_token_id
    return BlipCodec(tokenizer=tokenizer, **ids, **{"max_question_tokens": 12, "max_answer_tokens": 6, **changes})


def test_the_vocabulary_depends_on_the_texts_alone() -> None:
    one, other = build_tokenizer(TEXTS, vocab_size=60), build_tokenizer(reversed(TEXTS), vocab_size=60)
    assert one.get_vocab() == other.get_vocab()


def test_words_are_counted_as_often_as_they_stand_there_however_few_texts_are_kept(monkeypatch) -> None:
    texts = [*TEXTS, *TEXTS[:2], "circle circle"]
    whole = count_words(texts)
    assert (whole["circle"], whole["?"], whole["uberblick"]) == (6, 5, 1)
    assert count_words(texts[:4]) + count_words(texts[4:]) == whole
    monkeypatch.setattr(tokenizer, "_COUNTED_AT_ONCE", 2)
    assert count_words(texts) == whole


def test_a_text_is_tokenised_once_and_has_the_same_ids_again(monkeypatch) -> None:
    made, asked = codec(), []
    before = made.questions(TEXTS)
    call = type(made.tokenizer).__call__
    monkeypatch.setattr(
        type(made.tokenizer), "__call__", lambda self, texts, **o: asked.extend(texts) or call(self, texts, **o)
    )
    assert made.questions(TEXTS) == before
    assert made.pairs(TEXTS[:2] * 3, ["new one"] * 6)[0] == [
        [*ids, *made.answers(["new one"])[0], made.end_id] for ids in before[0][:2] * 3
    ]
    assert asked == ["new one"]


def test_frequent_words_are_whole_and_rare_ones_fall_into_characters() -> None:
    texts = ["aa bb aa", "aa cc bb"]
    tokenizer = build_tokenizer(texts, vocab_size=len(SPECIAL_TOKENS) + 2 * len("abc") + 2)
    assert tokenizer.tokenize("aa bb cc") == ["aa", "bb", "c", "##c"]


@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6), st.integers(16, 200))
def test_no_training_text_has_an_unknown_piece(texts: list[str], vocab_size: int) -> None:
    tokenizer = build_tokenizer(texts, vocab_size=vocab_size)
    assert all(tokenizer.unk_token_id not in tokenizer(text)["input_ids"] for text in texts)


def test_a_saved_tokenizer_loads_as_it_was(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(TEXTS, vocab_size=100)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    for name in ("pad", "unk", "cls", "sep", "mask", "bos", "eos"):
        assert getattr(loaded, f"{name}_token_id") == getattr(tokenizer, f"{name}_token_id") is not None


@pytest.mark.parametrize("content", [None, b"", b"{}", b"{cut"])
def test_a_saved_tokenizer_that_is_damaged_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    directory = tmp_path / "tokenizer"
    if content is not None:
        build_tokenizer(TEXTS, vocab_size=100).save_pretrained(directory)
        (directory / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"^{directory}: no readable tokenizer \(.*\); bring its files back$"):
        load_tokenizer(directory)


def test_questions_are_framed_cut_to_the_limit_and_the_cut_is_told() -> None:
    short, long = "Is it red?", "Is the circle red? " * 5
    (first, second), cut = codec().questions([short, long])
    assert cut == [False, True]
    assert len(second) == 12
    assert first[0] == second[0] == codec().tokenizer.cls_token_id
    assert first[-1] == second[-1] == codec().end_id


def test_pairs_hold_question_and_answer_with_a_separator_behind_each() -> None:
    pair, cut = codec().pairs(["Is the circle red?"], ["yes"])
    text = codec().tokenizer.decode(pair[0])
    assert text == "[CLS] is the circle red? [SEP] yes [SEP]" or text == "[CLS] is the circle red ? [SEP] yes [SEP]"
    assert cut == [False]


def test_decoding_ends_at_the_end_token_and_leaves_special_tokens_out() -> None:
    reader = codec()
    yes, no = (reader.answers([word])[0] for word in ("yes", "no"))
    assert reader.decode([[*yes, reader.end_id, *no, reader.pad_id], [*no, reader.pad_id], [reader.end_id]]) == [
        "yes",
        "no",
        "",
    ]


@given(st.sampled_from(["red", "yes", "what color", "überblick"]))
def test_an_answer_survives_the_round_trip(answer: str) -> None:
    reader = codec(max_answer_tokens=30)
    assert reader.decode([[*reader.answers([answer])[0], reader.end_id]])[0] in (answer, answer.replace("ü", "u"))
