# Every recipe a person uses. `ci/just RECIPE` installs what is missing first.
set positional-arguments

python := ".venv/bin/python"

# List the recipes
default:
    @"{{just_executable()}}" --list --unsorted

# Answer one prompt on this machine, without a GPU: run [prompt=TEXT | input=FILE] [model=NAME_OR_DIRECTORY]
run *arguments:
    @{{python}} -m tools.run "$@"

# Serve as RunPod's gateway would, on this machine: serve [port=8000] [model=NAME_OR_DIRECTORY] [engine=cpu] [endpoint=local] [api_key=KEY]
serve *arguments:
    @exec {{python}} -m tools.serve "$@"

# Run every proof: linters, types, tests with coverage
[group('check')]
test: _tools _programs lint types
    {{python}} -m ci.test

# Look for mistakes in style
[group('check')]
lint: _tools
    .venv/bin/ruff check
    .venv/bin/ruff format --check
    .venv/bin/vulture handler checkpoint cpu_engine images tools ci --min-confidence 80

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

# Measure: bench cpu | images | readahead | soak | start | stream | trials [KEY=VALUE ...]
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

# Write hub.json, tests.json, the console's form and the pages from the worker's tables: generate [--check]
[group('build')]
generate *arguments: _tools
    @{{python}} -m tools.generate "$@"

# Tell whether a model fits a GPU, and what to change: plan model=NAME_OR_DIRECTORY gpu=POOL [count=N] [quantization=NAME] [max-model-len=N] [concurrency=N] [release=R]
[group('check')]
plan *arguments:
    @{{python}} -m tools.plan "$@"

# Resolve the Python dependencies again and write their lock files
[group('build')]
lock-python: _tools
    ci/lock.sh

# Pin what an image is made of: lock arch=ARCH [release=R] [cuda=C] [model=ORG/NAME] [revision=R]
[group('image')]
lock *arguments: _images
    @{{python}} -m images lock "$@"

# Build an image, pin what the lock lacks, and print its digest: build-image arch=ARCH [release=R] [cuda=C] [model=ORG/NAME] [quantization=Q] [locked=yes]
[group('image')]
build-image *arguments: _images
    @{{python}} -m images fetch,build "$@"

# Look for mistakes in a built image: verify-image DIRECTORY
[group('image')]
verify-image *arguments: _images
    @{{python}} -m images verify "$@"

# Build an image and push it, of which only what is new travels: push-image arch=ARCH to=REGISTRY/REPOSITORY:TAG [watch=yes] [as for build-image]
[group('image')]
push-image *arguments: _images
    @exec {{python}} -m images fetch,build,push "$@"

# Build an image and load it into a local Docker: load-image arch=ARCH [as=NAME] [as for build-image]
[group('image')]
load-image *arguments: _images
    @{{python}} -m images fetch,build,load "$@"

# Copy what an image is made of to a registry of your own: mirror arch=ARCH to=REGISTRY/REPOSITORY
[group('image')]
mirror *arguments: _images
    @{{python}} -m images mirror "$@"

# Build the image without a GPU on CI's own base, and print its digest as the last line
[group('check')]
test-digest: _tools _programs
    @{{python}} -m ci.test_digest

# Run the smoke tests that need a GPU, on this machine
[group('check')]
smoke *arguments: _tools
    {{python}} -m pytest -q -m gpu tests/smoke "$@"

# Put an image on a RunPod endpoint, prove that it answers, go back if not: deploy image=REF [endpoint=NAME] [gpu=POOL] [env.NAME=VALUE] [dry-run=yes] ...
[group('release')]
deploy *arguments:
    @exec {{python}} -m tools.deploy "$@"

# Write an image's bill of materials from the lock: sbom arch=sm89 [release=R] [cuda=V] [model=NAME] [digest=D] [out=FILE]
[group('release')]
sbom *arguments: _tools
    @{{python}} -m tools.sbom "$@"

_tools:
    @ci/install test

_images:
    @ci/install images

_programs:
    @ci/install programs
