"""Everything that is peculiar to FastDeploy: how it is started, what it must not be asked, what its answers need.

 1. `values`, `table`, `flags`   variables -> the flags of a release's own parser, declared in flag_tables/<release>.json.
 2. `gpus`                       the machine's GPUs: listed, held against the image, dealt out.
 3. `formats`                    which checkpoints a release reads.
 4. `decision`                   the flags that fit variables, machine, checkpoint and each other.
 5. `preflight`                  whether the machine can hold it.
 6. `diagnose`, `cleanup`        why it failed, by its logs; what a dead one leaves, removed.
 7. `start`                      1 to 6 in order: check, prepare, examine; the engine itself.
 8. `rules`                      what differs between releases, and the CPU engine, as rows of values; what the operator decided.
    `fields`, `media`, `unheard`, `checks`  refuse requests that the engine never answers, or answers with nonsense, and report what
                                 would have no effect. The CPU engine stands behind them too.
 9. `assemble`                   puts a stream together into the answer that FastDeploy gives without one.
10. `repairs`                    mends what its answers have against OpenAI's schema.
11. `text_formats`               calls and thoughts that the worker tells from text, for models that the engine has no parser for.
12. `dialect`                    one request and its answer, through 8 to 11.
13. `installed`                  which release an interpreter has, and whether its parser is the one of the table.

`describe.py` and `serve_on_loopback.py` are run by FastDeploy's own interpreter and import nothing of the worker, whose packages
it does not have. Figures and behaviour are those of FastDeploy 2.3 to 2.6, measured on its real server.
"""
