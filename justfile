# Every recipe a person uses. Each installs what it needs first, and `ci/just RECIPE` installs just itself too; `ci/just RECIPE help` lists
# what a recipe takes. File names are relative to CALLED_FROM, the folder in which the command was typed.
set positional-arguments

python := ".venv/bin/python"
export CALLED_FROM := env("CALLED_FROM", invocation_directory())

# List the recipes
default:
    @"{{just_executable()}}" --list --unsorted

# Answer one prompt on this machine, without a GPU: run [PROMPT | input=FILE] [model=NAME_OR_DIRECTORY]
[no-exit-message]
run *arguments: _run
    @exec {{python}} -m tools.run "$@"

# Serve as RunPod's gateway would, on this machine: serve [port=8000] [model=NAME_OR_DIRECTORY] [engine=cpu] ...
[no-exit-message]
serve *arguments: _run
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

# Print modules and code lines of each package beside their budget
[group('check')]
size: _run
    @{{python}} -m ci.size

# Reformat the code
[group('check')]
format: _tools
    .venv/bin/ruff check --fix-only
    .venv/bin/ruff format

# Compare the CPU engine with transformers, live (installs torch into .venv-torch)
[group('check')]
[no-exit-message]
parity *arguments:
    @ci/demo_model/install.sh
    @.venv-torch/bin/python -m ci.parity.compare "$@"

# Measure: bench api-trials | cpu | images | parsing | readahead | soak | start | stream | trials [key=value ...]
[group('check')]
[no-exit-message]
bench *arguments: _tools
    @exec {{python}} -m ci.bench "$@"

# Show what FastDeploy and the worker answer to odd requests
[group('check')]
[no-exit-message]
fuzz-table *arguments: _tools
    @{{python}} -m ci.fuzz_table "$@"

# Train the demo checkpoint again (installs torch into .venv-torch)
[group('build')]
demo-model:
    ci/demo_model/install.sh
    .venv-torch/bin/python -m ci.demo_model.train
    .venv-torch/bin/python -m ci.demo_model.check

# Write hub.json, tests.json, the console's form and the pages from the worker's tables: generate [--check]
[group('build')]
[no-exit-message]
generate *arguments: _tools
    @{{python}} -m tools.generate "$@"

# Tell whether a model fits a GPU, and what to change: plan model=NAME_OR_DIRECTORY gpu=POOL [count=N] [quantization=NAME] ...
[group('check')]
[no-exit-message]
plan *arguments: _run
    @exec {{python}} -m tools.plan "$@"

# Resolve the Python dependencies again and write their lock files
[group('build')]
lock-python: _tools
    ci/lock.sh

# Pin what an image is made of: lock arch=ARCH [release=R] [cuda=C] [model=ORG/NAME] [revision=R]
[group('image')]
[no-exit-message]
lock *arguments: _images
    @CALLED_AS="ci/just $0" exec {{python}} -m images lock "$@"

# Build an image, pin what the lock lacks, and print its digest: build-image arch=ARCH [release=R] [cuda=C] [model=ORG/NAME] [quantization=Q] [locked=yes]
[group('image')]
[no-exit-message]
build-image *arguments: _images
    @CALLED_AS="ci/just $0" exec {{python}} -m images fetch,build "$@"

# Look for mistakes in a built image: verify-image DIRECTORY
[group('image')]
[no-exit-message]
verify-image *arguments: _images
    @CALLED_AS="ci/just $0" exec {{python}} -m images verify "$@"

# Build an image and push it, of which only what is new travels: push-image arch=ARCH to=REGISTRY/REPOSITORY:TAG [watch=yes] [as for build-image]
[group('image')]
[no-exit-message]
push-image *arguments: _images
    @CALLED_AS="ci/just $0" exec {{python}} -m images fetch,build,push "$@"

# Build an image and load it into a local Docker: load-image arch=ARCH [as=NAME] [as for build-image]
[group('image')]
[no-exit-message]
load-image *arguments: _images
    @CALLED_AS="ci/just $0" exec {{python}} -m images fetch,build,load "$@"

# Copy what an image is made of to a registry of your own: mirror arch=ARCH to=REGISTRY/REPOSITORY
[group('image')]
[no-exit-message]
mirror *arguments: _images
    @CALLED_AS="ci/just $0" exec {{python}} -m images mirror "$@"

# Build the image without a GPU on CI's own base, and print its digest as the last line
[group('check')]
test-digest: _tools _programs
    @{{python}} -m ci.test_digest

# Run the smoke tests that need a GPU, on this machine
[group('check')]
smoke *arguments: _tools
    {{python}} -m pytest -q -m gpu tests/smoke "$@"

# Put an image on a RunPod endpoint, prove that it answers, go back if not: deploy image=REFERENCE [endpoint=NAME] [gpu=POOL] [env.NAME=VALUE] ...
[group('release')]
[no-exit-message]
deploy *arguments: _run
    @exec {{python}} -m tools.deploy "$@"

# Write an image's bill of materials from the lock: sbom arch=sm89 [release=R] [cuda=V] [model=NAME] [digest=D] [out=FILE]
[group('release')]
[no-exit-message]
sbom *arguments: _tools
    @{{python}} -m tools.sbom "$@"

_run:
    @ci/install run

_tools:
    @ci/install test

_images:
    @ci/install images

_programs:
    @ci/install programs
