"""Parity of the CPU engine with transformers: tiny random checkpoints, their reference answers, and the comparison.

Reading order: `families` (which models), `layouts` (how their weights lie on disk), `reference` (the answers, as data),
`make_references` (writes tests/data/parity, needs torch), `make_template_references` (writes tests/data/templates.json: chat templates
rendered by transformers, needs no torch), `compare` (the live comparison, needs torch and `cpu_engine`).
"""
