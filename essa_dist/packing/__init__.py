"""Making packed data sets: find files, read their formats, guard, write shards, report."""
