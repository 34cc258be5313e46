"""A cluster that Ray holds together: what each artifact needs, what the nodes have, and the crew that builds there.

Ray schedules, retries and restarts; artifacts travel over the store's folder, where all nodes see it, or over a bucket.
"""
