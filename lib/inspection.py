"""Looking into a network without leaving a trace: evaluation mode for a while, what modules take and give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """Put a network into evaluation mode; afterwards every module has its own mode again, come what may."""
    modes = {module: module.training for module in network.modules()}
    try:
        yield network.eval()
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Literal["input", "output"], Callable]]) -> Iterator[None]:
    """Hang hooks on modules, before (``input``) or behind (``output``) their forward pass, for a while.

    What a module is called with by keyword stands behind the other inputs.
    """
    handles = []
    try:
        for module, side, hook in hooks:
            if side == "input":
                handles.append(module.register_forward_pre_hook(_with_keywords(hook), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_keywords(hook: Callable) -> Callable:
    return lambda module, inputs, keywords: hook(module, (*inputs, *keywords.values()))


@contextmanager
def captured(
    network: nn.Module, names: Iterable[str], side: Literal["input", "output"] = "input"
) -> Iterator[dict[str, Tensor]]:
    """Keep what enters or leaves some modules of a network while it runs.

    Parameters
    ----------
    network : nn.Module
    names : iterable of str
        Of submodules, as `nn.Module.get_submodule` takes them.
    side : {"input", "output"}
        The first argument of the module's forward pass, or what it returns.

    Yields
    ------
    dict of str to Tensor
        A detached copy for each module that ran, by name, in the order in which they ran last.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor | None = None) -> None:
            seen.pop(name, None)
            seen[name] = (inputs[0] if side == "input" else output).detach().clone()

        return hook

    with hooked((network.get_submodule(name), side, keep(name)) for name in names):
        yield seen
