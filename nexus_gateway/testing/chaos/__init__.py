"""A campaign of faults against a gateway: planned by a seed, bounded, every answer looked at."""
