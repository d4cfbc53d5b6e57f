"""Which page belongs to whom. Knows tokens only by their digests, and no requests."""

from headstock.cache.digest import chain_ids, child_id, root_id
from headstock.cache.pages import PageCache
from headstock.cache.pool import PagePool
from headstock.cache.tree import Node, PrefixTree

__all__ = ["Node", "PageCache", "PagePool", "PrefixTree", "chain_ids", "child_id", "root_id"]
