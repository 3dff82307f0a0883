"""Image folders to tar shards with patch boxes, and tar shards to batches."""
