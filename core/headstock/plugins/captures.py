"""Captured steps on the host: PyTorch calls taken down while a step runs, and repeated.

For backends that record their own kernels, where an op without one is a PyTorch call between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headstock.errors import UnsupportedError

READS_VALUES = frozenset({"_local_scalar_dense", "nonzero", "item", "equal", "is_nonzero"})
"""Calls that bring a value to the host, which a replay could not follow."""
MAKES_EMPTY = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})


@dataclass(frozen=True, slots=True)
class TorchCall:
    """One PyTorch call of a step, repeated into the tensors that it made the first time."""

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor]

    def __call__(self) -> None:
        """Compute again."""
        made = tree_leaves(self.function(*self.args, **self.kwargs))
        fresh = [leaf for leaf in made if isinstance(leaf, Tensor)]
        for result, tensor in zip(self.results, fresh, strict=True):
            if tensor.data_ptr() != result.data_ptr():
                result.copy_(tensor)


class TorchCapture(TorchDispatchMode):
    """Takes down what PyTorch computes while it is entered; a backend says where it keeps that."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep PyTorch from importing its compiler for our sake: over a second, 900 modules."""
        return False

    def keep(self, call: TorchCall) -> None:
        """Take down a call that has run; its turn is after all that was recorded before."""
        raise NotImplementedError

    def hold(self, owner: object) -> None:
        """Keep ``owner`` alive as long as what is captured."""
        raise NotImplementedError

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a PyTorch call; take it down unless it only looks at memory another way.

        Raises:
            UnsupportedError: It reads a value on the host.
        """
        name = func._schema.name.removeprefix("aten::")
        if name in READS_VALUES:
            raise UnsupportedError(
                f"A captured step calls {name}, which reads a value on the host.",
                remedy="Serve with --no-graphs, and report which op does it.",
            )
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        writes = any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)
        if not writes and _are_views(tensors, (args, kwargs)):
            return made
        if name in MAKES_EMPTY:
            for tensor in tensors:
                self.hold(tensor)
            return made
        self.keep(TorchCall(name, func, args, dict(kwargs or {}), tensors))
        return made


def _are_views(made: Sequence[Tensor], given: object) -> bool:
    """Whether all of ``made`` lie in memory of ``given``: nothing was computed."""
    known = {
        leaf.untyped_storage().data_ptr() for leaf in tree_leaves(given) if isinstance(leaf, Tensor)
    }
    return all(tensor.untyped_storage().data_ptr() in known for tensor in made)
