"""Everything that is peculiar to FastDeploy: how it is started, what it must not be asked, what its answers need.

 1. `values`, `table`, `flags`      variables -> the flags of a release's own parser, declared in flag_tables/<release>.json.
 2. `model_config`, `devices`       what config.json says about how FastDeploy can run the checkpoint, and on which GPUs it does.
 3. `rules`                         what differs between releases, and the CPU engine, as rows of values; what the operator decided.
    `fields`, `media`, `unheard`, `checks`  refuse requests that FastDeploy never answers, or answers with nonsense, and report
                                    what would have no effect. The CPU engine stands behind them too.
 4. `assemble`                      puts a stream together into the answer that FastDeploy gives without one.
 5. `repairs`                       mends what its answers have against OpenAI's schema.
 6. `causes`                        recognises in its logs why it failed.
 7. `residue`                       removes what a dead one leaves in shared memory.
 8. `server`                        decides the command line for a machine and a checkpoint; the engine itself.
 9. `dialect`                       one request and its answer, through 3, 4 and 5.
10. `installed`                     which release an interpreter has, and whether its parser is the one of the table.

`describe.py` and `serve_on_loopback.py` are run by FastDeploy's own interpreter and import nothing of the worker, whose packages
it does not have. Figures and behaviour are those of FastDeploy 2.3 to 2.6, measured on its real server.
"""
