"""Estimates the memory of a loss that decodes images, before its networks exist.

The loss of the method itself runs on fake tensors, forward and backward: the student's images with gradient,
the teacher's without. In a training it runs after the denoiser's forward pass and before its backward pass.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fewstep.checks.live_bytes import LiveBytes
from fewstep.checks.tracing import ROWS, Design, on_device, on_meta, recompute
from fewstep.core.hardware import attention, autocast, device
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.features.resizing import filter_matrix
from fewstep.students.config import ImageLoss
from fewstep.training.half import halve_frozen


@dataclass(frozen=True)
class Decoding:
    """A loss of decoded images, and how its networks are built untrained.

    text: describes all of it; equal ones are traced once. loss: see `MethodConfig.image_loss`. autoencoder:
    of the teacher, also for a loss that only decodes; `nn.Identity` where latents are images. features: the
    feature network; None where the loss has none.
    """

    text: str
    loss: ImageLoss = field(compare=False)
    autoencoder: Callable[[], nn.Module] = field(compare=False)
    features: Callable[[], Any] | None = field(compare=False)


@dataclass(frozen=True, eq=False)
class DecodingTrace:
    """Bytes of the frozen weights, and live bytes beside them.

    trained: number of weights of networks that the loss brings along and trains, such as a small decoder.
    fixed, per_row: after each operation, those that do not depend on the batch size, and those per sample.
    kept: the same two numbers between forward and backward pass.
    """

    weights: int
    trained: int
    fixed: np.ndarray
    per_row: np.ndarray
    kept: tuple[int, int]

    def peak(self, rows: int) -> int:
        """Peak of live bytes for `rows` samples, without weights."""
        return int((self.fixed + rows * self.per_row).max())

    def live_after_forward(self, rows: int) -> int:
        """Live bytes until the backward pass, for `rows` samples, without weights."""
        fixed, per_row = self.kept
        return fixed + rows * per_row


@cache
def trace_decoding(decoding: Decoding, design: Design, checkpointed: bool = False) -> DecodingTrace:
    """Run the loss on ROWS latents of a denoiser's shape; checkpointed: with recomputed activations.

    The autoencoder's weights are rounded as in a training, those of the feature network are not.
    """
    with torch.device("meta"):
        autoencoder = decoding.autoencoder().eval().requires_grad_(False)
        features = decoding.features().eval().requires_grad_(False) if decoding.features else None
    halve_frozen([autoencoder])
    if checkpointed:
        recompute(autoencoder)
    networks = [autoencoder, *([features] if features is not None else [])]
    weights = sum(tensor.nbytes for net in networks for tensor in tensors(net))
    backbone: Any = design.kind({}, RectifiedFlow(), Prediction.FLOW)
    backbone.net, backbone.vae = on_meta(design), autoencoder
    filter_matrix.cache_clear()
    with FakeTensorMode():
        for net in networks:
            on_device(net)
        live, trained = passes(decoding.loss, backbone, features, networks)
    # A matrix that was made here has no values.
    filter_matrix.cache_clear()
    fixed, batches = np.array(live.history, dtype=np.int64).T
    return DecodingTrace(weights, trained, fixed, batches // ROWS, (live.kept[0], live.kept[1] // ROWS))


def passes(
    loss: ImageLoss, backbone: Any, features: Any, networks: Iterable[nn.Module]
) -> tuple[LiveBytes, int]:
    """Trace forward and backward pass of the loss; networks: those that it evaluates.

    The second value is the number of weights that it trains.
    """
    shape = (ROWS, *backbone.latent_shape)
    x = torch.zeros(shape, device=device(), requires_grad=True)
    target = torch.zeros(shape, device=device())
    with LiveBytes(ROWS) as live:
        live.ignore(tensor for net in networks for tensor in tensors(net))
        with autocast():
            value = torch.stack([*loss(x, target, backbone.decode, features).values()]).sum()
        live.mark()
        trained = sum(leaf.numel() for leaf in leaves(value) - {x})
        with attention():
            torch.autograd.backward(value)
    return live, trained


def leaves(value: Tensor) -> set[Tensor]:
    """Tensors that the backward pass of a scalar gives a gradient."""
    nodes, seen, reached = [value.grad_fn], set[Any](), set[Tensor]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
        if hasattr(node, "variable"):
            reached.add(node.variable)
    return reached


def tensors(net: nn.Module) -> Iterable[Tensor]:
    """Weights and buffers."""
    return (*net.parameters(), *net.buffers())
