"""Attention over paged keys and values, and over the tree of prefixes that rows share.

A page keeps its keys, then its values, head by head: [2, K, page_size, D], so that the tokens of
one head are contiguous. Rows with one query are split along their keys over the device and merged
by log-sum-exp; longer ones are cut into blocks of queries.
"""
