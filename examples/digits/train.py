"""A small diffusion model of handwritten digits, made with diffusers alone: the teacher of this example.

Writes, beside this file, `pictures/` (scikit-learn's digits as 16 x 16 PNGs, with a metadata.jsonl) and
`ddpm/` (a class-conditional UNet2DModel, v-prediction, cosine, as a DDPMPipeline).
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch.nn.functional import mse_loss
from tqdm import trange

HERE = Path(__file__).parent
SIDE, STEPS, BATCH = 16, 2000, 128


def main() -> None:
    """Write the images, train, write the pipeline."""
    digits = load_digits()
    pictures = [
        Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for image in digits.images
    ]
    folder = HERE / "pictures"
    folder.mkdir(exist_ok=True)
    lines = []
    for i, (picture, digit) in enumerate(zip(pictures, digits.target, strict=True)):
        picture.save(folder / f"{i:04d}.png")
        row = {"file_name": f"{i:04d}.png", "caption": str(digit), "labels": {"digit": str(digit)}}
        lines.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")

    torch.manual_seed(0)
    x = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).float()[:, None] / 127.5 - 1
    label = torch.from_numpy(digits.target)
    net, average = (new_net() for _ in range(2))
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, STEPS, pct_start=0.05)
    for step in (bar := trange(STEPS)):
        rows = torch.randint(len(x), (BATCH,))
        t, eps = torch.randint(1000, (BATCH,)), torch.randn(BATCH, 1, SIDE, SIDE)
        noisy = scheduler.add_noise(x[rows], eps, t)
        loss = mse_loss(net(noisy, t, label[rows]).sample, scheduler.get_velocity(x[rows], eps, t))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
        with torch.no_grad():
            share = max(0.01, 1 / (step + 1))
            for kept, new in zip(average.parameters(), net.parameters(), strict=True):
                kept.lerp_(new, share)
        bar.set_postfix(loss=f"{loss.item():.4f}")
    DDPMPipeline(average, scheduler).save_pretrained(HERE / "ddpm")


def new_net() -> UNet2DModel:
    """0.9 M parameters, told the digit."""
    return UNet2DModel(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=8,
        num_class_embeds=10,
    )


if __name__ == "__main__":
    main()
