"""Run the tests under coverage and hold the project to its bounds."""
