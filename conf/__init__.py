"""Configuration: YAML files in groups, and `points`, which turns overrides into validated points of a sweep."""
