"""From logits to token ids, without a sort.

A row is cut into parts of ``PART`` ids, a program each, so that one row keeps many multiprocessors
busy. Parts never depend on how many rows there are, and their sums are merged in order: a row draws
the same alone and among others. What a row does not ask for it does not pay for: programs look at
its settings and return.
"""
