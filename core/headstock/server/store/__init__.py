"""What the server keeps for its callers: values by kind, owner and name.

``MemoryStore`` keeps them for the life of the process, ``DiskStore`` in a folder, over restarts.
``Blobs`` keeps large files beside them. ``StateFolder`` is what ``--state-dir`` names.
"""

from headstock.server.store.base import Bounds, Entry, Store
from headstock.server.store.blobs import Blobs
from headstock.server.store.disk import DiskStore
from headstock.server.store.folder import StateFolder
from headstock.server.store.memory import MemoryStore

__all__ = ["Blobs", "Bounds", "DiskStore", "Entry", "MemoryStore", "StateFolder", "Store"]
