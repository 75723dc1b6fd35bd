"""Benchmarks: one question per file, answered by a JSON in results/ that names its command."""
