"""Very many images: plans, shards and what makes them, on one machine or over a cluster.

A plan fixes which images run together and which file they go into, so that the bytes of a shard do not depend on who
makes it, when, or after which interruption.
"""
