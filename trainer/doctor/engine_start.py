"""DeepSpeed started for real and as small as can be: one rank, one parameter, one step. Exit code 0 if it works."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.engine.deepspeed_config import resolve
from trainer.engine.distributed import initialize
from trainer.engine.engine import Engine
from trainer.engine.process import leave

TIMEOUT_SECONDS = 120.0


class _Output(NamedTuple):
    loss: Tensor


class _Line(nn.Module):
    """Its loss is its only weight times the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1, bias=False)

    def forward(self, batch: Tensor) -> _Output:
        return _Output(self.line(batch).sum())


def main() -> None:
    """Raises whatever keeps DeepSpeed from starting."""
    world = initialize(TIMEOUT_SECONDS)
    policy = {"zero_optimization": {"stage": 1}}
    sizes = {"visits": 1, "micro_visits": 1, "accumulation": 1, "world_size": 1}
    config = resolve(policy, precision="fp32", max_grad_norm=None, **sizes)
    engine = Engine(_Line(), world=world, deepspeed_config=config, learning_rate=1e-3)
    engine.backward(engine(torch.ones(1, 1, device=engine.device)).loss)
    update = engine.step()
    assert update is not None
    assert update.applied
    world.close()


if __name__ == "__main__":
    main()
    leave(0)
