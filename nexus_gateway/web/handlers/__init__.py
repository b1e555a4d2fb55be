"""HTTP in and out: one file for each resource."""
