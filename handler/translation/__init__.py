"""OpenAI's Responses and Anthropic's Messages, translated to a chat completion of any engine and back; no I/O.

 1. `fields`             reads a JSON object against a table: each field is translated, refused by name, or without effect for a reason.
 2. `conversation`       gathers what a request says into the messages of a chat, `tools` what it offers.
 3. `answer`             reads a chat answer, whole or streamed, as pieces; `Translation` is what both APIs have in common.
 4. `responses_fields`   the tables of /v1/responses, `responses` its requests, `responses_events` its answers and events.
 5. `messages_fields`    the tables of /v1/messages, `messages` its requests, `messages_events` its answers and events.
 6. `exchange`           which route is translated by what, and the way of such a request to the engine and back.

The schema of each API is that of its official Python client. Nothing is stored: every request holds its whole conversation.
"""
