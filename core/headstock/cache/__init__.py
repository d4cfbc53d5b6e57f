"""Which page belongs to whom. Knows tokens only by their digests, and no requests."""

from headstock.cache.digest import chain_ids, child_id, root_id
from headstock.cache.groups import Group
from headstock.cache.pages import Hit, PageCache
from headstock.cache.pool import PagePool
from headstock.cache.tables import PageTable, StateTable, Tables
from headstock.cache.tree import CachedPage, Node, PrefixTree

__all__ = [
    "CachedPage",
    "Group",
    "Hit",
    "Node",
    "PageCache",
    "PagePool",
    "PageTable",
    "PrefixTree",
    "StateTable",
    "Tables",
    "chain_ids",
    "child_id",
    "root_id",
]
