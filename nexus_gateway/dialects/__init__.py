"""How callers ask and how they are answered: one module or package for each dialect.

The inner form is OpenAI's chat. A dialect that has it turns a request into a chat and the chat's
answer into its own words; pure functions, no sockets. Relay and scheduler know of none of them.
"""
