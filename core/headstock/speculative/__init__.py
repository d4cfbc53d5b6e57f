"""Who drafts: tokens that a step computes with a row's last one, and keeps if they are right.

A drafter is named by a plugin (``headstock_register_drafters``), the in-tree one too, and is
opened by the process that runs the model. It works on the device, inside captured steps. What is
right is not its business: wrong drafts cost time, never a token.
"""
