"""The providers that come with the gateway; they use the same door as any other."""
