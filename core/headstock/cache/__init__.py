"""Which page belongs to which request. Knows tokens only by their digests, and no requests."""

from headstock.cache.digest import NO_CONTENTS, RecentChains, chain_ids, child_id, root_id
from headstock.cache.features import FeatureStore, StoredItem
from headstock.cache.groups import Group
from headstock.cache.pages import PageCache
from headstock.cache.pool import PagePool
from headstock.cache.tables import NO_TABLES, PageTable, StateTable, Tables
from headstock.cache.tree import CachedPage, Hit, Node, PrefixTree, num_in_use

__all__ = [
    "NO_CONTENTS",
    "NO_TABLES",
    "CachedPage",
    "FeatureStore",
    "Group",
    "Hit",
    "Node",
    "PageCache",
    "PagePool",
    "PageTable",
    "PrefixTree",
    "RecentChains",
    "StateTable",
    "StoredItem",
    "Tables",
    "chain_ids",
    "child_id",
    "num_in_use",
    "root_id",
]
