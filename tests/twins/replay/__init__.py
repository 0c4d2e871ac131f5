"""A child process that answers as FastDeploy's server answered when it was recorded, and misbehaves on demand as it was measured to.

Read in this order: `recordings` (what was recorded, and which recording answers a request), `wire` (HTTP bytes), `script` (one answer
as steps, with pacing and faults), `synthetic` (endless tokens for benches), `seen` (what the server saw, for tests), `server` (sockets),
`__main__` (flags, loading, exit codes, the process that outlives it); `child` starts it from a test. Where a recorded question is put in
another form: `said` (what an answer says), `form` (a stream made of a whole answer), `twin` (which answers).

`python -m tests.twins.replay show RELEASE [CASE]` prints recordings for a person.

Not here: tokenising, templates, scheduling, limits on concurrency. An unrecorded request is an error, never a guess.
"""
