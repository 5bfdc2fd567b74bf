"""Context parallelism: the tokens of a sequence over ranks, after LoongTrain's 2D attention (arXiv:2406.18485).

placement   which rank holds which positions: pure functions
kernel      attention of some queries to some keys, with the log-sum-exp by which such blocks are merged
ring        keys and values travel a ring, or rings of rings; gradients follow them
attention   heads over some ranks, the ring over the others
groups      the process groups of that
apply       the same, put onto a model and its batches
cost        seconds of a layer in each layout; no torch
hybrid      under the document mask instead: which ranks compute which documents of a batch (ByteScale); pure functions
pool        the same, put onto a model and its batches
"""
