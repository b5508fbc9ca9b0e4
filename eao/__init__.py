"""The multi-modal fusion transformer of Everything at Once: from videos to search."""
