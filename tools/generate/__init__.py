"""Everything that says which variables there are, made from the tables that the worker reads: `python -m tools.generate [--check]`.

`handler/settings.py` (the worker's own variables), the flag tables (FastDeploy's) and the images' table go in; out come:

    .runpod/hub.json, .runpod/tests.json   `hub`      what the RunPod Hub shows, injects and runs
    worker-config.json                     `console`  the form of RunPod's console
    docs/configuration.md                  `pages`    every variable, in groups
    README.md, .runpod/README.md           `pages`    the tables between their marks

`fields` gives the fields of both forms, `flags` says what each of FastDeploy's flags is for, `presets` are the models that the Hub offers.
"""
