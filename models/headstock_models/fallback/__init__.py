"""Architectures without a file of ours: classes of transformers around our attention and products.

A class of transformers computes everything but what costs: attention goes to our pages, matrix
products, embeddings, experts and the output layer to our layers, so that quantisation, tensor
parallelism and the prefix cache work as elsewhere. What cannot be served so is refused.
"""
