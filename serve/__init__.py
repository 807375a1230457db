"""Bundles over HTTP: an OpenAI-compatible API, jobs, metrics, and a page on which images appear patch by patch.

The server process speaks HTTP and never runs a model; each device has a worker process that owns the pipelines.
"""
