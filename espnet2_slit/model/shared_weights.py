"""Weights that two passes of a step use, converted once and their gradients summed.

An accelerator waits for kernels to start where batches are small, and a weight of two
passes costs some beyond its products: in half precision its conversion and that of its
gradient, and the sum of two gradients. Here one operator does each for all weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Place = tuple[nn.Module, str]  # a module and the name of a parameter of its own


class _Twice(torch.autograd.Function):
    """Weights of one dtype, in that of products, for the first pass and the second."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype, copies = weights[0].dtype, list(weights)
        if dtype != ctx.dtype:
            copies = [torch.empty_like(weight, dtype=dtype) for weight in weights]
            torch._foreach_copy_(copies, weights)
        return tuple(copy.view_as(copy) for copy in copies * 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found = {i: grad for i, grad in enumerate(grads) if grad is not None}
        if any(grad.dtype != ctx.dtype for grad in found.values()):
            exact = [torch.empty_like(g, dtype=ctx.dtype) for g in found.values()]
            torch._foreach_copy_(exact, list(found.values()))
            found = dict(zip(found, exact, strict=True))
        half = len(grads) // 2
        both = [i for i in found if i + half in found]
        total = {i % half: grad for i, grad in found.items()}
        if both:
            other = [found[i + half] for i in both]
            sums = torch._foreach_add([found[i] for i in both], other)
            total |= zip(both, sums, strict=True)
        return None, *(total.get(i) for i in range(half))


def two_passes(
    modules: Iterable[nn.Module], dtype: torch.dtype
) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    """Contexts for the first and the second pass of a step over some modules.

    Gradients are those that the passes give without them; they come all at once, when
    backward is through both.

    Args:
        modules: whose own weights both passes use, those within them not meant.
        dtype: of products; matrices and biases of nn.Linear are converted to it.
    """
    places: dict[bool, list[Place]] = {True: [], False: []}
    for module in modules:
        for name, weight in module.named_parameters(recurse=False):
            if weight.requires_grad:
                places[isinstance(module, nn.Linear)].append((module, name))
    first: list[tuple[Place, Tensor]] = []
    second: list[tuple[Place, Tensor]] = []
    for is_linear, some in places.items():
        if some:
            weights = [module.get_parameter(name) for module, name in some]
            shared = _Twice.apply(dtype if is_linear else weights[0].dtype, *weights)
            first += zip(some, shared[: len(some)], strict=True)
            second += zip(some, shared[len(some) :], strict=True)
    return _in_place(first), _in_place(second)


@contextlib.contextmanager
def _in_place(shared: list[tuple[Place, Tensor]]) -> Iterator[None]:
    """Modules use these tensors in the place of their parameters."""
    own = [module._parameters[name] for (module, name), _ in shared]
    try:
        for (module, name), tensor in shared:
            module._parameters[name] = tensor  # type: ignore[assignment]
        yield
    finally:
        for ((module, name), _), weight in zip(shared, own, strict=True):
            module._parameters[name] = weight
