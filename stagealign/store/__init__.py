"""Files on disk: artifacts and their records, results, kept rows, locks, checksums, a bucket."""
