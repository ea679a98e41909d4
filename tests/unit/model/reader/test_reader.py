"""What a reader reads and learns, against numbers worked out by hand and against transformers' own T5."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from model.config import LossConfig, ModelConfig, ReaderConfig
from model.parts.page import page_loss, ranking
from model.reader.build import BuiltReader, add_page_tokens, build_reader
from model.reader.pages import PageHead
from model.towers.t5 import greedy
from shards.errors import DataError
from shards.format.documents import Page
from shards.read.collation import SeenVisit
from shards.tasks import TASKS
from shards.tasks.seam import Row, Target
from tests.reader import shared_t5
from tests.t5 import HEADS, change_config, t5_with_head

SIZES = ReaderConfig(page_tokens=3, max_pages=4, max_page_tokens=64)
LENGTHS = {"max_question_tokens": 24, "max_answer_tokens": 8}
LEFT = (0.1, 0.2, 0.3004, 0.25)
PAGES = [
    Page(image_id="p0", width=10, height=10, words=("Total", "[PAGE_1]"), boxes=(LEFT, (0.5, 0.2, 1.0, 0.25))),
    Page(image_id="p1", width=10, height=10),
    Page(image_id="p2", width=10, height=10, words=("12.50",), boxes=(LEFT,)),
]


def built(*, freeze: tuple[str, ...] = (), config: ReaderConfig = SIZES) -> BuiltReader:
    model = ModelConfig(reader="hi_vt5", answer=shared_t5(), freeze=freeze)
    losses = LossConfig(itm=0.0, page=0.25)
    return build_reader(model, config, losses, task=TASKS["mpdocvqa"], seed=1, **LENGTHS)


def visit(*rows: Row) -> SeenVisit:
    return SeenVisit([], {"ask": list(rows)}, len(rows), "a.tar: d1", PAGES)


ONE = Row("How MUCH?", 0, images=(0, 2), places=(1, 3), label=3, targets=(Target("12.50", 1.0),))
OTHER = Row("What?", 1, images=(1,), places=(0,), label=0, targets=(Target("nothing", 1.0),))


class TestReadings:
    def test_a_page_is_read_behind_its_tokens_and_the_question(self):
        reader = built()
        batch = reader.collation.collate([visit(ONE, OTHER)], loss_scale=1.0).batch
        readings, tokenizer = batch.readings, reader.answer_codec.tokenizer
        texts = [tokenizer.decode(ids[mask]) for ids, mask in zip(readings.ids, readings.mask, strict=True)]
        front = "[PAGE_0][PAGE_1][PAGE_2]: question:how much?context:"
        end = tokenizer.eos_token
        assert texts == [
            f"{front}total[page_1]{end}",
            f"{front}12.50{end}",
            f"{front.replace('how much?', 'what?')}{end}",
        ]
        assert (readings.question.tolist(), readings.column.tolist()) == ([0, 0, 1], [0, 1, 0])
        assert readings.place.tolist() == [1, 3, 0]
        assert batch.mask.tolist() == [[True, True], [True, False]]
        page_tokens = set(reader.collation.page_ids)
        assert not page_tokens & set(readings.ids[:, SIZES.page_tokens :].flatten().tolist()), "a word is not one"

    def test_a_token_stands_where_its_word_does(self):
        (batch, _) = built().collation.collate([visit(ONE)], loss_scale=1.0)
        boxes, mask = batch.readings.boxes[1], batch.readings.mask[1]
        word = [100, 200, 300, 250]
        length = int(mask.sum())
        assert boxes[: length - 6].tolist() == [[0, 0, 1000, 1000]] * (length - 6)
        assert boxes[length - 6 : length - 1].tolist() == [word] * 5
        assert not boxes[length - 1 :].any()

    def test_what_is_too_long_is_cut_and_said(self):
        collation = built(config=SIZES.model_copy(update={"max_page_tokens": 48})).collation
        words = ("word",) * 40
        page = Page(image_id="p", width=1, height=1, words=words, boxes=(LEFT,) * 40)
        seen = SeenVisit([], {"ask": [Row("q" * 30, 0, images=(0,), places=(0,))]}, 1, "here", [page])
        batch, cut = collation.collate([seen], loss_scale=1.0)
        assert cut == 1
        assert batch.readings.mask.sum() == 48
        assert batch.readings.ids[0, 47] == collation.codec.end_id
        assert (batch.readings.ids[0] == collation.codec.tokenizer.convert_tokens_to_ids("q")).sum() >= 24

    def test_more_pages_than_places_are_refused(self):
        with pytest.raises(
            DataError, match=r"a\.tar: d1: a question is asked of page 5 of its window, .* for 4; raise"
        ):
            built().collation.collate([visit(ONE._replace(places=(1, 4)))], loss_scale=1.0)


class TestPageHead:
    def test_the_loss_is_that_of_numbers_worked_out_by_hand(self):
        head = PageHead(max_pages=3, page_tokens=1, width=2)
        with torch.no_grad():
            head.linear.weight.copy_(torch.arange(18.0).view(3, 6) / 10)
            head.linear.bias.copy_(torch.tensor([0.0, 5.0, -6.5]))
        # Two questions: one reads pages 0 and 2, the other page 1 alone; of the first, page 2 shows the answer.
        pages = torch.tensor([[[1.0, 2.0]], [[3.0, -1.0]], [[7.0, 7.0]]])
        logits = head(pages, torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]), 2).detach()
        # Weights of page 0: .0 .1 | .4 .5 of its sides 0, 2; of page 2 (row 12..17): 1.2 1.3 | 1.6 1.7, bias -6.5.
        first, third = 0.2 + 0.7, 1.2 + 2.6 + 4.8 - 1.7 - 6.5
        assert float(logits[0, 0]) == pytest.approx(first, rel=1e-5)
        assert float(logits[0, 2]) == pytest.approx(third, rel=1e-5)
        assert logits.isinf().tolist() == [[False, True, False], [True, False, True]]
        weight = torch.tensor([0.5, 1.0])
        found = page_loss(logits, torch.tensor([2, 1]), weight)
        expected = 0.5 * math.log(1 + math.exp(first - third))
        assert float(found.loss) == pytest.approx(expected, rel=1e-4)
        assert [float(value) for value in found.sums] == pytest.approx([expected, 1.5], rel=1e-4)
        assert ranking(logits).tolist() == [[0, 2, -1], [1, -1, -1]]

    def test_an_answer_on_no_page_that_was_read_teaches_nothing(self):
        logits = torch.tensor([[1.0, -torch.inf], [2.0, 1.0]], requires_grad=True)
        found = page_loss(logits, torch.tensor([1, 0]), torch.ones(2))
        found.loss.backward()
        assert float(found.sums[1]) == 1.0
        assert float(found.loss.detach()) == pytest.approx(math.log(1 + math.exp(-1.0)))
        assert logits.grad.isfinite().all()
        assert not logits.grad[0].any()


class TestObjective:
    @pytest.mark.parametrize("freeze", [(), ("answer",)])
    @torch.no_grad()
    def test_answers_are_those_that_transformers_writes_over_the_same_states(self, freeze: tuple[str, ...]):
        reader = built(freeze=freeze)
        objective, codec = reader.objective.eval(), reader.answer_codec
        batch = reader.collation.collate([visit(ONE, OTHER)], loss_scale=1.0).batch
        written = objective.evaluate(batch).predictions["answer"]
        model, readings = objective.tower.model, batch.readings
        # Each question alone: its pages through T5's own encoder, without any padding.
        for question in range(2):
            states = []
            for number in (readings.question == question).nonzero().flatten().tolist():
                mask = readings.mask[number]
                words = model.shared(readings.ids[number][mask][None]) + objective.boxes(
                    readings.boxes[number][mask][None]
                )
                states.append(model.encoder(inputs_embeds=words).last_hidden_state[:, : SIZES.page_tokens])
            alone = model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=torch.cat(states, dim=1)),
                generation_config=greedy(
                    start_id=codec.start_id, end_id=codec.end_id, pad_id=codec.pad_id, max_new_tokens=8
                ),
            )
            assert codec.decode(alone[:, 1:].tolist()) == codec.decode(written[question : question + 1].tolist())

    @torch.no_grad()
    def test_questions_together_lose_what_they_lose_alone(self):
        reader = built()
        objective = reader.objective.eval()
        together, one, other = (
            objective.evaluate(reader.collation.collate([visit(*rows)], loss_scale=1.0).batch).sums
            for rows in ((ONE, OTHER), (ONE,), (OTHER._replace(item=0),))
        )
        torch.testing.assert_close(together, one + other, rtol=1e-5, atol=1e-5)

    def test_nothing_to_read_adds_nothing_and_runs_every_layer(self):
        reader = built()
        output = reader.objective(reader.collation.collate([], loss_scale=1.0).batch)
        assert not output.loss.detach().any()
        assert not output.sums.any()
        output.loss.backward()
        assert all(parameter.grad is not None for parameter in reader.objective.parameters())

    def test_frozen_or_not_page_tokens_begin_alike(self):
        whole, frozen = built().objective, built(freeze=("answer",)).objective
        start = whole.tower.model.shared.weight[list(built().collation.page_ids)]
        torch.testing.assert_close(frozen.page_tokens.weight, start)
        assert {name.partition(".")[0] for name, _ in frozen.named_parameters()} == {"page_tokens", "boxes", "heads"}


class TestVocabulary:
    @pytest.mark.parametrize("head", HEADS)
    def test_tokens_beyond_the_vocabulary_change_nothing_else(self, tmp_path: Path, head: str):
        directory = t5_with_head(tmp_path, head)
        change_config(tmp_path, tie_word_embeddings=head == "tied")
        model = T5ForConditionalGeneration.from_pretrained(directory).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory)
        size, given = (
            model.config.vocab_size,
            {"input_ids": torch.tensor([[3, 4, 1]]), "labels": torch.tensor([[5, 1]])},
        )
        with torch.no_grad():
            before = model(**given).logits
            ids = add_page_tokens(model, tokenizer, 4)
            after = model(**given).logits
        assert ids == tuple(range(size, size + 4))
        assert after.shape[-1] == model.config.vocab_size == size + 4
        torch.testing.assert_close(after[..., :size], before)
        assert (model.lm_head.weight is model.shared.weight) == (head == "tied")
        spread = [float(rows.detach().std()) for rows in (model.shared.weight[size:], model.shared.weight[:size])]
        assert spread[0] == pytest.approx(spread[1], rel=0.4)
        known = model.shared.weight.clone()
        assert add_page_tokens(model, tokenizer, 4) == ids
        assert torch.equal(model.shared.weight, known), "those of a checkpoint are kept"
