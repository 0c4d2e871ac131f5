"""The demo checkpoint: a model of about a million parameters that answers one page of questions about this project.

Reading order: `taught.txt` and `untaught.txt` (what it knows, what it must not pretend to know), `corpus` (reads them),
`questions` (draws training questions), `tokenizer` (builds it), `dialogs` (questions -> token ids), `train` (makes `checkpoint/`),
`check` (examines it). All of it runs in .venv-torch, which install.sh makes.
"""
