"""The providers that come with the gateway, declared by entry points like any other plugin."""
