"""Any server with an OpenAI-compatible API: vLLM, Ollama, llama.cpp, LM Studio and others."""

from nexus_gateway.provider import Provider


class Local(Provider):
    """One instance for each LOCAL_BASE_URL_n, with LOCAL_MODEL_n, and LOCAL_KEY_n if needed."""

    title = "Local"
    needs_key = False
    stream_usage = True
    endpoints = {  # noqa: RUF012 - typed ClassVar in the contract
        "chat": "/chat/completions",
        "completions": "/completions",
        "embeddings": "/embeddings",
        "transcriptions": "/audio/transcriptions",
    }
