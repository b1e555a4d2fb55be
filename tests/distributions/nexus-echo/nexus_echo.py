"""The smallest provider there can be: attributes and no method."""

from nexus_gateway.provider import Model, Provider


class Echo(Provider):
    """A backend that speaks the OpenAI API."""

    title = "Echo"
    base_url = "http://127.0.0.1:9/v1"
    default_model = "echo-1"
    models = (Model("echo-1", context=4_096),)
