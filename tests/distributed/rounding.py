"""A small attention whose micro-batches are the same on any number of ranks: only the order of their sum differs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.distributed.toy import VISITS
from trainer.engine.deepspeed_config import resolve
from trainer.engine.distributed import World
from trainer.engine.engine import Engine
from trainer.engine.optimizers import OptimizerChoice
from trainer.engine.parameter_groups import parameter_groups

STEPS = 22
LEARNING_RATE = 1e-3
KEY_BIAS = "key.bias"
"""The softmax over keys does not see it: its gradient is 0 but for rounding."""
CHOICES = {
    "adamw": OptimizerChoice(),
    "adamw, eps 1e-3": OptimizerChoice(eps=1e-3),
    "sgd": OptimizerChoice(name="sgd", options={"momentum": 0.9}),
}
_MICRO_VISITS, _TOKENS, _WIDTH, _WORDS = 2, 7, 32, 50


class _Output(NamedTuple):
    loss: Tensor


class Attention(nn.Module):
    """Words of a text attend to each other, and their mean is scored."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words = nn.Embedding(_WORDS, _WIDTH)
        self.query, self.key, self.value = (nn.Linear(_WIDTH, _WIDTH) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, _WORDS)

    def forward(self, batch: tuple[Tensor, Tensor]) -> _Output:
        """Texts (V, T) of word numbers, and the class of each (V,)."""
        texts, classes = batch
        words = self.words(texts)
        attended = F.scaled_dot_product_attention(*(part(words) for part in (self.query, self.key, self.value)))
        return _Output(F.cross_entropy(self.head(self.norm(words + attended).mean(1)), classes))


def train(choice: OptimizerChoice, policy: dict[str, Any], world: World) -> dict[str, Any]:
    """Losses of all steps, and on rank 0 the parameters behind the last."""
    module = Attention()
    accumulation = VISITS // (_MICRO_VISITS * world.world_size)
    config = resolve(
        policy,
        precision="fp32",
        visits=VISITS,
        micro_visits=_MICRO_VISITS,
        accumulation=accumulation,
        world_size=world.world_size,
        max_grad_norm=1.0,
    )
    groups = parameter_groups(module, 0.01)
    # Some words occur in no text of the first step.
    engine = Engine(
        module,
        world=world,
        deepspeed_config=config,
        learning_rate=LEARNING_RATE,
        optimizer=choice,
        groups=groups,
        gradient_patience=STEPS,
    )
    losses = [_step(engine, world, step, accumulation) for step in range(STEPS)]
    state = engine.export_state()
    engine.close()
    return {
        "losses": losses,
        "parameters": state and {name: tensor.flatten().tolist() for name, tensor in state.parameters.items()},
    }


def _step(engine: Engine, world: World, step: int, accumulation: int) -> float:
    generator = torch.Generator().manual_seed(step)
    texts = torch.randint(_WORDS, (VISITS, _TOKENS), generator=generator)
    classes = texts.amax(1)
    total = 0.0
    for micro_step in range(accumulation):
        first = (world.rank * accumulation + micro_step) * _MICRO_VISITS
        own = slice(first, first + _MICRO_VISITS)
        loss = engine((texts[own], classes[own])).loss
        engine.backward(loss)
        engine.step()
        total += loss.item()
    return world.sum_across_ranks([total]).item() / (world.world_size * accumulation)
