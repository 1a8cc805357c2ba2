"""Feature taps: outputs of chosen layers of a network, without a change of its forward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fewstep.training.sharding import unsharded_in_backward


@contextmanager
def tapped(net: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yields a dictionary that holds, after a call of `net`, each layer's output under its name.

    Gradients pass through the outputs, also under gradient checkpointing. Raises AttributeError on a layer
    that the network does not have.

        with tapped(net, ["mid_block"]) as features:
            net(x, t, text)
        loss = head(features["mid_block"])
    """
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: object, output: Tensor | tuple[Any, ...]) -> None:
            outputs[name] = hidden_states(output)
            unsharded_in_backward(net, name, outputs[name])

        return keep

    handles = [net.get_submodule(name).register_forward_hook(hook(name)) for name in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def hidden_states(output: Tensor | tuple[Any, ...]) -> Tensor:
    """The image's hidden states in the output of a diffusers block.

    A U-Net's block returns (hidden states, tuple of residuals), a block of SD3 or Flux (text's, image's).
    """
    if isinstance(output, Tensor):
        return output
    hidden: Tensor = output[-1] if isinstance(output[-1], Tensor) else output[0]
    return hidden


def blocks(net: nn.Module) -> list[str]:
    """Names of a denoiser's whole blocks in the order of its forward pass, as diffusers names them.

    A U-Net's `down_blocks.0 ... mid_block, up_blocks.0 ...`, a transformer's `transformer_blocks.0 ...`;
    Flux's `single_transformer_blocks` come after the others.
    """
    lengths = {name: len(child) for name, child in net.named_children() if isinstance(child, nn.ModuleList)}
    names = [f"{name}.{i}" for name, n in lengths.items() if name.endswith("blocks") for i in range(n)]
    if getattr(net, "mid_block", None) is not None:
        middle = next((i for i, name in enumerate(names) if name.startswith("up_blocks")), len(names))
        names.insert(middle, "mid_block")
    return names
