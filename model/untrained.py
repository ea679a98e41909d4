"""Starting weights of towers that no checkpoint fills, from which a small model learns within minutes."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

PATCH_GAIN = 3.0
GREY_SHARE = 0.2
RESIDUAL_GAIN = 0.1
POSITION_STD = 1.0


@torch.no_grad()
def initialize_untrained(tower: nn.Module) -> None:
    """Draw the linear maps of a tower again, with a standard deviation of 1 / sqrt(inputs).

    The usual standard deviation of 0.02 was chosen for widths around 768. At width 96 it leaves every residual branch
    almost silent: on easy-VQA a first epoch reached 45 % with it and 75 % with the scale above.
    """
    for module in tower.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=1.0 / math.sqrt(module.in_features))


@torch.no_grad()
def initialize_untrained_vision(patches: nn.Conv2d, positions: nn.Parameter, outputs: Iterable[nn.Linear]) -> None:
    """Starting weights of a vision transformer whose tokens differ from the first step on.

    What a token says of its image is what a text can find it by. With patches at a standard deviation of 0.02 and
    residual branches at full strength, 89 % of the energy of the last tokens is one vector that all of them share, 8 %
    their position and 3 % the image: a text that has to find one of several things then rests for thousands of steps at
    what it knows without the image. As below the shares are 31, 35 and 34 %, and it is found within a few hundred
    (docs/from_scratch.md).

    Args:
        patches: (D, C, P, P), the map from a patch to its token. Loud, and nearly deaf to grey: a plain ground is in
            every patch and would be the vector that all share.
        positions: (1, 1 + g * g, D). Waves along both sides: neighbours are alike, and no two places are the same.
        outputs: the last linear map of each residual branch. A branch that whispers leaves a token its own.
    """
    nn.init.trunc_normal_(patches.weight, std=PATCH_GAIN / math.sqrt(patches.weight[0].numel()))
    patches.weight -= (1.0 - GREY_SHARE) * patches.weight.mean(dim=(1, 2, 3), keepdim=True)
    if patches.bias is not None:
        nn.init.zeros_(patches.bias)
    grid = math.isqrt(positions.shape[1] - 1)
    nn.init.zeros_(positions)
    positions[0, 1:] = POSITION_STD * waves(grid, positions.shape[-1])
    for linear in outputs:
        linear.weight *= RESIDUAL_GAIN


def waves(grid: int, width: int) -> Tensor:
    """(grid * grid, width) float32: where a cell lies, row by row; each column has mean 0 and standard deviation 1.

    A fourth of the columns each are sines and cosines across and down, with waves between four cells and twice the grid
    in length (after Vaswani et al. 2017, section 3.5). Columns that `width` leaves over are 0, as are all of a grid of
    one cell.
    """
    if grid == 1:
        return torch.zeros(1, width)
    count = width // 4
    rates = torch.exp(torch.linspace(math.log(math.pi / 2), math.log(math.pi / grid), count))
    phases = (torch.arange(grid) - (grid - 1) / 2)[:, None] * rates
    axis = torch.cat([phases.sin(), phases.cos()], dim=1)
    axis = axis - axis.mean(dim=0)
    axis = axis / axis.std(dim=0, correction=0).clamp(min=1e-3)
    places = torch.zeros(grid, grid, width)
    places[..., : 2 * count] = axis[None]
    places[..., 2 * count : 4 * count] = axis[:, None]
    return places.flatten(0, 1)
