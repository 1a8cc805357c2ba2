"""Muon: momentum, orthogonalised (Jordan et al. 2024, "Muon: an optimizer for hidden layers").

torch.optim.Muon takes matrices only. Most weights of a U-Net are convolution kernels; here they are matrices
with one row per output channel. Updates are scaled to AdamW's size (Liu et al. 2025, "Muon is scalable for
LLM training", eq. 4), so a learning rate means the same for both.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fewstep.training.sharding import per_matrix

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz iteration, chosen for speed: singular values end up about 0.7 to
1.2."""
ITERATIONS = 5
RIDGE = 1e-6
ADAMW_RMS = 0.2
IN_A_BLOCK = re.compile(r"[./]\d+\.")
"""Matches the name of a layer within an entry of a list of blocks."""
EMBEDDING = "embed"
"""Part of the names of embedding layers, to recognise those within a block."""
ADAPTER = ".lora_"
"""In PEFT's parameter names, the separator between a layer's name and its adapter's matrices."""


class Muon(torch.optim.Optimizer):
    """Muon for hidden weights of two or more dimensions.

    lr: on AdamW's scale. momentum: of the Nesterov average. weight_decay: decoupled.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            # Weights of one shape are batched: with small matrices the kernel launches take most of the time.
            shapes: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes.setdefault(weight.flatten(1).shape, []).append(weight)
            for weights in shapes.values():
                self._update(weights, group)

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Update weights that are matrices of one shape."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        averages = [self.state[w].setdefault("momentum", torch.zeros_like(w)) for w in weights]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
        updates = per_matrix(orthogonal, torch.stack([update.flatten(1) for update in ahead]))
        size = ADAMW_RMS * max(updates.shape[1:]) ** 0.5
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        shaped = [update.view_as(weight) for update, weight in zip(updates, weights, strict=True)]
        torch._foreach_add_(weights, shaped, alpha=-group["lr"] * size)


def orthogonal(matrices: Tensor) -> Tensor:
    """About `U V^T` of each `U S V^T`, `[k, m, n]`, by Newton-Schulz.

    The iteration `X <- (a + b G + c G^2) X`, `G = X X^T`, multiplies X from the left by polynomials of its
    first Gram matrix. So it runs on the small square matrices and uses the large ones only twice. This needs
    float32: an eigenvalue of a Gram matrix that rounding makes negative would be amplified without bound.
    """
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x.float() / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7)
    identity = torch.eye(x.shape[1], device=x.device).expand(len(x), -1, -1)
    gram, product = x @ x.mT + RIDGE * identity, identity
    for _ in range(ITERATIONS):
        step = a * identity + b * gram + c * gram @ gram
        product, gram = step @ product, step @ gram @ step
    x = product @ x
    return (x if wide else x.mT).to(matrices.dtype)


def is_hidden(name: str, weight: Tensor) -> bool:
    """Whether Muon trains this weight: the matrix or kernel of a layer within a block.

    name: "module/parameter", as in `trained_weights`. First, last and embedding layers are outside a
    network's lists of blocks: `conv_in` and `conv_out` of a U-Net, `proj_out` and `norm_out.linear` of a
    transformer, but not the `proj_out` of a U-Net's block. A table that is added, such as
    `scale_shift_table`, is not the weight of a layer. An adapter's matrices count as weights of the layer
    that it adapts. AdamW trains the rest.
    """
    layer, _, kind = name.partition(ADAPTER) if ADAPTER in name else name.rpartition(".")
    in_a_block = IN_A_BLOCK.search(layer) is not None and EMBEDDING not in layer
    return weight.ndim >= 2 and "weight" in kind and in_a_block
