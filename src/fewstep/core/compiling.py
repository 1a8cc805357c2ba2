"""torch.compile of a network block by block, so that blocks of one shape are compiled once.

A whole diffusion network is one large graph, which takes minutes to compile. Its blocks repeat.
"""

import torch
from torch import nn

BLOCKS = frozenset({"ResnetBlock2D", "AutoencoderTinyBlock"})
"""Classes of blocks that diffusers does not list for every network that has them."""
VERSIONS = 64
"""Compiled versions of one class's code that torch may keep, by shapes of weights; its default is 8."""


def compile_blocks(net: nn.Module, backend: str) -> None:
    """Compile the network's blocks when they are first called; a network without known blocks as a whole.

    Blocks are the innermost modules of the classes that the network lists in `_repeated_blocks` (for
    compilation) or `_no_split_modules` (for placement), and of `BLOCKS`. backend: of torch.compile.
    """
    # Beyond the limit torch would run further blocks without compilation.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, VERSIONS)
    for block in blocks_of(net) or [net]:
        block.compile(backend=backend)


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """The innermost modules of the known classes of blocks."""
    listed = (getattr(net, name, None) or () for name in ("_repeated_blocks", "_no_split_modules"))
    classes = BLOCKS.union(*listed)

    def is_block(module: nn.Module) -> bool:
        return type(module).__name__ in classes

    return [
        module
        for module in net.modules()
        if is_block(module) and not any(is_block(inner) for inner in module.modules() if inner is not module)
    ]
