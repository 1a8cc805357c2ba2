"""Published noise schedules that several tests share."""

import torch

from fewstep.diffusion.schedules import DiscreteVP

SD_BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
STABLE_DIFFUSION = DiscreteVP(tuple((1 - SD_BETAS).cumprod(0).tolist()))
"""Stable Diffusion's table; it ends at alpha_bar = 0.0047, which the rectified flow reaches at t = 0.936."""
