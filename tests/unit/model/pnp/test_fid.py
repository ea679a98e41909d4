"""Fusion-in-Decoder: the answers of the plain model over all contexts of a question, whatever else is in the batch."""

from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from model.pnp.fid import Answer, FidReader, contexts, load_reader
from model.precision import t5_dtype
from shards.errors import ConfigError, DataError
from tests.models import tiny_captioner, tiny_t5

QUESTIONS = (
    "what color is the big circle",
    "Is there a red square?",
    "yes",
    "is the circle to the left of the square",
    "what is red",
    "is no color blue",
    "what",
    "the big square",
)
CAPTIONS: tuple[list[str], ...] = (
    ["a red circle", "the big blue circle is to the left", "no square"],
    ["the square is red", "yes"],
    [],
    ["a circle", "a square", "a red square", "a blue circle", "the left", "blue", "red of blue"],
    ["red"],
    ["w1 w2 w3 w4 w5 w6", "w7 w8", "w9", "w10 red", "0 1 2", "blue blue blue"],
    ["the"] * 9,
    ["is", "is it"],
)
SIZES = {"captions_per_context": 2, "max_tokens": 8}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_t5(tmp_path_factory.mktemp("t5"), seed=3)


@pytest.fixture
def reader(directory: str) -> FidReader:
    return some_end(load_reader(directory))


def some_end(reader: FidReader) -> FidReader:
    """With a louder end token: an untrained model hardly ever ends an answer."""
    with torch.no_grad():
        reader._model.shared.weight[1] *= 4
    return reader


def slowly(reader: FidReader, question: str, captions: list[str]) -> Answer:
    """The same with one plain call of the model per context and per token, nothing padded, nothing kept."""
    model, tokenizer = reader._model, reader._tokenizer
    states = []
    for text in contexts(question, captions, captions_per_context=2):
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], 1]
        states.append(model.encoder(input_ids=torch.tensor([ids])).last_hidden_state)
    fused, written, probability = torch.cat(states, dim=1), [0], 1.0
    while len(written) < SIZES["max_tokens"] and written[-1] != 1:
        logits = model(encoder_outputs=(fused,), decoder_input_ids=torch.tensor([written])).logits[0, -1]
        written.append(int(logits.argmax()))
        probability *= float(logits.softmax(dim=0).max())
    return Answer(tokenizer.decode(written, skip_special_tokens=True).strip(), probability)


def assert_equal(answers: list[Answer], expected: list[Answer]) -> None:
    assert [answer.text for answer in answers] == [answer.text for answer in expected]
    torch.testing.assert_close(
        [answer.confidence for answer in answers], [answer.confidence for answer in expected], atol=1e-6, rtol=1e-4
    )


def test_a_context_is_the_question_a_literal_backslash_n_and_captions_with_full_stops() -> None:
    seen = ["A red Car ", "two dogs", "the sky"]
    assert contexts(" What is RED? ", seen, captions_per_context=2) == [
        r"what is red? \n a red car. two dogs.",
        r"what is red? \n the sky.",
    ]
    assert contexts("why", seen, captions_per_context=3) == [r"why \n a red car. two dogs. the sky."]
    assert len(contexts("why", seen, captions_per_context=1)) == 3
    assert contexts("Why ", [], captions_per_context=5) == ["why"]


def test_answers_equal_the_plain_model_context_by_context_and_token_by_token(reader: FidReader) -> None:
    answers = reader.answer(QUESTIONS, CAPTIONS, **SIZES)
    assert_equal(answers, [slowly(reader, *asked) for asked in zip(QUESTIONS, CAPTIONS, strict=True)])
    assert len({answer.text for answer in answers}) > 4, "the same answer to everything would prove nothing"
    assert len({len(answer.text.split()) for answer in answers}) > 1, "some end, some are cut"


