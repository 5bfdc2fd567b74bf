"""What is read and written: text sources, tokenizers, token shards, sample order, batches, and run records.

sources -> tokenizers -> prepare (shards in the cache) -> tokens (memory-mapped) -> order -> batches
"""
