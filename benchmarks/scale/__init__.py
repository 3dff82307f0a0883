"""What grows with the data set and the cluster."""