def test_an_answer_does_not_depend_on_the_other_questions(reader: FidReader, monkeypatch: pytest.MonkeyPatch) -> None:
    together = reader.answer(QUESTIONS, CAPTIONS, **SIZES)
    assert_equal([reader.answer([q], [c], **SIZES)[0] for q, c in zip(QUESTIONS, CAPTIONS, strict=True)], together)
    monkeypatch.setattr("model.pnp.fid.CONTEXTS_PER_BATCH", 3)
    assert_equal(reader.answer(QUESTIONS[::-1], CAPTIONS[::-1], **SIZES), together[::-1])
    assert reader.answer([], []) == []


def test_all_contexts_of_all_questions_are_one_encoder_batch_and_one_generate_call(
    reader: FidReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, generated = [], []
    generate = reader._model.generate
    monkeypatch.setattr(reader._model, "generate", lambda **named: generated.append(1) or generate(**named))
    handle = reader._model.encoder.register_forward_hook(lambda *_: encoded.append(1))
    reader.answer(QUESTIONS, CAPTIONS, **SIZES)
    handle.remove()
    assert (len(encoded), len(generated)) == (1, 1)


def test_every_caption_counts(reader: FidReader) -> None:
    base = reader.answer(QUESTIONS[:1], [["red", "blue", "the left", "no"]], **SIZES)[0]
    for place in range(4):
        seen = ["red", "blue", "the left", "no"]
        seen[place] = "a big square"
        assert reader.answer(QUESTIONS[:1], [seen], **SIZES)[0].confidence != base.confidence


def test_long_contexts_are_cut_and_a_long_question_leaves_room_for_captions(reader: FidReader) -> None:
    words, limit = ("what color is the big circle " * 10).split(), {"max_context_tokens": 8}
    red, blue = (reader.answer([" ".join(words)], [[color]], **SIZES, **limit) for color in ("red", "blue"))
    assert red != blue
    assert red == reader.answer([" ".join(words[:4])], [["red"]], **SIZES, **limit)
    long = [["red blue square circle " * 5]]
    assert reader.answer(["what color"], long, **SIZES, **limit) == reader.answer(
        ["what color"], [["red blue square circle red blue"]], **SIZES, **limit
    )


def test_what_a_checkpoint_says_of_beams_and_lengths_does_not_apply(reader: FidReader, directory: str) -> None:
    other = some_end(load_reader(directory))
    wild = GenerationConfig(num_beams=3, min_length=6, repetition_penalty=9.0, do_sample=True, pad_token_id=0)
    other._model.generation_config = wild
    other = FidReader(other._model, other._tokenizer)
    assert other.answer(QUESTIONS, CAPTIONS, **SIZES) == reader.answer(QUESTIONS, CAPTIONS, **SIZES)


def test_a_reader_never_computes_in_fp16(reader: FidReader) -> None:
    expected = reader.answer(QUESTIONS[:2], CAPTIONS[:2], **SIZES)
    reader._model.half()
    with pytest.raises(AssertionError, match="fp16"):
        reader.answer(QUESTIONS[:2], CAPTIONS[:2], **SIZES)
    reader.place(torch.device("cpu"))
    assert {parameter.dtype for parameter in reader._model.parameters()} == {torch.float32}
    answers = reader.answer(QUESTIONS[:2], CAPTIONS[:2], **SIZES)
    assert [answer.text for answer in answers] == [answer.text for answer in expected]


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_gives_bf16_where_it_computes_in_it_and_fp32_elsewhere(
    supported: bool, expected: torch.dtype, reader: FidReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation
    )
    placed = []
    monkeypatch.setattr(reader._model, "to", lambda **where: placed.append(where))
    gpu = torch.device("cuda", 0)
    reader.place(gpu)
    assert placed == [{"device": gpu, "dtype": expected}]
    assert t5_dtype(torch.device("cpu")) == torch.float32


def test_a_reader_in_bf16_answers(reader: FidReader) -> None:
    reader._model.to(torch.bfloat16)
    answers = reader.answer(QUESTIONS, CAPTIONS, **SIZES)
    assert len(answers) == len(QUESTIONS)
    assert all(0 < answer.confidence <= 1 for answer in answers)


def test_what_is_no_t5_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected config\.json"):
        load_reader(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="is a BlipForConditionalGeneration; expected T5ForConditionalGeneration"):
        load_reader(tiny_captioner(tmp_path))
