"""Relations beside other solvers."""
