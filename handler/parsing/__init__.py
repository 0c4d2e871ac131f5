"""Tool calls and thoughts made from the text of a model, for any engine: frames of a chat in, frames out; no I/O.

 1. `source`     the text of one answer, read by generators as it arrives, which can take back what turns out to be something else.
 2. `values`     JSON and typed values: where a JSON value ends, and how a parameter's text is spelled in JSON.
 3. `families`   the formats in which models write calls, one value each, and `detect`, which finds a checkpoint's.
 4. `reading`    the order of an answer: thought, text, calls.
 5. `rewriter`   the frames of a stream, or a whole answer, with calls and thoughts in the fields that OpenAI's clients read.
 6. `thinking`   what a chat template knows of thinking: which variable turns it on or off, and whether the prompt opens the thought.

Not here: prompts (the engine renders its template), constrained decoding (the engine's work), text completions.
"""
