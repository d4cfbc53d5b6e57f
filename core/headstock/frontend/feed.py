"""An append-only sequence that several readers follow while it grows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Feed(Generic[T]):
    """Items in order, and an end."""

    __slots__ = ("_is_over", "_items", "_listeners", "_lock")

    def __init__(self) -> None:
        self._items: list[T] = []
        self._listeners: list[Callable[[T | None], None]] = []
        self._lock = threading.Lock()
        self._is_over = False

    @property
    def items(self) -> list[T]:
        """What there is so far."""
        with self._lock:
            return list(self._items)

    def put(self, item: T) -> None:
        """Add an item."""
        with self._lock:
            self._items.append(item)
            for listener in self._listeners:
                listener(item)

    def end(self) -> None:
        """Add no more. May be called again."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            for listener in self._listeners:
                listener(None)
            self._listeners.clear()

    def listen(self, listener: Callable[[T | None], None]) -> None:
        """Tell ``listener`` of every item, those that came before too, and None at the end."""
        with self._lock:
            for item in self._items:
                listener(item)
            if self._is_over:
                listener(None)
            else:
                self._listeners.append(listener)
