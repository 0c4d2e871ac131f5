# Every recipe a person uses. `ci/just RECIPE` installs what is missing first.
set positional-arguments

python := ".venv/bin/python"

# List the recipes
default:
    @"{{just_executable()}}" --list --unsorted

# Answer one prompt on this machine, without a GPU: run [prompt=TEXT | input=FILE] [model=NAME_OR_DIRECTORY]
run *arguments:
    @{{python}} -m ci.run "$@"

# Run every proof: linters, types, tests with coverage
[group('check')]
test: _tools lint types
    {{python}} -m ci.test

# Look for mistakes in style
[group('check')]
lint: _tools
    .venv/bin/ruff check
    .venv/bin/ruff format --check
    .venv/bin/vulture handler images ci --min-confidence 80

# Check the types
[group('check')]
types: _tools
    .venv/bin/mypy

# Reformat the code
[group('check')]
format: _tools
    .venv/bin/ruff check --fix-only
    .venv/bin/ruff format

# Compare the CPU engine with transformers, live (installs torch into .venv-torch)
[group('check')]
parity:
    ci/demo_model/install.sh
    .venv-torch/bin/python -m ci.parity.compare

# Measure: bench cpu | bench start
[group('check')]
bench name *arguments: _tools
    @shift; {{python}} -m ci.bench.{{name}} "$@"

# Show what FastDeploy and the worker answer to odd requests
[group('check')]
fuzz-table: _tools
    @{{python}} -m ci.fuzz_table

# Train the demo checkpoint again (installs torch into .venv-torch)
[group('build')]
demo-model:
    ci/demo_model/install.sh
    .venv-torch/bin/python -m ci.demo_model.train
    .venv-torch/bin/python -m ci.demo_model.check

# Resolve the dependencies again and write the lock files
[group('build')]
lock: _tools
    ci/lock.sh

_tools:
    @ci/install test
