"""Decoded text is spelled as its readers expect: captions as LAVIS has them, answers as the data set writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from transformers import BlipForConditionalGeneration, PreTrainedTokenizerFast

from model.config import CaptionConfig
from model.pnp.captions import Captioner
from model.towers.spelling import clean_up, join_punctuation
from model.towers.tokenizer import BlipCodec, T5Codec, build_tokenizer
from tests.models import tiny_blip
from trainer.training.lost_answers import lost_answers

GQA = ("t-shirt", "dry-erase board")
"""All of the 1,842 answers of GQA's balanced train and val questions that hold more than letters, digits and blanks."""
VQA = (
    *("1.00", "2.00", "at&t", "baby's breath", "can't see", "can't see it", "can't tell", "don't know", "don't walk"),
    *("he isn't", "he's not", "i don't know", "it isn't", "it's not", "it's raining", "man's", "mcdonald's", "men's"),
    *("nathan's", "st patrick's day", "they aren't", "valentine's day", "woman's", "women's"),
    *(f"{hour}:{minute:02}" for hour in range(1, 13) for minute in range(60)),
)
"""Those of the 3,129 answers of VQA v2 that are given at least nine times, with all times of the day for its times."""
OTHERS = (
    *("x-ray", "merry-go-round", "7-eleven", "black/white", "1/2", "10-20", "-5", "50%", "$5", "#1", "1,000", "(left)"),
    *(
        "1,234,567",
        "h&m",
        "m&m's",
        "salt & pepper",
        "yes, it is",
        "what?",
        "st. louis",
        "u.s.a.",
        "u.s. open",
        "5 p.m.",
    ),
    *("j.p. morgan", "boys' room", "dunkin' donuts", "5 o'clock", "y'all", "ma'am", "we're", "i'll", "i've", "i'm"),
    *("she'd", "6'2", "'90s"),
)
LOST = ("café", "new york - paris", '"stop"', "Yes", "one  two")
"""No rule brings these back from BERT's tokenizer: an accent, blanks and quotes that are not the usual ones, case."""


def codec(*answers: str, max_answer_tokens: int = 30) -> BlipCodec:
    tokenizer = build_tokenizer(answers, vocab_size=10_000)
    ids = {"start_id": tokenizer.bos_token_id, "end_id": tokenizer.sep_token_id, "pad_id": tokenizer.pad_token_id}
    ids["first_id"] = tokenizer.cls_token_id
    return BlipCodec(tokenizer=tokenizer, **ids, max_question_tokens=30, max_answer_tokens=max_answer_tokens)


def t5_codec(*answers: str) -> T5Codec:
    """One whose pieces know their blanks, as SentencePiece's do."""
    characters = sorted({character for answer in answers for character in answer} - {" "})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in ("▁", *characters))]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer, tokenizer.decoder = Metaspace(), MetaspaceDecoder()
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return T5Codec(tokenizer=plain, start_id=0, end_id=1, pad_id=0, max_question_tokens=30, max_answer_tokens=60)


@pytest.mark.parametrize("answers", [GQA, VQA, OTHERS], ids=["gqa", "vqa", "others"])
def test_the_answers_of_a_data_set_survive_blips_tokenizer(answers: tuple[str, ...]) -> None:
    reader = codec(*answers)
    assert reader.decode(reader.answers(answers)) == list(answers)
    assert lost_answers(reader, dict.fromkeys(answers, 1)) is None


def test_they_survive_t5s_tokenizer_too_and_so_does_odd_spacing() -> None:
    answers = (*GQA, *VQA, *OTHERS, "new york - paris", '"stop"', "café", "a . b")
    reader = t5_codec(*answers)
    assert reader.decode(reader.answers(answers)) == list(answers)


@given(st.text(alphabet="abcstmd 0123456789", max_size=20))
def test_words_and_digits_stay_as_they_are(text: str) -> None:
    assert join_punctuation(text) == clean_up(text) == text


@pytest.mark.parametrize("text", [*GQA, *VQA[:24], *OTHERS, "rock 'n' roll", "a 'b' c"])
def test_what_is_spelled_already_stays_as_it_is(text: str) -> None:
    assert join_punctuation(text) == text


@pytest.mark.parametrize(
    ("decoded", "lavis"),
    [
        ("a man .", "a man."),
        ("a man ?", "a man?"),
        ("a man !", "a man!"),
        ("red , blue", "red, blue"),
        ("a man ' s shirt", "a man's shirt"),
        ("it does n't", "it doesn't"),
        ("i 'm", "i'm"),
        ("a man 's", "a man's"),
        ("we 've", "we've"),
        ("we 're", "we're"),
        ("a t - shirt", "a t - shirt"),
        ("10 : 30", "10 : 30"),
    ],
)
def test_captions_are_cleaned_up_as_in_lavis(decoded: str, lavis: str) -> None:
    assert clean_up(decoded) == lavis
    tokenizer = build_tokenizer([decoded], vocab_size=200)
    assert tokenizer.clean_up_tokenization(decoded) == lavis, "transformers has the same rule"


def test_a_captioner_writes_cleaned_text_whatever_its_tokenizers_files_ask_for() -> None:
    sentence = "a man ' s t - shirt , red"
    for asked in (True, False):
        tokenizer = build_tokenizer([sentence, "a picture of"], vocab_size=200)
        tokenizer.clean_up_tokenization_spaces = asked
        writer = Captioner(tiny_blip(BlipForConditionalGeneration), tokenizer, CaptionConfig())
        ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
        assert writer._text(ids) == "a man's t - shirt, red"


@pytest.mark.parametrize("answer", LOST)
def test_an_answer_that_cannot_come_back_is_told_with_its_questions(answer: str) -> None:
    told = lost_answers(codec(answer, *GQA), {answer: 30, GQA[0]: 50, GQA[1]: 20})
    assert told is not None
    assert told.startswith("1 of 3 answers (30 of 100 questions) can never be matched")
    assert f"such as {answer!r} -> " in told
    assert "\n" not in told


def test_so_is_one_that_is_cut_or_unknown() -> None:
    cut = lost_answers(codec("a b c d", max_answer_tokens=4), {"a b c d": 1})
    assert cut is not None
    assert "'a b c d' -> 'a b c'; raise data.max_answer_tokens" in cut
    unknown = lost_answers(codec("a"), {"a": 1, "z": 5, "a z": 2})
    assert unknown is not None
    assert unknown.startswith("2 of 3 answers (7 of 8 questions)")
    assert "'z' -> ''" in unknown


def test_of_two_answers_with_the_same_tokens_one_is_lost() -> None:
    told = lost_answers(codec("t-shirt"), {"t-shirt": 3, "t - shirt": 1})
    assert told is not None
    assert told.startswith("1 of 2 answers (1 of 4 questions)")
    assert "'t - shirt' -> 't-shirt'" in told
