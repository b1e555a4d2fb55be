"""A seeded, bounded campaign of faults against a gateway, which checks every answer."""
