"""A diffusion model of one's own: a small network of discs, trained here, and how the chain is told of it.

python examples/own_model/model.py     # trains it; writes weights.safetensors and pictures/ beside this file
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torchvision.utils import save_image
from tqdm import trange

from fewstep.backbones.custom import CustomModel
from fewstep.diffusion.denoiser import Conditions, Prediction
from fewstep.diffusion.schedules import Cosine

SIDE = 16
STEPS = 1500
COLOURS = {"orange": (1.0, 0.4, 0.0), "blue": (0.0, 0.5, 1.0)}
HERE = Path(__file__).parent
WEIGHTS = HERE / "weights.safetensors"


class Net(nn.Module):
    """Predicts v from a noisy image `[B, 3, 16, 16]`, 1000 t `[B]` and the colour's number `[B]`."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.colour = nn.Embedding(len(COLOURS), width)
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1 << i, dilation=1 << i)
            )
            for i in (0, 1, 2, 1, 0)
        )
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, colour: Tensor) -> Tensor:
        told = self.time(time[:, None] / 1000) + self.colour(colour)
        x = self.first(x) + told[:, :, None, None]
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.last(x)
        return out


class Discs(CustomModel):
    """The network with its one condition: the colour that the prompt names."""

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        names = list(COLOURS)
        numbers = [next(i for i, name in enumerate(names) if name in prompt) for prompt in prompts]
        return {"colour": torch.tensor(numbers, dtype=torch.float32)}

    def call(self, net: nn.Module, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        raw: Tensor = net(x, time, conditions["colour"].long())
        return raw


def build(trained: bool) -> CustomModel:
    """What `teacher.adopt` names: the model, with its trained weights when asked for."""
    net = Net()
    if trained:
        load_model(net, WEIGHTS)
    return Discs(net, (3, SIDE, SIDE), Cosine(), Prediction.V)


def pictures(colour: Tensor, generator: torch.Generator) -> Tensor:
    """A disc of each colour `[B]` somewhere on black: `[B, 3, 16, 16]` in [-1, 1]."""
    place = torch.rand(len(colour), 2, 1, 1, generator=generator) * 8 + 4
    grid = torch.arange(SIDE) + 0.5
    distance = torch.hypot(grid[None, :, None] - place[:, 0], grid[None, None, :] - place[:, 1])
    disc = (3.5 - distance).clamp(0, 1)[:, None]
    return disc * torch.tensor(list(COLOURS.values()))[colour][:, :, None, None] * 2 - 1


def main() -> None:
    """Train on v with uniform times (Salimans & Ho 2022); write the weights, and images to compare with."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net, schedule = Net(), Cosine()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS)
    for _ in (bar := trange(STEPS)):
        colour, t = torch.randint(2, (64,), generator=generator), torch.rand(64, generator=generator)
        x_0, eps = pictures(colour, generator), torch.randn(64, 3, SIDE, SIDE, generator=generator)
        alpha, sigma = (c.float()[:, None, None, None] for c in schedule.alpha_sigma(t))
        raw = net(alpha * x_0 + sigma * eps, schedule.network_time(t), colour)
        loss = (raw - (alpha * eps - sigma * x_0)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
    save_model(net, str(WEIGHTS))

    folder = HERE / "pictures"
    folder.mkdir(exist_ok=True)
    colour = torch.arange(1000) % 2
    names = [list(COLOURS)[number] for number in colour.tolist()]
    lines = []
    for i, (image, name) in enumerate(zip(pictures(colour, generator), names, strict=True)):
        save_image(image, folder / f"{i:04d}.png", normalize=True, value_range=(-1, 1))
        row = {"file_name": f"{i:04d}.png", "caption": f"{name} disc", "labels": {"colour": name}}
        lines.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
