"""Answers ranked out of a list: as ALBEF's code does it, as every candidate alone would be scored, in any chunks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.towers.answer_towers import AnswerTower, BlipAnswerTower, T5AnswerTower
from model.towers.blip import decode_candidates, decode_text, keys_values_read
from model.towers.checkpoint_files import T5_ARCHITECTURES
from model.towers.hub import load_pretrained
from model.towers.ranking import Candidates, Ranking, log_probability, rank
from shards.read.collate import IGNORED_LABEL
from tests.models import WORDS, tiny_blip, tiny_t5

GOLDEN = Path(__file__).parents[3] / "golden" / "tasks" / "albef_rank.json"
QUESTIONS, LENGTH, WIDTH = 3, 5, 24
ANSWERS = ("red", "blue", "yes", "to the left of", "a red square", "no", "what color", "red circle")


def candidates_of(tokens: list[list[int]], *, start: int, pad: int, most: int, double: bool = False) -> Candidates:
    """From whole sequences, start and end token included."""
    whole = torch.tensor([row + [pad] * (max(map(len, tokens)) - len(row)) for row in tokens])
    assert (whole[:, 0] == start).all()
    return Candidates(whole[:, :-1], whole[:, 1:].masked_fill(whole[:, 1:] == pad, IGNORED_LABEL), most, double)


class TestAlbef:
    """A bigram table stands for the decoder: its next token depends on the last one alone."""

    @pytest.fixture
    def golden(self) -> dict[str, Any]:
        return json.loads(GOLDEN.read_text())

    @staticmethod
    def ranked(golden: dict[str, Any], *, double: bool) -> Ranking:
        table, questions = torch.tensor(golden["table"]), len(golden["topk_ids"])
        candidates = candidates_of(golden["answers"], start=1, pad=0, most=golden["k"], double=double)

        def whole(numbers: Tensor) -> Tensor:
            return log_probability(table[candidates.ids[numbers]], candidates.labels[numbers])

        return rank(table[[1] * questions].log_softmax(dim=-1), whole, candidates)

    def test_with_the_first_token_twice_it_is_the_originals_ranking(self, golden: dict[str, Any]):
        found = self.ranked(golden, double=True)
        assert found.numbers.tolist() == golden["topk_ids"]
        torch.testing.assert_close(found.probabilities, torch.tensor(golden["topk_probs"]), rtol=0, atol=1e-6)

    def test_otherwise_those_with_likely_first_tokens_stand_by_their_whole_answers(self, golden: dict[str, Any]):
        found = self.ranked(golden, double=False)
        (looked_at, same) = (set(row) for row in found.numbers.tolist())
        assert looked_at == same == set(golden["topk_ids"][0])
        by_whole = sorted(looked_at, key=lambda number: -golden["log_prob_whole"][number])
        assert found.numbers.tolist() == [by_whole] * 2
        whole = torch.tensor(golden["log_prob_whole"])[by_whole]
        torch.testing.assert_close(found.probabilities[0], whole.softmax(dim=0), rtol=0, atol=1e-6)

    def test_a_list_that_is_looked_at_in_whole_needs_no_first_tokens(self, golden: dict[str, Any]):
        found = self.ranked({**golden, "k": len(golden["answers"])}, double=False)
        whole = torch.tensor(golden["log_prob_whole"])
        assert found.numbers.tolist() == [whole.argsort(descending=True).tolist()] * 2


@pytest.fixture(scope="module")
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AnswerTower:
    if request.param == "blip":
        model = tiny_blip()
        return BlipAnswerTower(model.text_encoder, model.text_decoder)
    return T5AnswerTower(load_pretrained(tiny_t5(tmp_path_factory.mktemp("t5")), T5_ARCHITECTURES).model.eval())


towers = pytest.mark.parametrize("tower", ["blip", "t5"], indirect=True)


def candidates_for(tower: AnswerTower, *, most: int = len(ANSWERS), double: bool = False) -> Candidates:
    """Answers of one to four words, as token ids that either decoder knows."""
    start, end, pad = (5, 3, 0) if isinstance(tower, BlipAnswerTower) else (0, 1, -1)
    words = sorted({word for text in WORDS for word in text.split()})
    tokens = [[start, *(10 + words.index(word) for word in answer.split() if word in words), end] for answer in ANSWERS]
    made = candidates_of(tokens, start=start, pad=pad, most=most, double=double)
    return made._replace(ids=made.ids.clamp(min=0))


def states_and_mask(tower: AnswerTower) -> tuple[Tensor, Tensor]:
    """What a tower has read of questions of several lengths; T5 reads two image tokens in front of them."""
    generator = torch.Generator().manual_seed(4)
    image_tokens = 0 if isinstance(tower, BlipAnswerTower) else 2
    states = torch.randn(QUESTIONS, image_tokens + LENGTH, WIDTH, generator=generator)
    return states, torch.arange(LENGTH) < torch.tensor([[5], [2], [3]])


def alone(tower: AnswerTower, states: Tensor, mask: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
    """() log-probability of one answer to one question, without any padding behind either."""
    known = int((labels != IGNORED_LABEL).sum())
    keep = int(mask.sum())
    ids, labels = ids[None, :known], labels[None, :known]
    if isinstance(tower, BlipAnswerTower):
        logits = decode_text(tower.text_decoder, ids, states[None, :keep], mask[None, :keep])
    else:
        read = states[None, : len(states) - LENGTH + keep]
        logits = tower.model(encoder_outputs=(read,), decoder_input_ids=ids).logits
    chosen = logits.log_softmax(dim=-1)[0].gather(1, labels[0][:, None])
    return chosen.sum()


@towers
@torch.no_grad()
def test_candidates_are_scored_as_each_of_them_alone(tower: AnswerTower):
    candidates, (states, mask) = candidates_for(tower), states_and_mask(tower)
    found = tower.rank(states, mask, candidates)
    for question in range(QUESTIONS):
        one = [
            alone(tower, states[question], mask[question], ids, labels)
            for ids, labels in zip(candidates.ids, candidates.labels, strict=True)
        ]
        whole = torch.stack(one)
        order = whole.argsort(descending=True)
        assert found.numbers[question].tolist() == order.tolist()
        torch.testing.assert_close(found.probabilities[question], whole.softmax(0)[order], rtol=1e-4, atol=1e-5)
    assert len({tuple(row) for row in found.numbers.tolist()}) > 1, "the questions should not all be answered alike"


@towers
@torch.no_grad()
def test_a_shorter_look_takes_the_likeliest_first_tokens(tower: AnswerTower):
    candidates, (states, mask) = candidates_for(tower, most=3), states_and_mask(tower)
    everything = tower.rank(states, mask, candidates_for(tower))
    found = tower.rank(states, mask, candidates)
    for question in range(QUESTIONS):
        first = torch.stack(
            [
                alone(tower, states[question], mask[question], ids[:1], labels[:1])
                for ids, labels in zip(candidates.ids, candidates.labels, strict=True)
            ]
        )
        chosen = found.numbers[question].tolist()
        assert first[chosen].min() >= first.sort(descending=True).values[2] - 1e-5
        assert chosen == [number for number in everything.numbers[question].tolist() if number in chosen]
    torch.testing.assert_close(found.probabilities.sum(dim=1), torch.ones(QUESTIONS))


@towers
@torch.no_grad()
def test_the_first_token_can_count_twice(tower: AnswerTower):
    states, mask = states_and_mask(tower)
    plain, double = (tower.rank(states, mask, candidates_for(tower, double=double)) for double in (False, True))
    candidates = candidates_for(tower)
    for question in range(QUESTIONS):
        first = torch.stack(
            [
                alone(tower, states[question], mask[question], ids[:1], labels[:1])
                for ids, labels in zip(candidates.ids, candidates.labels, strict=True)
            ]
        )
        scores = torch.zeros(len(ANSWERS))
        scores[plain.numbers[question]] = plain.probabilities[question].log()
        expected = (scores + first).softmax(dim=0)
        torch.testing.assert_close(
            double.probabilities[question], expected[double.numbers[question]], rtol=1e-4, atol=1e-5
        )


@torch.no_grad()
@pytest.mark.parametrize("rows_at_once", [1, 2, 7, 12, 1000])
def test_candidates_in_chunks_have_the_logits_of_all_at_once(rows_at_once: int):
    decoder = tiny_blip().text_decoder
    tower = BlipAnswerTower(torch.nn.Module(), decoder)
    candidates, (states, mask) = candidates_for(tower), states_and_mask(tower)
    ids = candidates.ids[torch.stack([torch.arange(len(ANSWERS)).roll(question) for question in range(QUESTIONS)])]
    readable, read = mask[:, None, None, :], keys_values_read(decoder, states)
    chunks = list(decode_candidates(decoder, ids, read, readable, rows_at_once=rows_at_once))
    assert [number for some, _ in chunks for number in range(some.start, some.stop)] == list(range(len(ANSWERS)))
    assert all(logits.shape[0] * logits.shape[1] <= max(rows_at_once, QUESTIONS) for _, logits in chunks)
    ((_, whole),) = decode_candidates(decoder, ids, read, readable, rows_at_once=QUESTIONS * len(ANSWERS))
    torch.testing.assert_close(torch.cat([logits for _, logits in chunks], dim=1), whole, rtol=1e-5, atol=1e-5)


def test_no_more_candidates_are_looked_at_than_there_are():
    class Words:
        pad_id, start_id, end_id = 0, 1, 2

        def answers(self, texts: list[str]) -> list[list[int]]:
            return [[3 + ord(letter) for letter in text] for text in texts]

    made = Candidates.of(["ab", "c"], Words(), most=128, double_first_token=False)
    assert made.most == 2
    assert made.ids.tolist() == [[1, 100, 101], [1, 102, 0]]
    assert made.labels.tolist() == [[100, 101, 2], [102, 2, IGNORED_LABEL]]
