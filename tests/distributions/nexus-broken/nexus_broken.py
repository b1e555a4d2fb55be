"""A provider whose own needs are not met."""

raise ImportError("nexus_broken needs a library that nobody has")
