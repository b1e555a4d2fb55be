"""The seven endpoints that callers may use: parse a request, write its answer. No I/O.

The inner form is OpenAI's chat. Any other dialect that has chats translates the request into one,
and the chat's answer back.

- `base`: what a dialect is, and a request parsed by one
- `body`: a JSON body, checked and encoded
- `chat`: OpenAI's chat completions, and its older completions
- `embeddings`: OpenAI's embeddings
- `transcriptions`: OpenAI's transcriptions
- `multipart`: the form with an audio file that transcriptions receive
- `messages`: Anthropic's Messages, and its token counts
- `responses`: OpenAI's Responses
"""

from nexus_gateway.dialects.base import Dialect, Request
from nexus_gateway.dialects.chat import CHAT_COMPLETIONS, COMPLETIONS
from nexus_gateway.dialects.embeddings import EMBEDDINGS
from nexus_gateway.dialects.messages import COUNT_TOKENS, MESSAGES
from nexus_gateway.dialects.responses import RESPONSES
from nexus_gateway.dialects.transcriptions import TRANSCRIPTIONS

__all__ = ["DIALECTS", "Dialect", "Request"]

# Each dialect by its path.
DIALECTS: dict[str, Dialect] = {
    "/v1/chat/completions": CHAT_COMPLETIONS,
    "/v1/completions": COMPLETIONS,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/audio/transcriptions": TRANSCRIPTIONS,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNT_TOKENS,
}
