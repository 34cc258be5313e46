"""Ray executor: a connection to a cluster, checks of its nodes, and the crew that builds there.

Ray schedules and retries tasks. Nodes share artifacts through the store's folder, if all see it, or through a bucket.
"""
