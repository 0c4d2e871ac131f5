"""What a person calls through `ci/just`: run, serve, plan, deploy, generate, sbom."""
