"""The experiments that are shipped, as YAML files."""
